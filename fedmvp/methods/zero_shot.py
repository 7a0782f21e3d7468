"""Zero-shot CLIP, which trains nothing: the floor at epsilon 0 (Radford et al. 2021).

With the ensemble of attribute sentences it is the comparison that a gain of FedMVP must exceed, since the classifier
alone may account for much of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedmvp.methods.classes import ClassSet, Wording
from fedmvp.methods.method import Features, MethodModel, Reads
from fedmvp.methods.tower import FrozenTower


@dataclass(frozen=True)
class ZeroShot:
    """The frozen feature against frozen sentences.

    Attributes:
        wording: which sentences.
    """

    wording: Wording

    reads = frozenset({Reads.FEATURE})
    names_classes = True

    @property
    def neutral_start(self) -> Wording:
        """It never leaves its start."""
        return self.wording

    def build(self, tower: FrozenTower, candidates: ClassSet, *, trained: ClassSet | None = None) -> MethodModel:
        """Build the module; it has no parameters."""
        del trained
        return _ZeroShotModel(tower, candidates, self.wording)


class _ZeroShotModel(MethodModel):
    def __init__(self, tower: FrozenTower, candidates: ClassSet, wording: Wording) -> None:
        super().__init__(tower, candidates)
        self._classifier = tower.classifier(candidates, wording)

    def forward(self, features: Features) -> Tensor:
        """Return class logits (b, n_classes)."""
        return self.tower.backbone.logit_scale * features["zero_shot"] @ self._classifier.T
