"""The DP linear probe: a softmax layer on frozen features, through the same engine, ledger and sums as the prompts.

With strong frozen features a private linear probe is hard to beat (De et al. 2022; Mehta et al. 2022), so it stands
beside every result. Features are centred by a vector that involves no data of anybody: the mean feature of synthetic
images.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedmvp.model.backbone import Backbone
from fedmvp.training.local import LocalTrainer, LocalTraining
from privacy.ledger import Ledger
from privacy.mechanism import PrivacyParameters

_SYNTHETIC_IMAGES = 128


class LinearProbe(nn.Module):
    """Class logits of centred image features; zero at the start.

    Args:
        joint_width: width of an image feature.
        n_classes: number of classes.
        centre: a public vector (joint_width,) that is subtracted; None subtracts nothing.
    """

    def __init__(self, joint_width: int, n_classes: int, *, centre: Tensor | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(joint_width, n_classes)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)
        self._centre = torch.zeros(joint_width) if centre is None else centre.detach().clone()

    def forward(self, zero_shot: Tensor) -> Tensor:
        """Return logits (b, n_classes) of zero-shot features (b, joint_width).

        Centred features are scaled to norm one, so that every record's gradient is as long and clipping bites evenly.
        """
        logits: Tensor = self.layer(F.normalize(zero_shot - self._centre.to(zero_shot.device), dim=-1))
        return logits


def probe_trainer(
    probe: LinearProbe,
    zero_shot: Tensor,
    labels: Tensor,
    *,
    training: LocalTraining,
    privacy: PrivacyParameters,
    ledger: Ledger,
) -> LocalTrainer:
    """Return the trainer of a probe at one site.

    Args:
        probe: the probe; sites simulated in one process may share it.
        zero_shot: frozen features (n, joint_width).
        labels: class indices (n,).
        training: step size and momentum.
        privacy: as for the prompts, so that both spend the same epsilon at the same delta.
        ledger: the open ledger of these records.
    """

    def loss_per_sample(module: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        features, targets = batch
        return F.cross_entropy(module(features), targets, reduction="none")

    return LocalTrainer(
        probe, (zero_shot, labels.to(torch.int64)), loss_per_sample, training=training, privacy=privacy, ledger=ledger
    )


def synthetic_centre(backbone: Backbone) -> Tensor:
    """Return the mean zero-shot feature (joint_width,) of smooth random images: a centre that costs no privacy."""
    draws = np.random.default_rng(0)
    side = backbone.image_size
    coarse = torch.from_numpy(draws.random((_SYNTHETIC_IMAGES, 3, 4, 4), dtype=np.float32))
    smooth = F.interpolate(coarse, size=(side, side), mode="bilinear")
    images = (smooth * 255).round().to(torch.uint8)
    features = [backbone.encode_images(backbone.normalise(part)).cpu() for part in torch.split(images, 32)]
    return torch.cat(features).mean(dim=0)
