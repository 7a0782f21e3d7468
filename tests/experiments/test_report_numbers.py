"""What a report says in numbers, against numbers made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from fedmvp.experiments.report.answers import in_short
from fedmvp.experiments.report.costs import largest_sum_error, overspent_cells, run_cost
from fedmvp.experiments.report.markdown import table_lines
from fedmvp.experiments.report.questions import best_other, chosen, kept, leaders, one_size_each, probe
from fedmvp.experiments.report.reading import as_study
from fedmvp.experiments.report.summary import PLAIN, Comparison, Entry, Terms, comparisons
from fedmvp.experiments.report.tables import (
    Table,
    cost_table,
    difference_table,
    group_table,
    kept_table,
    overview_row,
    score_table,
    site_table,
)
from fedmvp.experiments.results import NON_PRIVATE, Cell, Measurement, Results
from tests.experiments.synthetic import FACTS, Synthetic

EIGHT, ONE = Terms("record-distributed", 8.0), Terms("record-distributed", 1.0)
SCORES: Mapping[tuple[str, Terms], Sequence[float]] = {
    ("zero-shot-template", PLAIN): (0.40, 0.42, 0.44),
    ("zero-shot-attributes", PLAIN): (0.50, 0.52, 0.54),
    ("fedmvp-narrow", PLAIN): (0.70, 0.72, 0.74),
    ("fedmvp-narrow", EIGHT): (0.60, 0.63, 0.63),
    ("fedmvp-narrow", ONE): (0.49, 0.48, 0.50),
    ("linear-probe", PLAIN): (0.66, 0.68, 0.70),
    ("linear-probe", EIGHT): (0.61, 0.62, 0.66),
    ("linear-probe", ONE): (0.60, 0.60, 0.61),
    ("promptfl", PLAIN): (0.45, 0.55, 0.50),
    ("promptfl", EIGHT): (0.45, 0.55, 0.50),
}


def by_hand(scores: Mapping[tuple[str, Terms], Sequence[float]] = SCORES) -> Results:
    rows = []
    for (method, terms), values in scores.items():
        for seed, value in enumerate(values):
            cell = Cell(method, terms.mode, terms.epsilon, "", 4, seed)
            rows += [(cell, Measurement("parameters", 0 if method.startswith("zero") else 2048))]
            rows += [(cell, Measurement("score", value))]
    return Results(FACTS, tuple(rows))


def compared(results: Results) -> Comparison:
    (found,) = comparisons(results)
    return found


def row(table: Table | None, name: str) -> list[str]:
    """A row's texts after its name, spans repeated."""
    assert table is not None
    (found,) = [line for line in table.rows if line[0].text == name]
    return [item.text for item in found[1:] for _ in range(item.span)]


def bold(table: Table) -> dict[str, list[int]]:
    return {line[0].text: [place for place, item in enumerate(line) if item.look == "strong"] for line in table.rows}


def test_scores_are_means_with_half_of_students_interval() -> None:
    # 0.60, 0.63, 0.63: mean 0.62, s = 0.017321, t(2, 0.975) = 4.302653, half = t s / sqrt(3) = 0.043027
    table = score_table(compared(by_hand()))
    assert [f"{column.group} {column.name}".strip() for column in table.columns[3:]] == [
        "non-private", "record-distributed ε = 8", "record-distributed ε = 1",
    ]  # fmt: skip
    assert row(table, "fedmvp-narrow") == ["2,048", "3", "72.0 ± 5.0", "62.0 ± 4.3", "49.0 ± 2.5"]
    assert row(table, "promptfl") == ["2,048", "3", "50.0 ± 12.4", "50.0 ± 12.4", "–"]


def test_zero_shot_spans_all_columns_and_comes_first() -> None:
    table = score_table(compared(by_hand()))
    assert [line[0].text for line in table.rows][:2] == ["zero-shot-template", "zero-shot-attributes"]
    assert (table.rows[1][-1].text, table.rows[1][-1].span) == ("52.0 ± 5.0", 3)
    assert row(table, "zero-shot-attributes")[:2] == ["0", "3"]


