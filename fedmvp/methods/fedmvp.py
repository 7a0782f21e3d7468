"""FedMVP: visual prompts made from the image and the attributes of the classes (Singha et al. 2025).

Wraps `fedmvp.model.prompted.PromptedModel`, so that the comparison trains what a study trains. A linear probe can be
trained together with the prompts, on the prompted feature: its logits, zero at the start, are added to those of the
sentences. Classes that were trained then have what a probe learns fastest, the others what the prompts learn.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from fedmvp.methods.classes import ClassSet, Wording
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
        config: variant, injection, sizes, start, consistency, probe.
    """

    config: PromptConfig = field(default_factory=PromptConfig)

    neutral_start = Wording.ATTRIBUTES
    names_classes = True

    @property
    def reads(self) -> frozenset[Reads]:
        """By the place where prompts are put in."""
        place = Reads.TOKENS if self.config.injection is Injection.INPUT else Reads.TAIL
        return frozenset({Reads.FEATURE, place})

    def build(self, tower: FrozenTower, candidates: ClassSet, *, trained: ClassSet | None = None) -> MethodModel:
        """Build the prompted model; its prompts are conditioned on the attributes of the candidates."""
        return _FedMvpModel(tower, candidates, trained or candidates, self.config)


class _FedMvpModel(MethodModel):
    def __init__(self, tower: FrozenTower, candidates: ClassSet, trained: ClassSet, config: PromptConfig) -> None:
        super().__init__(tower, candidates)
        probe = tower.probe(candidates, trained, bias=False) if config.probe_gain else None
        self.prompted = PromptedModel(tower.backbone, tower.bank(candidates), config, probe=probe)
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
        return self.prompted.logits(self.prompted(features))

    def loss_per_sample(self, features: Features, labels: Tensor, objective: Objective) -> Tensor:
        """Return the objective plus the weighted distance to the frozen feature."""
        feature: Tensor = self.prompted(features)
        loss = objective(self.prompted.logits(feature), labels)
        weight = self.prompted.config.consistency_weight
        if weight:
            target = features["target" if self.prompted.needs_mirrored_view else "zero_shot"]
            loss = loss + weight * (1.0 - (feature * target).sum(dim=-1))
        return loss
