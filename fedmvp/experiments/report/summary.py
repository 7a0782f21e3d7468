"""The cells of a study, put together over seeds. Knows numbers; neither tables nor pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fedmvp.evaluation.intervals import OverSeeds, difference
from fedmvp.experiments.results import NON_PRIVATE, SCORE, Cell, Results

PRIVATE_MODES = ("record-local", "record-distributed", "silo-distributed")
"""In the order of their columns."""

HEADLINE_MODES = ("record-distributed", "record-local", "silo-distributed")
"""In the order in which one is preferred where only one can be shown."""

SHARE_METRICS = ("accuracy", "average-precision")
"""What a group's value is given in; a study has one of them."""

NAMED_GROUPS = ("local", "base", "new")

Key = tuple[str, str, int | None]
"""Metric, group, round."""

Values = Mapping[Key, float]


@dataclass(frozen=True, order=True)
class Entry:
    """A row of a comparison: a method entry at one of its sizes."""

    method: str
    size: str = ""

    @property
    def label(self) -> str:
        """What the row is called."""
        return f"{self.method}, {self.size}" if self.size else self.method


@dataclass(frozen=True)
class Terms:
    """A column of a comparison: the privacy under which a cell ran."""

    mode: str = NON_PRIVATE
    epsilon: float | None = None

    @property
    def label(self) -> str:
        """What the column is called."""
        return self.mode if self.epsilon is None else f"{self.mode}, ε = {self.epsilon:g}"


PLAIN = Terms()
"""Without privacy."""


@dataclass(frozen=True)
class Comparison:
    """The finished cells of one study that had the same number of sites.

    Attributes:
        facts: what holds for the whole study.
        n_sites: how many sites took part.
        several: whether the study has other numbers of sites too.
        cells: what each cell measured.
    """

    facts: Mapping[str, Any]
    n_sites: int
    several: bool
    cells: Mapping[Cell, Values] = field(repr=False)

    @cached_property
    def places(self) -> dict[tuple[Entry, Terms], dict[int, Cell]]:
        """The cells by row and column, and there by seed."""
        found: dict[tuple[Entry, Terms], dict[int, Cell]] = {}
        for cell in sorted(self.cells, key=lambda cell: cell.seed):
            place = Entry(cell.method, cell.size), Terms(cell.mode, cell.epsilon)
            found.setdefault(place, {})[cell.seed] = cell
        return found

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """Rows: what is not trained, then FedMVP, then the others, each in the order of the file."""
        order = dict.fromkeys(Entry(cell.method, cell.size) for cell in self.cells)
        return tuple(sorted(order, key=lambda entry: (self.trains(entry), not entry.method.startswith("fedmvp"))))

    @property
    def trained(self) -> tuple[Entry, ...]:
        """Rows with trained parameters."""
        return tuple(entry for entry in self.entries if self.trains(entry))

    @property
    def baselines(self) -> tuple[Entry, ...]:
        """Rows without: zero-shot, the same at every epsilon."""
        return tuple(entry for entry in self.entries if not self.trains(entry))

    @cached_property
    def private(self) -> tuple[Terms, ...]:
        """Columns with noise: by mode, from the loosest epsilon to the strictest."""
        found = {Terms(cell.mode, cell.epsilon) for cell in self.cells if cell.mode != NON_PRIVATE}
        return tuple(sorted(found, key=lambda terms: (_mode_rank(terms.mode), -(terms.epsilon or math.inf))))

    @property
    def columns(self) -> tuple[Terms, ...]:
        """Without privacy first."""
        return PLAIN, *self.private

    @property
    def modes(self) -> tuple[str, ...]:
        """Private modes in their order."""
        return tuple(dict.fromkeys(terms.mode for terms in self.private))

    @property
    def headline(self) -> tuple[Terms, ...]:
        """The columns of the one mode that is shown where only one can be, from the loosest to the strictest."""
        mode = next((name for name in (*HEADLINE_MODES, *self.modes) if name in self.modes), None)
        return tuple(terms for terms in self.private if terms.mode == mode)

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """All seeds."""
        return tuple(sorted({cell.seed for cell in self.cells}))

    def trains(self, entry: Entry) -> bool:
        """Whether an entry has anything to train; what trains nothing has one mode and zero parameters."""
        return entry in self._trained

    @cached_property
    def _trained(self) -> frozenset[Entry]:
        return _trained(self.cells)

    def by_seed(self, entry: Entry, terms: Terms, key: Key = (SCORE, "", None)) -> dict[int, float]:
        """A value by seed; empty where no cell has it. What is not trained has the same under all terms."""
        cells = self.places.get((entry, terms if self.trains(entry) else PLAIN), {})
        return {seed: self.cells[cell][key] for seed, cell in cells.items() if key in self.cells[cell]}

    def score(self, entry: Entry, terms: Terms, key: Key = (SCORE, "", None)) -> OverSeeds | None:
        """A value over seeds; None where no cell has it."""
        values = self.by_seed(entry, terms, key)
        return OverSeeds(tuple(values.values())) if values else None

    def gain(self, first: tuple[Entry, Terms], second: tuple[Entry, Terms]) -> OverSeeds | None:
        """The score of one place less that of another, by the seeds that both have; None where they share none."""
        one, other = self.by_seed(*first), self.by_seed(*second)
        shared = [seed for seed in one if seed in other]
        return difference([one[seed] for seed in shared], [other[seed] for seed in shared]) if shared else None

    def parameters(self, entry: Entry) -> int | None:
        """Trained numbers; None where no cell says."""
        found = (self.cells[cell].get(("parameters", "", None)) for cell in self._of(entry))
        return next((int(value) for value in found if value is not None), None)

    def rounds(self, entry: Entry, terms: Terms) -> dict[int, OverSeeds]:
        """The score by round."""
        cells = self.places.get((entry, terms), {}).values()
        numbers = sorted(
            {key[2] for cell in cells for key in self.cells[cell] if key[0] == SCORE and key[2] is not None}
        )
        curve = {number: self.score(entry, terms, (SCORE, "", number)) for number in numbers}
        return {number: value for number, value in curve.items() if value is not None}

    def groups(self) -> tuple[list[str], list[str]]:
        """Groups with a final share: those of the task (local, base, new, targets), and sites."""
        names = {
            group
            for values in self.cells.values()
            for metric, group, number in values
            if metric in SHARE_METRICS and group and number is None
        }
        sites = [str(site.get("name")) for site in self.facts.get("sites") or () if isinstance(site, Mapping)]
        targets = self.facts.get("targets") or ()
        known = [*NAMED_GROUPS, *([targets] if isinstance(targets, str) else map(str, targets))]
        order = {name: place for place, name in enumerate(known)}
        if names.issuperset(NAMED_GROUPS) and any(name.endswith(" base") for name in names):
            names = {*NAMED_GROUPS, *sites} & names  # of several data sets the means; the parts are in the results file
        task = sorted(names - set(sites), key=lambda name: (order.get(name, len(order)), name))
        return task, [name for name in sites if name in names]

    def share(self, entry: Entry, terms: Terms, group: str) -> OverSeeds | None:
        """A group's share at the end of the run."""
        for metric in SHARE_METRICS:
            if (found := self.score(entry, terms, (metric, group, None))) is not None:
                return found
        return None

    def largest(self, entry: Entry, terms: Terms, metric: str) -> float | None:
        """The largest value of a metric over sites, rounds and seeds."""
        cells = self.places.get((entry, terms), {}).values()
        found = [value for cell in cells for key, value in self.cells[cell].items() if key[0] == metric]
        return max(found, default=None)

    def _of(self, entry: Entry) -> list[Cell]:
        return [cell for cell in self.cells if (cell.method, cell.size) == (entry.method, entry.size)]