def test_bold_is_the_best_and_what_is_not_shown_to_be_worse() -> None:
    # At 8 the probe leads by 0.01, -0.01, 0.03: the interval 0.01 +- 0.0497 holds 0. At 1 it leads by 0.1133 +- 0.014.
    comparison = compared(by_hand())
    names = {terms: {entry.method for entry in leaders(comparison, terms)} for terms in comparison.columns}
    assert names == {PLAIN: {"fedmvp-narrow"}, EIGHT: {"fedmvp-narrow", "linear-probe"}, ONE: {"linear-probe"}}
    found = bold(score_table(comparison))
    assert (found["fedmvp-narrow"], found["linear-probe"]) == ([3, 4], [4, 5])
    assert found["promptfl"] == found["zero-shot-attributes"] == []


def test_the_share_of_the_gain_that_is_kept() -> None:
    # fedmvp: (0.62 - 0.52) / (0.72 - 0.52) = 50 %, (0.49 - 0.52) / 0.20 = -15 %; probe: 0.11 / 0.16 and 0.0833 / 0.16
    table = kept_table(compared(by_hand()))
    assert row(table, "fedmvp-narrow") == ["+20.0 ± 0.0 ▲", "50 %", "−15 %"]
    assert row(table, "linear-probe") == ["+16.0 ± 0.0 ▲", "69 %", "52 %"]
    assert row(table, "promptfl")[1:] == ["no gain", "–"]
    assert table is not None
    assert not any("†" in note for note in table.notes)


def test_a_share_of_a_gain_that_is_within_its_interval_is_marked() -> None:
    scores = {**SCORES, ("promptfl", PLAIN): (0.45, 0.66, 0.51)}
    comparison = compared(by_hand(scores))
    table = kept_table(comparison)
    assert row(table, "promptfl")[1] == "−100 %†"
    assert table is not None
    assert any(note.startswith("†") for note in table.notes)
    found = kept(comparison, Entry("fedmvp-narrow"), EIGHT)
    assert found is not None
    assert (found.share, found.shown) == (pytest.approx(0.5), True)


def test_differences_are_paired_by_seed() -> None:
    # fedmvp less probe at 8: -0.01, 0.01, -0.03: mean -0.01, s = 0.02, half = 4.302653 * 0.02 / sqrt(3) = 0.04968
    table = difference_table(compared(by_hand()))
    assert row(table, "linear-probe") == ["+4.0 ± 0.0 ▲", "−1.0 ± 5.0", "−11.3 ± 1.4 ▼"]
    assert row(table, "zero-shot-attributes") == ["+20.0 ± 0.0 ▲", "+10.0 ± 2.5 ▲", "−3.0 ± 4.3"]
    assert table is not None
    assert table.rows[0][0].text == "zero-shot-attributes"


def test_only_seeds_that_both_have_are_paired_and_fewer_seeds_are_counted() -> None:
    scores = {**SCORES, ("linear-probe", EIGHT): (0.61, 0.62)}
    comparison = compared(by_hand(scores))
    assert row(difference_table(comparison), "linear-probe")[1] == "0.0 ± 12.7"  # -0.01, 0.01: t(1, 0.975) = 12.706
    assert row(score_table(comparison), "linear-probe")[1:4] == ["2–3", "68.0 ± 5.0", "61.5 ± 6.4 (n = 2)"]


def test_fedmvps_entry_is_chosen_without_privacy_whatever_private_results_say() -> None:
    scores = {
        **SCORES,
        ("fedmvp-lora", PLAIN): (0.69, 0.71, 0.73),
        ("fedmvp-lora", EIGHT): (0.68, 0.70, 0.72),
        ("fedmvp-full", EIGHT): (0.90, 0.90, 0.90),
    }
    comparison = compared(by_hand(scores))
    assert chosen(comparison) == Entry("fedmvp-narrow")
    assert best_other(comparison) == Entry("promptfl")
    assert probe(comparison) == Entry("linear-probe")
    swapped = {**scores, ("fedmvp-lora", PLAIN): (0.71, 0.73, 0.75)}
    assert chosen(compared(by_hand(swapped))) == Entry("fedmvp-lora")


