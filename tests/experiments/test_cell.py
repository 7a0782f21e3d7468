from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedmvp.errors import ExitCode, UserError
from fedmvp.experiments.cell import Bench, Prepared
from fedmvp.experiments.cell_policy import cell_policy
from fedmvp.experiments.feature_table import labels_of
from fedmvp.experiments.federation import PlainSums, run_federation
from fedmvp.experiments.results import Cell, Measurement
from fedmvp.experiments.study import Study
from fedmvp.experiments.sweep import CellPlan, plan_cells
from fedmvp.methods.classes import Wording
from fedmvp.model.parameters import get_vector
from fedmvp.study.policy import StudyPolicy
from privacy.errors import BudgetExceeded, LedgerWriteFailed
from privacy.ledger import Ledger
from secure_agg.messages import PublishedSum
from tests.experiments.tiny_study import ATTRIBUTES, COLOURS, UNREPEATABLE, make_study, study_values, write_images


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("squares")
    write_images(made)
    return made


def bench_of(study: Study, folder: Path) -> Bench:
    return Bench(study, folder, folder / "scratch")


def plans_of(study: Study, bench: Bench) -> dict[tuple[str, str], CellPlan]:
    return {(plan.cell.method, plan.cell.mode): plan for plan in plan_cells(study, bench.material.site_counts)}


def final(rows: list[Measurement]) -> dict[tuple[str, str], float]:
    return {(row.metric, row.group): row.value for row in rows if row.round is None and row.metric not in UNREPEATABLE}


MODES = ["non-private", "record-local", "record-distributed", "silo-distributed"]


@pytest.mark.parametrize("mode", MODES)
def test_a_cell_through_the_secure_sum_ends_where_plain_sums_end(mode: str, folder: Path) -> None:
    privacy = {"modes": [mode], "epsilons": [50.0]}
    study = make_study(folder, privacy=privacy, training={"learning_rate": 0.25})
    bench = bench_of(study, folder)
    plan = plans_of(study, bench)["prompts", mode]
    secure = bench.run(plan)
    bench.study = make_study(folder, privacy={**privacy, "secure_sum": False}, training={"learning_rate": 0.25})
    plain = bench.run(plan)
    assert final(secure) == pytest.approx(final(plain), abs=1e-6 if mode != "non-private" else 0.05)
    assert final(secure)["sum-error", ""] == 0
    sent = [row.value for row in secure if row.metric == "bytes-up"]
    assert len(sent) == 3
    assert min(sent) > 2 * 4 * final(secure)["parameters", ""]  # two rounds of four bytes a parameter


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(folder: Path) -> None:
    study = make_study(folder, study={"seeds": [0, 1]}, privacy={"modes": ["record-local"], "epsilons": [1.0]})
    bench = bench_of(study, folder)
    first, other = (plan for plan in plan_cells(study, bench.material.site_counts) if plan.trains)
    again = bench_of(study, folder).run(first)
    once = bench.run(first)
    strip = [row for row in once if row.metric not in UNREPEATABLE]
    assert strip == [row for row in again if row.metric not in UNREPEATABLE]
    assert final(bench.run(other)) != final(once)


def test_every_site_is_charged_no_more_than_the_cells_epsilon(folder: Path) -> None:
    study = make_study(folder, privacy={"modes": ["record-local", "record-distributed"], "epsilons": [2.0]})
    bench = bench_of(study, folder)
    for mode in ("record-local", "record-distributed"):
        rows = bench.run(plans_of(study, bench)["prompts", mode])
        spent = [row.value for row in rows if row.metric == "epsilon"]
        assert len(spent) == 3
        assert all(1.9 < epsilon <= 2.0 for epsilon in spent)


def test_before_the_first_round_the_prompts_score_what_zero_shot_scores(folder: Path) -> None:
    study = make_study(folder)
    bench = bench_of(study, folder)
    zero_shot = final(bench.run(plans_of(study, bench)["zero-shot-attributes", "non-private"]))
    rows = bench.run(plans_of(study, bench)["prompts", "non-private"])
    start = next(row.value for row in rows if row.metric == "score" and row.round == 0)
    assert start == zero_shot["score", ""]


