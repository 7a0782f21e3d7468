"""The tables of a report, as text in columns; how they are printed is left to page and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedmvp.evaluation.intervals import OverSeeds
from fedmvp.experiments.report import wording
from fedmvp.experiments.report.costs import overspent, overspent_cells, run_cost, spent, without_epsilon
from fedmvp.experiments.report.questions import FLOOR, PROBE, beyond, chosen, floor, kept, leaders, probe
from fedmvp.experiments.report.reading import Study
from fedmvp.experiments.report.summary import PLAIN, Comparison, Entry, Terms
from fedmvp.experiments.results import NON_PRIVATE


@dataclass(frozen=True)
class Item:
    """One place of a table.

    Attributes:
        text: what it says, plain text.
        span: how many columns it fills; it holds for each of them.
        look: "", "strong", "alarm", "muted", "above" or "below".
    """

    text: str
    span: int = 1
    look: str = ""


@dataclass(frozen=True)
class Column:
    """A column's heading; neighbours with one group share a heading above their own."""

    name: str
    group: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: its caption.
        columns: the first one names the rows.
        rows: as many items, spans counted, as columns.
        notes: sentences below it.
        text_columns: how many columns from the left are text; numbers follow.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Item, ...], ...]
    notes: tuple[str, ...] = ()
    text_columns: int = 1


OVERVIEW = (
    Column("study"),
    Column("errors"),
    Column(FLOOR),
    *(Column(name, "FedMVP") for name in ("entry", "non-private", "loosest ε", "strictest ε")),
    *(Column(name, PROBE) for name in ("non-private", "loosest ε", "strictest ε")),
)
"""Of the index of several studies."""


def overview_row(study: Study) -> tuple[Item, ...]:
    """The study in a row of the index, at its largest number of sites and in the mode that it leads with."""
    comparison = study.comparisons[-1]
    ours, start, other = chosen(comparison), floor(comparison), probe(comparison)
    ends = [PLAIN, *comparison.headline[:1], *comparison.headline[-1:]]

    def scores(entry: Entry | None) -> list[Item]:
        found = [
            Item(wording.with_interval(None if entry is None else comparison.score(entry, terms))) for terms in ends
        ]
        return [*found, *[Item(wording.MISSING)] * (3 - len(found))]

    errors = bool(overspent_cells(study.results)) or any(without_epsilon(found) for found in study.comparisons)
    return (
        Item(study.title),
        Item("ERROR" if errors else "none", look="alarm" if errors else "muted"),
        Item(wording.with_interval(None if start is None else comparison.score(start, PLAIN))),
        Item(ours.label if ours else wording.MISSING),
        *scores(ours),
        *scores(other),
    )


def overview_note(study: Study) -> str:
    """What the epsilons of its row are."""
    comparison = study.comparisons[-1]
    ends = dict.fromkeys([*comparison.headline[:1], *comparison.headline[-1:]])
    words = " and ".join(terms.label for terms in ends) or "no private cell"
    return f"{study.title}: {words}; {wording.full_terms(comparison.facts, [place.mode for place in ends])}."