def test_answers_claim_no_more_than_their_intervals() -> None:
    sentences = in_short(compared(by_hand()))
    assert sentences[:3] == [
        "Without privacy fedmvp-narrow is 20.0 ± 0.0 points above zero-shot-attributes.",
        "In record-distributed it is 10.0 ± 2.5 points above zero-shot-attributes at ε = 8 and keeps 50 % of that "
        "gain; not told apart from zero-shot-attributes (−3.0 ± 4.3 points) at ε = 1 and keeps nothing of that gain.",
        "fedmvp-narrow is 4.0 ± 0.0 points above linear-probe without privacy; not told apart from linear-probe "
        "(−1.0 ± 5.0 points) at ε = 8; 11.3 ± 1.4 points below linear-probe at ε = 1.",
    ]


def test_one_seed_has_no_intervals_and_only_the_largest_number_in_bold() -> None:
    comparison = compared(by_hand({place: values[:1] for place, values in SCORES.items()}))
    table = score_table(comparison)
    assert row(table, "fedmvp-narrow") == ["2,048", "1", "70.0", "60.0", "49.0"]
    assert (bold(table)["fedmvp-narrow"], bold(table)["linear-probe"]) == ([3], [4, 5])
    assert row(difference_table(comparison), "linear-probe") == ["+4.0", "−1.0", "−11.0"]
    assert row(kept_table(comparison), "fedmvp-narrow") == ["+20.0", "50 %†", "−5 %†"]
    assert "one seed, no interval" in in_short(comparison)[0]
    assert any("One seed" in note for note in table.notes)


def test_without_zero_shot_or_without_fedmvp_the_question_is_left_out() -> None:
    no_floor = compared(by_hand({key: value for key, value in SCORES.items() if key[0] != "zero-shot-attributes"}))
    assert kept_table(no_floor) is None
    assert row(difference_table(no_floor), "linear-probe")[0] == "+4.0 ± 0.0 ▲"
    no_ours = compared(by_hand({key: value for key, value in SCORES.items() if key[0] != "fedmvp-narrow"}))
    assert difference_table(no_ours) is None
    assert in_short(no_ours) == []


def test_no_mode_is_said_to_be_private_in_a_study_without_noise() -> None:
    comparison = compared(by_hand({key: value for key, value in SCORES.items() if key[1] == PLAIN}))
    assert (comparison.private, kept_table(comparison)) == ((), None)
    assert row(score_table(comparison), "fedmvp-narrow") == ["2,048", "3", "72.0 ± 5.0"]


def test_costs_are_a_site_and_round_and_epsilon_is_that_of_the_largest_site() -> None:
    comparison = compared(Synthetic(rounds=12).results())
    table = cost_table(comparison)
    lines = {(line[0].text, line[1].text): [item.text for item in line[2:]] for line in table.rows}
    # (4 * 2048 + 2000) bytes up and (8 * 2048 + 3000) down, a site and round; 0.999 of each target is spent
    assert lines["promptfl", "record-local"] == [
        "2,048", "10.2 kB", "19.4 kB", "12", "42.0 s", "7.992", "3.996", "1.998", "0.999",
    ]  # fmt: skip
    assert lines["promptfl", NON_PRIVATE][5:] == ["", "", "", ""]
    assert largest_sum_error(comparison) == 2.0**-20


def test_bytes_of_a_whole_cell_are_shared_by_its_sites() -> None:
    cell = Cell("promptfl", NON_PRIVATE, None, "", 4, 0)
    measured = [Measurement("score", 0.5), Measurement("score", 0.4, round=10), Measurement("bytes-up", 8e6)]
    cost = run_cost(
        compared(Results(FACTS, tuple((cell, found) for found in measured))), Entry("promptfl"), NON_PRIVATE
    )
    assert cost is not None
    assert (cost.up, cost.up_by_round, cost.down_by_round, cost.seconds) == (2e6, 2e5, None, None)


