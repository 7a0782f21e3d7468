"""A linear probe that starts at zero-shot CLIP: rows of trained classes are corrected, the feature is left alone.

After task residuals (Yu et al. 2023), with the probe's centred feature. It is `fedmvp-probe` without prompts, and so
shows what of that method the prompts are worth. Of classes without rows it says what zero-shot CLIP says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from fedmvp.errors import UserError
from fedmvp.methods.classes import ClassSet, Wording
from fedmvp.methods.method import Features, MethodModel, Reads
from fedmvp.methods.tower import FrozenTower


@dataclass(frozen=True)
class TaskResidual:
    """Logits of sentences plus those of a probe.

    Attributes:
        probe_gain: what the probe's logits are multiplied by, above 0.
        wording: which sentences classify.
    """

    probe_gain: float = 4.0
    wording: Wording = Wording.ATTRIBUTES

    reads = frozenset({Reads.FEATURE})
    names_classes = True

    @property
    def neutral_start(self) -> Wording:
        """The classifier's sentences."""
        return self.wording

    def build(self, tower: FrozenTower, candidates: ClassSet, *, trained: ClassSet | None = None) -> MethodModel:
        """Build the module; it has one row of parameters for each trained class.

        Raises:
            UserError: a gain that is no number above zero.
        """
        if not (math.isfinite(self.probe_gain) and self.probe_gain > 0):
            raise UserError(f"probe_gain {self.probe_gain:g} is no gain", remedy="give a number above 0, say 4")
        return _TaskResidualModel(tower, candidates, trained or candidates, self)


class _TaskResidualModel(MethodModel):
    def __init__(self, tower: FrozenTower, candidates: ClassSet, trained: ClassSet, method: TaskResidual) -> None:
        super().__init__(tower, candidates)
        self._classifier = tower.classifier(candidates, method.wording)
        self._gain = method.probe_gain
        self.probe = tower.probe(candidates, trained, bias=False)

    def forward(self, features: Features) -> Tensor:
        """Return class logits (b, n_classes)."""
        frozen = features["zero_shot"]
        sentences: Tensor = self.tower.backbone.logit_scale * frozen @ self._classifier.T
        corrected: Tensor = sentences + self._gain * self.probe(frozen)
        return corrected
