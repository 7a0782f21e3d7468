"""Results of studies that nobody ran."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fedmvp.experiments.results import NON_PRIVATE, Cell, Measurement, Results, Row

ZERO_SHOT = {"zero-shot-template": 0.60, "zero-shot-attributes": 0.64}
TRAINED = {"fedmvp-narrow": (0.80, 67584), "promptfl": (0.77, 2048), "linear-probe": (0.78, 3591)}
MODES = ("record-local", "record-distributed")
EPSILONS = (8.0, 4.0, 2.0, 1.0)

FACTS: Mapping[str, Any] = {
    "name": "pacs-sketch",
    "title": "PACS, three domains to sketch",
    "score": "target accuracy",
    "setting": "domains",
    "sources": ["art_painting", "cartoon", "photo"],
    "targets": ["sketch"],
    "classes": ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"],
    "delta": 1e-5,
    "unit": "record",
    "neighboring_relation": "add-or-remove-one",
    "accountant": "PLD (dp_accounting)",
    "tower": {"name": "fedmvp-tiny", "data": ["CIFAR-10", "Fashion-MNIST"]},
    "data": {"name": "pacs", "images": 9991},
    "sites": [
        {"name": "art", "images": 2048, "classes": 7},
        {"name": "cartoon", "images": 2344, "classes": 7},
        {"name": "photo", "images": 1670, "classes": 7},
    ],
    "settings_from": "a public proxy: Fashion-MNIST upside down",
    "notes": ["The tower saw drawings of all seven classes."],
}


@dataclass(frozen=True)
class Synthetic:
    """What a study that nobody ran is made of.

    Attributes:
        trained: by method and size, the score without privacy and the parameters.
        groups: by group, what is added to the score.
    """

    trained: Mapping[tuple[str, str], tuple[float, int]] = field(
        default_factory=lambda: {(method, ""): found for method, found in TRAINED.items()}
    )
    modes: Sequence[str] = MODES
    epsilons: Sequence[float] = EPSILONS
    seeds: Sequence[int] = (0, 1, 2)
    sites: Sequence[int] = (3,)
    rounds: int = 12
    groups: Mapping[str, float] = field(default_factory=lambda: {"sketch": 0.0})
    facts: Mapping[str, Any] = field(default_factory=lambda: FACTS)

    def results(self) -> Results:
        """All of its cells."""
        return Results(self.facts, tuple(self._rows()))

    def _rows(self) -> Iterator[Row]:
        for seed in self.seeds:
            for method, score in ZERO_SHOT.items():
                cell = Cell(method, NON_PRIVATE, None, "", self.sites[0], seed)
                shifted = score + 0.01 * (seed - 1)
                yield cell, Measurement("parameters", 0)
                yield cell, Measurement("score", shifted)
                for group, more in self.groups.items():
                    yield cell, Measurement("accuracy", shifted + more, group, count=400)
        for (method, size), (score, parameters) in self.trained.items():
            for sites in self.sites:
                for seed in self.seeds:
                    yield from self._cell(Cell(method, NON_PRIVATE, None, size, sites, seed), score, parameters)
                    for mode in self.modes:
                        for epsilon in self.epsilons:
                            yield from self._cell(Cell(method, mode, epsilon, size, sites, seed), score, parameters)

    def _cell(self, cell: Cell, best: float, parameters: int) -> Iterator[Row]:
        draw = random.Random(cell.name)
        loss = 0.0 if cell.epsilon is None else parameters**0.4 * 1e-3 / cell.epsilon**0.6
        loss *= 1.0 if cell.mode == "record-distributed" else 1.7
        end = best - loss + 0.01 * (cell.seed - 1) + draw.gauss(0, 0.004)
        yield cell, Measurement("parameters", parameters)
        yield cell, Measurement("score", end)
        for number in range(self.rounds + 1):
            part = (1 - 0.7**number) if number < self.rounds else 1.0
            start = 0.1 if cell.method == "linear-probe" else 0.62
            yield (
                cell,
                Measurement("score", start + (end - start) * part + draw.gauss(0, 0.006) * (number > 0), round=number),
            )
        for group, more in self.groups.items():
            yield cell, Measurement("accuracy", min(1.0, end + more), group, count=400)
        if cell.epsilon is not None:
            for site in ("art", "cartoon", "photo"):
                yield cell, Measurement("epsilon", cell.epsilon * (0.999 if site == "art" else 0.9), site)
        for site in ("art", "cartoon", "photo"):
            yield cell, Measurement("bytes-up", self.rounds * (4.0 * parameters + 2000), site)
            yield cell, Measurement("bytes-down", self.rounds * (8.0 * parameters + 3000), site)
        yield cell, Measurement("seconds", 40.0 + parameters / 1000)
        yield cell, Measurement("sum-error", 2.0**-20)


SMALL = Synthetic(epsilons=(8.0, 1.0), rounds=4, seeds=(0, 1, 2), groups={"base": 0.0, "new": -0.1})


def titled(results: Results, **facts: Any) -> Results:
    """The same results with other facts."""
    return replace(results, facts={**results.facts, **facts})
