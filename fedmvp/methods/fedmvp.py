"""FedMVP: visual prompts made from the image and the attributes of the classes (Singha et al. 2025).

Wraps `fedmvp.model.prompted.PromptedModel`, so that the comparison trains what a study trains. A linear probe can be
trained together with the prompts, on the prompted feature: its logits, zero at the start, are added to those of the
sentences. Classes that were trained then have what a probe learns fastest, the others what the prompts learn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from fedmvp.errors import UserError
from fedmvp.methods.classes import ClassSet, Wording
from fedmvp.methods.linear_probe import CandidateProbe
from fedmvp.methods.method import Features, MethodModel, Reads
from fedmvp.methods.objective import Objective
from fedmvp.methods.tower import FrozenTower
from fedmvp.model.prompt_config import Injection, PromptConfig
from fedmvp.model.prompted import PromptedModel, summary_identity

_MIRRORED = "mirrored"


@dataclass(frozen=True)
class FedMvp:
    """The PromptFormer in one of its variants.

    Attributes:
        config: variant, injection, sizes, start, consistency.
        probe_gain: what the probe's logits are multiplied by, so how long its gradient is beside the prompts'; at 0
            there is no probe.
    """

    config: PromptConfig = field(default_factory=PromptConfig)
    probe_gain: float = 0.0

    neutral_start = Wording.ATTRIBUTES
    names_classes = True

    @property
    def reads(self) -> frozenset[Reads]:
        """By the place where prompts are put in."""
        place = Reads.TOKENS if self.config.injection is Injection.INPUT else Reads.TAIL
        return frozenset({Reads.FEATURE, place})

    def build(self, tower: FrozenTower, candidates: ClassSet, *, trained: ClassSet | None = None) -> MethodModel:
        """Build the prompted model; its prompts are conditioned on the attributes of the candidates.

        Raises:
            UserError: a gain that is no positive number and not zero.
        """
        if not (math.isfinite(self.probe_gain) and self.probe_gain >= 0):
            raise UserError(f"probe_gain {self.probe_gain:g} is no gain", remedy="give 0 for no probe, or say 4")
        return _FedMvpModel(tower, candidates, trained or candidates, self)


class _FedMvpModel(MethodModel):
    def __init__(self, tower: FrozenTower, candidates: ClassSet, trained: ClassSet, method: FedMvp) -> None:
        super().__init__(tower, candidates)
        config = method.config
        self.prompted = PromptedModel(tower.backbone, tower.bank(candidates), config)
        self._gain = method.probe_gain
        self.probe = CandidateProbe(tower, candidates, trained, bias=False) if self._gain else None
        self.feature_names = self.prompted.feature_names
        self.summary = summary_identity(config) + ("/mirrored" if self.prompted.needs_mirrored_view else "")

    def summarise(self, pixels: Tensor) -> dict[str, Tensor]:
        """Compute the summary of the prompted model, and the mirrored image's feature where the loss needs it."""
        summary = self.prompted.summarise(pixels)
        if self.prompted.needs_mirrored_view:
            summary[_MIRRORED] = self.tower.backbone.encode_images(pixels.flip(-1))
        return summary

    def complete(self, features: Features) -> dict[str, Tensor]:
        """Add the anchor, which depends on the attributes of the candidates, and the target of the consistency."""
        complete = dict(features)
        if _MIRRORED in features:
            complete["target"] = (features["zero_shot"] + features[_MIRRORED]) / 2
        if "anchor" in self.feature_names:
            complete["anchor"] = self.prompted.anchor(features)
        return super().complete(complete)

    def forward(self, features: Features) -> Tensor:
        """Return class logits (b, n_classes)."""
        return self._logits(self.prompted(features))

    def loss_per_sample(self, features: Features, labels: Tensor, objective: Objective) -> Tensor:
        """Return the objective plus the weighted distance to the frozen feature."""
        feature: Tensor = self.prompted(features)
        loss = objective(self._logits(feature), labels)
        weight = self.prompted.config.consistency_weight
        if weight:
            target = features["target" if self.prompted.needs_mirrored_view else "zero_shot"]
            loss = loss + weight * (1.0 - (feature * target).sum(dim=-1))
        return loss

    def _logits(self, feature: Tensor) -> Tensor:
        logits = self.prompted.logits(feature)
        return logits if self.probe is None else logits + self._gain * self.probe(feature)
