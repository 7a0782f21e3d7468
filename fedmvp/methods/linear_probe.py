"""The linear probe as a method: it knows classes by number and reads no sentence (`fedmvp.model.probe`)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedmvp.methods.classes import ClassSet
from fedmvp.methods.method import Features, MethodModel, Reads
from fedmvp.methods.tower import FrozenTower


@dataclass(frozen=True)
class Probe:
    """The linear probe as a method."""

    reads = frozenset({Reads.FEATURE})
    neutral_start = None
    names_classes = False

    def build(self, tower: FrozenTower, candidates: ClassSet, *, trained: ClassSet | None = None) -> MethodModel:
        """Build the module; it has one row of parameters for each trained class."""
        return _ProbeModel(tower, candidates, trained or candidates)


class _ProbeModel(MethodModel):
    def __init__(self, tower: FrozenTower, candidates: ClassSet, trained: ClassSet) -> None:
        super().__init__(tower, candidates)
        self.probe = tower.probe(candidates, trained)

    def forward(self, features: Features) -> Tensor:
        """Return class logits (b, n_classes)."""
        logits: Tensor = self.probe(features["zero_shot"])
        return logits