def score_table(comparison: Comparison) -> Table:
    """Methods by privacy: the score, its interval, and which methods lead."""
    columns = comparison.columns
    ahead = {terms: leaders(comparison, terms) for terms in columns}
    most = len(comparison.seeds)

    def row(entry: Entry) -> tuple[Item, ...]:
        counts = sorted({len(comparison.by_seed(entry, terms)) for terms in columns} - {0})
        parameters = comparison.parameters(entry)
        head = (
            Item(entry.label),
            Item(wording.MISSING if parameters is None else f"{parameters:,}"),
            Item("–".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))),
        )
        if not comparison.trains(entry):
            return *head, Item(wording.with_interval(comparison.score(entry, PLAIN)), len(columns), "muted")
        return *head, *(place(entry, terms) for terms in columns)

    def place(entry: Entry, terms: Terms) -> Item:
        score = comparison.score(entry, terms)
        few = f" (n = {len(score.values)})" if score is not None and len(score.values) < most else ""
        return Item(wording.with_interval(score) + few, look="strong" if entry in ahead[terms] else "")

    bold = (
        "Bold: the best trained method of a column and those not shown to be worse (the 95 % interval of the paired "
        "difference by seed holds 0)."
        if most > 1
        else "One seed: there is no interval, and bold is the largest number of a column and nothing more."
    )
    return Table(
        wording.first_upper(f"{comparison.facts.get('score') or 'score'}, in percent"),
        (Column("method"), Column("parameters"), Column("seeds"), *_headings(columns)),
        tuple(row(entry) for entry in comparison.entries),
        (
            f"Mean ± half of the 95 % interval over {most} seeds (Student's t)."
            if most > 1
            else "The value of one seed.",
            bold,
            "What trains nothing is the same in every column.",
            *_epsilon_note(comparison),
        ),
    )


def kept_table(comparison: Comparison) -> Table | None:
    """How much of the gain over zero-shot privacy leaves; None without zero-shot or without private cells."""
    start = floor(comparison)
    if start is None or not comparison.private:
        return None
    rows, doubtful = [], False
    for entry in comparison.trained:
        items = [Item(entry.label), _gain_item(comparison.gain((entry, PLAIN), (start, PLAIN)))]
        for terms in comparison.private:
            found = kept(comparison, entry, terms)
            if found is None:
                items.append(Item(wording.MISSING, look="muted"))
            elif found.share is None:
                items.append(Item("no gain", look="muted"))
            else:
                doubtful = doubtful or not found.shown
                mark = "" if found.shown else "†"
                share = f"{100 * found.share:.0f} %".replace("-", "−")
                items.append(Item(share + mark, look="" if found.shown else "muted"))
        rows.append(tuple(items))
    notes = [
        f"(private − {FLOOR}) / (non-private − {FLOOR}), of means over the seeds that all three have. Below 0 % "
        "is worse than not training; “no gain” where training without privacy does not gain."
    ]
    if doubtful:
        notes.append(
            "† The gain without privacy is not beyond its interval over seeds, or has none: a share of it says little."
        )
    columns = (Column("method"), Column("gain, points", NON_PRIVATE), *_headings(comparison.private))
    return Table(
        f"Share of the gain over {FLOOR} that is kept", columns, tuple(rows), (*notes, *_epsilon_note(comparison))
    )


def difference_table(comparison: Comparison) -> Table | None:
    """FedMVP less every other method, by seed; None where no entry of FedMVP was run without privacy."""
    ours = chosen(comparison)
    if ours is None:
        return None
    start = floor(comparison)
    others = [entry for entry in comparison.entries if entry not in (ours, start)]
    rows = [
        (
            Item(other.label),
            *(_gain_item(comparison.gain((ours, terms), (other, terms))) for terms in comparison.columns),
        )
        for other in ([start] if start else []) + others
    ]
    return Table(
        f"{ours.label} less each other method, in points",
        (Column("less"), *_headings(comparison.columns)),
        tuple(rows),
        (
            f"{ours.label} stands for FedMVP: of its entries the best one without privacy. It is not chosen by private "
            "results, which no ε would cover.",
            "Paired by seed, ± half of the 95 % interval; ▲ and ▼ where the interval leaves 0 out.",
            *_epsilon_note(comparison),
        ),
    )