def test_an_epsilon_above_its_target_is_an_error_in_its_place() -> None:
    results = Synthetic(modes=("record-local",), epsilons=(8.0, 1.0), seeds=(0,)).results()
    assert overspent_cells(results) == []
    rows = [
        (
            cell,
            replace(found, value=8.001)
            if (cell.method, cell.epsilon, found.metric) == ("promptfl", 8, "epsilon")
            else found,
        )
        for cell, found in results.rows
    ]
    raised = Results(FACTS, tuple(rows))
    ((cell, spent),) = overspent_cells(raised)
    assert (cell.name, spent) == ("promptfl-record-local-eps8-3sites-seed0", 8.001)
    alarms = [item.text for line in cost_table(compared(raised)).rows for item in line if item.look == "alarm"]
    assert alarms == ["8.001 > 8: ABOVE TARGET"]
    assert overview_row(as_study(raised))[1].text == "ERROR"
    assert overview_row(as_study(results))[1].text == "none"


def test_sizes_of_a_method_are_rows_and_one_of_them_stands_for_it_in_curves() -> None:
    trained = {("fedmvp-narrow", "width 8"): (0.70, 9000), ("fedmvp-narrow", "width 32"): (0.80, 36000)}
    comparison = compared(Synthetic(trained=trained, modes=("record-local",), epsilons=(8.0,)).results())
    assert [line[0].text for line in score_table(comparison).rows][2:] == [
        "fedmvp-narrow, width 8",
        "fedmvp-narrow, width 32",
    ]
    assert one_size_each(comparison) == (Entry("fedmvp-narrow", "width 32"),)


def test_numbers_of_sites_are_compared_apart_and_zero_shot_is_in_each() -> None:
    few, many = comparisons(Synthetic(sites=(3, 12), seeds=(0, 1)).results())
    assert (few.n_sites, many.n_sites) == (3, 12)
    assert [entry.method for entry in few.baselines] == [entry.method for entry in many.baselines]
    assert {cell.sites for cell in many.cells if cell.method == "promptfl"} == {12}
    assert in_short(many)[0].startswith("With 12 sites: ")


def test_groups_are_in_the_order_of_the_setting_and_sites_apart() -> None:
    groups = {"new": -0.1, "art": 0.0, "photo": 0.1, "base": 0.0, "local": 0.1, "sketch": 0.0}
    comparison = compared(Synthetic(groups=groups, modes=("record-local",), epsilons=(8.0,)).results())
    assert comparison.groups() == (["local", "base", "new", "sketch"], ["art", "photo"])
    table = group_table(comparison, ["local", "new"], "By group", [PLAIN, Terms("record-local", 8.0)])
    assert row(table, "zero-shot-attributes") == ["74.0 ± 2.5", "74.0 ± 2.5", "54.0 ± 2.5", "54.0 ± 2.5"]
    sites = site_table(comparison, ["art", "photo"], [PLAIN])
    assert row(sites, "zero-shot-attributes") == ["69.0", "64.0 ± 2.5 (art)"]


def test_rounds_begin_with_the_start_and_are_over_seeds() -> None:
    comparison = compared(Synthetic(rounds=3).results())
    curve = comparison.rounds(Entry("linear-probe"), PLAIN)
    assert (list(curve), curve[0].values) == ([0, 1, 2, 3], (0.1, 0.1, 0.1))
    assert comparison.rounds(Entry("zero-shot-template"), PLAIN) == {}


def test_a_markdown_table_repeats_what_spans_and_escapes_what_would_be_markup() -> None:
    lines = table_lines(score_table(compared(by_hand())))
    assert lines[2].startswith("| method | parameters | seeds | non-private | record-distributed ε = 8 |")
    assert lines[5] == "| zero-shot-attributes | 0 | 3 | 52.0 ± 5.0 | 52.0 ± 5.0 | 52.0 ± 5.0 |"
    assert lines[6] == "| fedmvp-narrow | 2,048 | 3 | **72.0 ± 5.0** | **62.0 ± 4.3** | 49.0 ± 2.5 |"
    assert len({line.count("|") for line in lines[2:9]}) == 1
