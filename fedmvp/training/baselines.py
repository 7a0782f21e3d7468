"""The DP linear probe: a softmax layer on frozen features, through the same engine, ledger and sums as the prompts.

It stands beside every result: see `fedmvp.model.probe`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedmvp.model.probe import LinearProbe, synthetic_centre
from fedmvp.training.local import LocalTrainer, LocalTraining
from privacy.ledger import Ledger
from privacy.mechanism import PrivacyParameters

__all__ = ["LinearProbe", "probe_trainer", "synthetic_centre"]


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