def comparisons(results: Results) -> tuple[Comparison, ...]:
    """One comparison for each number of sites; zero-shot, which has no sites, is in all of them."""
    cells = finished(results)
    trained = _trained(cells)
    trained_cells = [cell for cell in cells if Entry(cell.method, cell.size) in trained]
    counts = sorted({cell.sites for cell in trained_cells or cells})
    found = []
    for count in counts:
        kept = {cell: values for cell, values in cells.items() if cell.sites == count}
        here = {(cell.method, cell.size, cell.seed) for cell in kept}
        for cell, values in cells.items():
            place = cell.method, cell.size, cell.seed
            if Entry(*place[:2]) not in trained and place not in here:
                kept[cell] = values
                here.add(place)
        found.append(Comparison(results.facts, count, len(counts) > 1, kept))
    return tuple(found)


def finished(results: Results) -> dict[Cell, dict[Key, float]]:
    """The cells that have a final score, with all that they measured."""
    cells: dict[Cell, dict[Key, float]] = {}
    for cell, measured in results.rows:
        cells.setdefault(cell, {})[measured.metric, measured.group, measured.round] = measured.value
    return {cell: values for cell, values in cells.items() if (SCORE, "", None) in values}


def missing(results: Results) -> list[str]:
    """Names of the cells that were planned or begun and have no final score."""
    planned = [str(name) for name in results.facts.get("planned") or ()]
    there = {cell.name for cell in finished(results)}
    return [name for name in dict.fromkeys([*planned, *(cell.name for cell in results.cells)]) if name not in there]


def _trained(cells: Mapping[Cell, Values]) -> frozenset[Entry]:
    return frozenset(
        Entry(cell.method, cell.size)
        for cell, values in cells.items()
        if cell.mode != NON_PRIVATE or values.get(("parameters", "", None)) != 0
    )


def _mode_rank(mode: str) -> tuple[int, str]:
    return (PRIVATE_MODES.index(mode) if mode in PRIVATE_MODES else len(PRIVATE_MODES)), mode
