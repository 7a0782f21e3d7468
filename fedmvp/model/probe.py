"""A linear probe: a softmax layer on centred features, alone or beside what sentences say.

With strong frozen features a private linear probe is hard to beat (De et al. 2022; Mehta et al. 2022). Features are
centred by a vector that involves no data of anybody: the mean feature of synthetic images. A probe knows classes by
number: of a class that nobody trained on it has nothing to say, which is a logit of zero, as at its start.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedmvp.model.backbone import Backbone

_SYNTHETIC_IMAGES = 128


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

    def centred(self, feature: Tensor) -> Tensor:
        """Return centred features (b, joint_width), scaled to norm one: every record's gradient is as long."""
        if self._centre.device != feature.device:
            self._centre = self._centre.to(feature.device)
        return F.normalize(feature - self._centre, dim=-1)

    def forward(self, feature: Tensor) -> Tensor:
        """Return logits (b, n_classes) of image features (b, joint_width)."""
        logits: Tensor = self.layer(self.centred(feature))
        return logits


class CandidateProbe(LinearProbe):
    """A probe with one row for each trained class, asked about candidates: of others it says a logit of zero.

    Args:
        backbone: whose features it reads, centred.
        candidates: the classes in the order of the logits.
        trained: the classes with parameters.
        bias: as of `LinearProbe`.
        centre: what `synthetic_centre` returns, where it is known already.
    """

    def __init__(
        self,
        backbone: Backbone,
        candidates: Sequence[str],
        trained: Sequence[str],
        *,
        bias: bool = True,
        centre: Tensor | None = None,
    ) -> None:
        centre = synthetic_centre(backbone) if centre is None else centre
        super().__init__(backbone.joint_width, len(trained), centre=centre.to(backbone.device), bias=bias)
        rows = {name: row for row, name in enumerate(trained)}
        places = [rows.get(name, len(trained)) for name in candidates]
        same = list(candidates) == list(trained)
        self._rows = None if same else torch.tensor(places, device=backbone.device)
        self.to(backbone.device)

    def forward(self, feature: Tensor) -> Tensor:
        """Return logits (b, n_candidates) of image features (b, joint_width)."""
        known = super().forward(feature)
        return known if self._rows is None else F.pad(known, (0, 1))[:, self._rows]  # the added column is zero

    def part(self, feature: Tensor, first: int, count: int) -> Tensor:
        """Return the logits (b, count) of the candidates from a position on, in no more memory than they take."""
        weight: Tensor = self.layer.weight
        bias: Tensor | None = self.layer.bias
        if self._rows is None:
            weight, bias = weight[first : first + count], None if bias is None else bias[first : first + count]
        else:
            rows = self._rows[first : first + count]
            weight = F.pad(weight, (0, 0, 0, 1))[rows]
            bias = None if bias is None else F.pad(bias, (0, 1))[rows]
        return F.linear(self.centred(feature), weight, bias)


def synthetic_centre(backbone: Backbone) -> Tensor:
    """Return the mean zero-shot feature (joint_width,) of smooth random images: a centre that costs no privacy."""
    draws = np.random.default_rng(0)
    side = backbone.image_size
    coarse = torch.from_numpy(draws.random((_SYNTHETIC_IMAGES, 3, 4, 4), dtype=np.float32))
    smooth = F.interpolate(coarse, size=(side, side), mode="bilinear")
    images = (smooth * 255).round().to(torch.uint8)
    features = [backbone.encode_images(backbone.normalise(part)).cpu() for part in torch.split(images, 32)]
    return torch.cat(features).mean(dim=0)