@pytest.mark.parametrize(
    "changes",
    [
        {
            "setting": {"kind": "base-to-new", "base": 2, "sources": [], "targets": []},
            "sites": {"rule": "dirichlet", "counts": [3], "alpha": 5.0, "minimum": 5},
        },
        {"setting": {"kind": "personalised", "sources": [], "targets": []}},
    ],
)
def test_the_other_settings_report_what_they_promise(changes: dict[str, Any], folder: Path) -> None:
    study = make_study(folder, **changes, methods=[{"name": "linear-probe"}], privacy={"modes": ["non-private"]})
    bench = bench_of(study, folder)
    (plan,) = plan_cells(study, bench.material.site_counts)
    values = final(bench.run(plan))
    groups = {group for metric, group in values if metric == "accuracy"}
    if study.setting.kind == "base-to-new":
        assert {"local", "base", "new"} < groups
        parts = [values["accuracy", group] for group in ("local", "base", "new")]
        assert values["score", ""] == pytest.approx(3 / sum(1 / part for part in parts))
    else:
        own = [values["accuracy", part.name] for part in bench.deal(4, 0).sites]
        assert values["score", ""] == pytest.approx(sum(own) / len(own))


@pytest.mark.parametrize("trains_over", ["all", "own"])
def test_a_site_trains_among_the_classes_that_the_study_says(trains_over: str, folder: Path) -> None:
    data = _six_classes(folder, "six")
    names = data["classes"]
    study = make_study(
        folder,
        data=data,
        setting={"kind": "personalised", "sources": [], "targets": []},
        sites={"rule": "class-blocks", "counts": [3], "minimum": 5, "trains_over": trains_over},
        methods=[{"name": "linear-probe"}],
        privacy={"modes": ["non-private"]},
    )
    bench = bench_of(study, folder)
    (plan,) = plan_cells(study, bench.material.site_counts)
    deal = bench.deal(3, 0)
    prepared = Prepared(plan.method, deal, bench.tower, bench.table)
    for site, part in enumerate(deal.sites):
        expected = tuple(names[2 * site : 2 * site + 2]) if trains_over == "own" else tuple(names)
        assert part.candidates.names == expected
        told = [part.candidates.names[record.labels[0]] for record in part.images.records]
        assert all(
            record.path in _images_of(name, folder) for record, name in zip(part.images.records, told, strict=True)
        )
        model = prepared.models[site]
        loss = model.loss_per_sample(prepared.features[site].tensors, labels_of(part.images), prepared.objective)
        (pulled,) = torch.autograd.grad(loss.sum(), [model.get_parameter("probe.layer.weight")])
        assert {name for name, row in zip(names, pulled, strict=True) if row.any()} == set(expected)
    assert final(bench.run(plan))["parameters", ""] == get_vector(prepared.models[0]).size


def test_data_sets_that_are_trained_together_are_dealt_and_measured_apart(folder: Path) -> None:
    template = {"template": "a drawing of a {name} with {attribute}", "plain_template": "a drawing of a {name}"}
    first = _six_classes(folder, "six")
    second = _six_classes(folder, "more", styles=("noisy", "framed"), most=5)
    study = make_study(
        folder,
        data=first,
        joint=[{**second, **template, "base": 4}],
        setting={"kind": "base-to-new", "base": 4, "sources": [], "targets": []},
        sites={"rule": "class-blocks", "classes_per_site": 2, "minimum": 5, "trains_over": "own"},
        methods=[
            {"name": "zero-shot-template"},
            {
                "name": "prompts",
                "method": "fedmvp-probe",
                "options": {"n_prompts": 2, "n_heads": 2, "bottleneck_width": 2},
            },
        ],
        privacy={"modes": ["non-private"]},
    )
    again = study.joint[0].model_copy(update={"folder": "six.csv", "classes": tuple(first["classes"])})
    twice = study.model_copy(update={"joint": (again.model_copy(update={"attributes": first["attributes"]}),)})
    with pytest.raises(UserError, match="have one name"):
        bench_of(twice, folder)
    bench = bench_of(study, folder)
    assert bench.material.site_counts == (4,)
    deal = bench.deal(4, 0)
    assert [part.name for part in deal.sites] == [
        "six-csv-site-1",
        "six-csv-site-2",
        "more-csv-site-1",
        "more-csv-site-2",
    ]
    own = [part.candidates for part in deal.sites]
    assert own[2].names == ("more.csv: red noisy", "more.csv: green noisy")
    assert own[0].sentences(Wording.TEMPLATE)[0] == ("a picture of a red plain",)
    assert own[2].sentences(Wording.TEMPLATE)[0] == ("a drawing of a red noisy",)
    assert own[2].sentences(Wording.ATTRIBUTES)[0] == ("a drawing of a red noisy with red noisy squares",)
    assert deal.trained.names == tuple(name for candidates in own for name in candidates.names)
    for part in (*deal.sites, *deal.tests):
        for record in part.images.records:
            said = part.candidates.names[record.labels[0]]
            assert said.partition(": ")[2] == f"{record.path.parent.name} {record.path.parent.parent.name}"
    named = {test.group: test.candidates.names for test in deal.tests if not test.site}
    assert named["more.csv new"] == ("more.csv: red framed",)
    assert len(named["six.csv seen and unseen"]) == 6
    for plan in plan_cells(study, bench.material.site_counts):
        values = final(bench.run(plan))
        for part in ("base", "new"):
            both = [values["accuracy", f"{name}.csv {part}"] for name in ("six", "more")]
            assert values["accuracy", part] == pytest.approx(sum(both) / 2)
        own = [values["accuracy", part.name] for part in deal.sites]
        assert values["accuracy", "local"] == pytest.approx((sum(own[:2]) / 2 + sum(own[2:]) / 2) / 2)
        parts = [values["accuracy", part] for part in ("local", "base", "new")]
        assert values["score", ""] == pytest.approx(3 / sum(1 / part for part in parts) if all(parts) else 0.0)
        if plan.trains:
            assert values["sum-error", ""] == 0
            assert (
                values["parameters", ""]
                == get_vector(Prepared(plan.method, deal, bench.tower, bench.table).models[2]).size
            )