def cost_table(comparison: Comparison) -> Table:
    """What a run costs a site, and what it spent of its budget."""
    targets = sorted({terms.epsilon for terms in comparison.private if terms.epsilon is not None}, reverse=True)
    rows = []
    for entry in comparison.trained:
        for mode in (NON_PRIVATE, *comparison.modes):
            cost = run_cost(comparison, entry, mode)
            if cost is None:
                continue
            items = [Item(entry.label), Item(mode)]
            items += [
                Item(wording.MISSING if value is None else form(value))
                for value, form in (
                    (comparison.parameters(entry), lambda value: f"{value:,}"),
                    (cost.up_by_round, wording.size),
                    (cost.down_by_round, wording.size),
                    (cost.rounds, str),
                    (cost.seconds, wording.seconds),
                )
            ]
            for target in targets:
                terms = Terms(mode, target)
                value = spent(comparison, entry, terms)
                if value is None:
                    items.append(Item("" if mode == NON_PRIVATE else wording.MISSING, look="muted"))
                elif overspent(value, target):
                    items.append(Item(f"{value:.4g} > {target:g}: ABOVE TARGET", look="alarm"))
                else:
                    items.append(Item(f"{value:.4g}"))
            rows.append(tuple(items))
    return Table(
        "What a run costs",
        (
            Column("method"),
            Column("mode"),
            Column("parameters"),
            Column("up", "a site and round"),
            Column("down", "a site and round"),
            Column("rounds"),
            Column("time of a run"),
            *(Column(f"target {target:g}", "ε spent, largest site and seed") for target in targets),
        ),
        tuple(rows),
        ("Bytes and times are means over epsilons and seeds.", *_epsilon_note(comparison)),
        text_columns=2,
    )


def group_table(comparison: Comparison, groups: Sequence[str], title: str, places: Sequence[Terms]) -> Table:
    """Methods by group (local, base, new, a target, a site)."""
    columns = [Column(terms.label, group) for group in groups for terms in places]
    rows = []
    for entry in comparison.entries:
        items = [Item(entry.label)]
        for group in groups:
            if comparison.trains(entry):
                items += [Item(wording.with_interval(comparison.share(entry, terms, group))) for terms in places]
            else:
                score = comparison.share(entry, PLAIN, group)
                items.append(Item(wording.with_interval(score), len(places), "muted"))
        rows.append(tuple(items))
    return Table(title, (Column("method"), *columns), tuple(rows), _epsilon_note(comparison))


def site_table(comparison: Comparison, sites: Sequence[str], places: Sequence[Terms]) -> Table:
    """Methods by what sites have on average, and what the worst of them has."""
    rows = []
    for entry in comparison.entries:
        items = [Item(entry.label)]
        for terms in places if comparison.trains(entry) else places[:1]:
            scores = {site: comparison.share(entry, terms, site) for site in sites}
            found = {site: score for site, score in scores.items() if score is not None}
            if not found:
                items += [Item(wording.MISSING)] * 2
                continue
            worst = min(found, key=lambda site: found[site].mean)
            mean = sum(score.mean for score in found.values()) / len(found)
            items += [Item(wording.percent(mean)), Item(f"{wording.with_interval(found[worst])} ({worst})")]
        items += [Item("", look="muted")] * (1 + 2 * len(places) - len(items))
        rows.append(tuple(items))
    columns = [Column(name, terms.label) for terms in places for name in ("mean", "worst site")]
    return Table("By site, in percent", (Column("method"), *columns), tuple(rows), _epsilon_note(comparison))


def _epsilon_note(comparison: Comparison) -> tuple[str, ...]:
    """So that a table that is taken out of the report still says what its ε means."""
    return (f"ε at {wording.full_terms(comparison.facts, comparison.modes)}.",) if comparison.private else ()


def _headings(columns: Sequence[Terms]) -> tuple[Column, ...]:
    return tuple(
        Column(NON_PRIVATE) if terms.epsilon is None else Column(f"ε = {terms.epsilon:g}", terms.mode)
        for terms in columns
    )


def _gain_item(gain: OverSeeds | None) -> Item:
    side = beyond(gain)
    mark = {1: " ▲", -1: " ▼"}.get(side or 0, "")
    look = {1: "above", -1: "below"}.get(side or 0, "")
    return Item(wording.with_interval(gain, signed=True) + mark, look=look)
