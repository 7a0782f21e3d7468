"""FedCLIP-style adapter: a small network corrects the frozen image feature (Lu et al. 2023; Gao et al. 2021).

The correction starts at zero, so the untrained model is zero-shot CLIP. The tower is run once for each image.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedmvp.methods.classes import ClassSet, Wording
from fedmvp.methods.method import Features, MethodModel, Reads
from fedmvp.methods.tower import FrozenTower
from fedmvp.model.initial import orthogonal


class AdapterForm(StrEnum):
    """What is added to the feature f."""

    ATTENTION = "attention"
    """f times a factor for each channel, as FedCLIP weighs channels."""
    RESIDUAL = "residual"
    """A vector of its own."""


@dataclass(frozen=True)
class FedClip:
    """An adapter with a bottleneck: up(gelu(down(f))).

    Attributes:
        width: of the bottleneck, at least 1.
        form: see `AdapterForm`.
        wording: which sentences classify.
        initial_seed: seed of the public start.
    """

    width: int = 16
    form: AdapterForm = AdapterForm.ATTENTION
    wording: Wording = Wording.TEMPLATE
    initial_seed: int = 0

    reads = frozenset({Reads.FEATURE})
    names_classes = True

    @property
    def neutral_start(self) -> Wording:
        """The classifier's sentences."""
        return self.wording

    def build(self, tower: FrozenTower, candidates: ClassSet, *, trained: ClassSet | None = None) -> MethodModel:
        """Build the module; its parameters do not depend on the classes."""
        del trained
        return _FedClipModel(tower, candidates, self)


class _FedClipModel(MethodModel):
    def __init__(self, tower: FrozenTower, candidates: ClassSet, method: FedClip) -> None:
        super().__init__(tower, candidates)
        self._classifier = tower.classifier(candidates, method.wording)
        self._form = method.form
        width = tower.backbone.joint_width
        self.down = nn.Linear(width, method.width)
        self.up = nn.Linear(method.width, width, bias=False)
        down = torch.from_numpy(orthogonal((method.width, width), "down", method.initial_seed)) * width**0.5
        with torch.no_grad():
            self.down.weight.copy_(down)  # outputs of about unit rms from features of norm one
            self.down.bias.zero_()
            self.up.weight.zero_()
        self.to(self.device)

    def forward(self, features: Features) -> Tensor:
        """Return class logits (b, n_classes)."""
        frozen = features["zero_shot"]
        correction: Tensor = self.up(F.gelu(self.down(frozen)))
        if self._form is AdapterForm.ATTENTION:
            correction = correction * frozen
        feature = F.normalize(frozen + correction, dim=-1)
        return self.tower.backbone.logit_scale * feature @ self._classifier.T