def _six_classes(
    folder: Path, name: str, *, styles: tuple[str, ...] = ("plain", "dark"), most: int = 6
) -> dict[str, Any]:
    """A table of squares whose classes are colour and style, and how a study names it."""
    names = [f"{colour} {style}" for style in styles for colour in COLOURS][:most]
    rows = ["image,label", *(f"{path},{name}" for name in names for path in _images_of(name, folder))]
    (folder / f"{name}.csv").write_text("\n".join(rows))
    described = "".join(f'\n[[classes]]\nname = "{name}"\nattributes = ["{name} squares"]\n' for name in names)
    (folder / f"{name}.toml").write_text(ATTRIBUTES + described)
    return {
        "folder": f"{name}.csv",
        "layout": "manifest",
        "classes": names,
        "attributes": str(folder / f"{name}.toml"),
    }


def _images_of(name: str, folder: Path) -> list[Path]:
    colour, style = name.split()
    return sorted((folder / "squares" / style / colour).glob("*.png"))


def test_several_labels_an_image_are_measured_by_average_precision(folder: Path) -> None:
    rows = ["image,labels,site"]
    for at, path in enumerate(sorted((folder / "squares").rglob("*.png"))):
        labels = path.parent.name if at % 4 else "red|blue"
        rows.append(f"{path},{labels},s{at % 3}")
    (folder / "labels.csv").write_text("\n".join(rows))
    study = make_study(
        folder,
        data={"folder": "labels.csv", "layout": "manifest"},
        setting={"kind": "personalised", "sources": [], "targets": []},
        sites={"rule": "site"},
    )
    bench = bench_of(study, folder)
    values = final(bench.run(plans_of(study, bench)["prompts", "record-local"]))
    assert 0 < values["score", ""] <= 1
    assert {metric for metric, _ in values} >= {"average-precision", "score", "epsilon"}


def test_a_sum_that_is_not_the_sites_sum_is_seen() -> None:
    vectors = {1: np.array([1, 2], dtype=np.uint32), 2: np.array([3, 2**32 - 1], dtype=np.uint32)}

    def error(total: list[int]) -> float:
        sums = PlainSums()
        for site, vector in vectors.items():
            sums.keep((1, 1), site, vector)
        sums.compare((1, 1), PublishedSum(np.array(total, dtype=np.uint32), (1, 2), bytes(32)))
        return sums.largest_error

    assert error([4, 1]) == 0
    assert error([4, 2**32 - 2]) == 3


def test_a_cell_is_named_by_all_that_it_differs_in() -> None:
    cell = Cell("prompts", "record-local", 0.5, "bottleneck_width 4", 3, 1)
    assert cell.name == "prompts-bottleneck_width4-record-local-eps0.5-3sites-seed1"
    others = [replace(cell, epsilon=5.0), replace(cell, size=""), replace(cell, sites=4), replace(cell, seed=2)]
    assert len({item.name for item in (cell, *others)}) == 5


