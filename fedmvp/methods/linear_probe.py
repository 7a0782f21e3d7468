"""The linear probe: a softmax layer on centred frozen features.

With strong frozen features a private linear probe is hard to beat (De et al. 2022; Mehta et al. 2022). Features are
centred by a vector that involves no data of anybody: the mean feature of synthetic images. It knows classes by number:
of a class that nobody trained on it has nothing to say, which is a logit of zero, as at its start.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedmvp.methods.classes import ClassSet
from fedmvp.methods.method import Features, MethodModel, Reads
from fedmvp.methods.tower import FrozenTower


class LinearProbe(nn.Module):
    """Class logits of centred image features; zero at the start.

    Args:
        joint_width: width of an image feature.
        n_classes: number of classes.
        centre: a public vector (joint_width,) that is subtracted; None subtracts nothing.
        bias: whether each class has a number beside its row.
    """

    def __init__(self, joint_width: int, n_classes: int, *, centre: Tensor | None = None, bias: bool = True) -> None:
        super().__init__()
        self.layer = nn.Linear(joint_width, n_classes, bias=bias)
        for parameter in self.layer.parameters():
            nn.init.zeros_(parameter)
        self._centre = torch.zeros(joint_width) if centre is None else centre.detach().clone()

    def forward(self, zero_shot: Tensor) -> Tensor:
        """Return logits (b, n_classes) of zero-shot features (b, joint_width).

        Centred features are scaled to norm one, so that every record's gradient is as long and clipping bites evenly.
        """
        logits: Tensor = self.layer(F.normalize(zero_shot - self._centre.to(zero_shot.device), dim=-1))
        return logits


@dataclass(frozen=True)
class Probe:
    """The linear probe as a method."""

    reads = frozenset({Reads.FEATURE})
    neutral_start = None
    names_classes = False

    def build(self, tower: FrozenTower, candidates: ClassSet, *, trained: ClassSet | None = None) -> MethodModel:
        """Build the module; it has one row of parameters for each trained class."""
        return _ProbeModel(tower, candidates, trained or candidates)


class CandidateProbe(nn.Module):
    """A probe with one row for each trained class, asked about candidates: of others it says a logit of zero.

    Args:
        tower: whose features it reads, centred.
        candidates: the classes in the order of the logits.
        trained: the classes with parameters.
        bias: as of `LinearProbe`.
    """

    def __init__(self, tower: FrozenTower, candidates: ClassSet, trained: ClassSet, *, bias: bool = True) -> None:
        super().__init__()
        self.probe = LinearProbe(tower.backbone.joint_width, len(trained), centre=tower.centre(), bias=bias)
        rows = {name: row for row, name in enumerate(trained.names)}
        device = tower.backbone.device
        self._rows = torch.tensor([rows.get(name, len(trained)) for name in candidates.names], device=device)
        self.to(device)

    def forward(self, feature: Tensor) -> Tensor:
        """Return logits (b, n_candidates) of image features (b, joint_width)."""
        known: Tensor = self.probe(feature)
        return F.pad(known, (0, 1))[:, self._rows]  # the added column is for classes without parameters


class _ProbeModel(MethodModel):
    def __init__(self, tower: FrozenTower, candidates: ClassSet, trained: ClassSet) -> None:
        super().__init__(tower, candidates)
        self.probe = CandidateProbe(tower, candidates, trained)

    def forward(self, features: Features) -> Tensor:
        """Return class logits (b, n_classes)."""
        logits: Tensor = self.probe(features["zero_shot"])
        return logits