def test_other_data_sets_are_measured_among_their_own_classes(folder: Path) -> None:
    others = [
        {
            **study_values(folder)["data"],
            "folder": "squares/plain",
            "layout": "class-folders",
            "classes": ["blue", "red"],
        }
    ]
    shown = folder / "two"
    for name in ("blue", "red"):
        (shown / name).mkdir(parents=True, exist_ok=True)
        for path in (folder / "squares/framed" / name).iterdir():
            (shown / name / path.name).write_bytes(path.read_bytes())
    others[0]["folder"] = "two"
    study = make_study(
        folder,
        setting={"kind": "cross-dataset", "sources": [], "targets": []},
        sites={"rule": "dirichlet", "counts": [3], "alpha": 5.0},
        others=others,
        privacy={"modes": ["non-private"]},
    )
    bench = bench_of(study, folder)
    values = final(bench.run(plans_of(study, bench)["prompts", "non-private"]))
    assert values["score", ""] == values["accuracy", "two"]
    assert values["score", ""] > 0.4  # two classes, not four


def test_where_patients_are_protected_the_public_denominator_counts_patients(folder: Path) -> None:
    rows = ["image,label,site,patient"]
    for at, path in enumerate(sorted((folder / "squares").rglob("*.png"))):
        rows.append(f"{path},{path.parent.name},s{at % 3},p{at // 6}-{at % 3}")
    (folder / "patients.csv").write_text("\n".join(rows))
    study = make_study(
        folder,
        data={"folder": "patients.csv", "layout": "manifest"},
        setting={"kind": "personalised", "sources": [], "targets": []},
        sites={"rule": "site"},
        privacy={"modes": ["record-local"], "unit": "patient"},
    )
    bench = bench_of(study, folder)
    plan = plans_of(study, bench)["prompts", "record-local"]
    deal = bench.deal(plan.cell.sites, plan.cell.seed)
    patients = [len({record.patient for record in part.images.records}) for part in deal.sites]
    policy = cell_policy(plan, bench.terms(deal))
    assert policy.privacy.unit == "patient"
    assert policy.privacy.expected_batch_size == pytest.approx(0.5 * sum(patients) / 3, abs=0.1)
    assert final(bench.run(plan))["epsilon", "s0"] <= 8.0


class Failing:
    """A server's model that cannot be measured, at its start or after a round."""

    def __init__(self, after: int) -> None:
        self._left = after

    def initial_parameters(self) -> Any:
        return np.zeros(4, dtype=np.float32)

    def score(self, parameters: Any) -> None:
        if self._left == 0:
            raise UserError("the disk is full", remedy="make room")
        self._left -= 1


class Still:
    """A site that changes nothing."""

    dimension = 4

    def initial_parameters(self) -> Any:
        return np.zeros(4, dtype=np.float32)

    def train_round(self, parameters: Any) -> Any:
        return np.zeros(4)

    def train_on_grid(self, parameters: Any, honest_survivors: int) -> Any:
        raise AssertionError


def policy_of(folder: Path) -> StudyPolicy:
    study = make_study(folder, privacy={"modes": ["non-private"]})
    bench = bench_of(study, folder)
    plan = plans_of(study, bench)["prompts", "non-private"]
    return cell_policy(plan, bench.terms(bench.deal(3, 0)))


def test_a_budget_that_is_spent_too_early_is_told_as_the_cells(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study(folder)
    bench = bench_of(study, folder)
    plan = next(plan for plan in plans_of(study, bench).values() if plan.trains)

    def run_into(error: Exception) -> None:
        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr(bench, "federate", fail)
        bench.run(plan)

    with pytest.raises(UserError, match=f"{plan.cell.name}: the next release") as raised:
        run_into(BudgetExceeded(9.0, 8.0, "terms"))
    assert raised.value.exit_code is ExitCode.BUDGET
    with pytest.raises(LedgerWriteFailed, match="make room"):  # with its own remedy, and no word of the noise
        run_into(LedgerWriteFailed("no space left", remedy="make room"))


@pytest.mark.parametrize("after", [0, 1])
def test_a_servers_own_failure_is_what_is_told(after: int, folder: Path, tmp_path: Path) -> None:
    sources = {f"site-{number}": lambda _ledger: Still() for number in range(3)}
    with pytest.raises(UserError, match="the disk is full"):
        run_federation(tmp_path / "study", policy_of(folder), sources, Failing(after))


def test_a_sites_own_failure_is_what_is_told_and_nobody_waits_for_it(folder: Path, tmp_path: Path) -> None:
    def broken(_ledger: Ledger) -> Still:
        raise UserError("no images here", remedy="bring some")

    sources: Any = {"site-0": broken, "site-1": lambda _ledger: Still(), "site-2": lambda _ledger: Still()}
    with pytest.raises(UserError, match="no images here"):
        run_federation(tmp_path / "study", policy_of(folder), sources, Failing(-1))
