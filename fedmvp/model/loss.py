"""The FedMVP loss, one number a sample: no term looks at another sample, which is what clipping by sample needs."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def fedmvp_loss(
    logits: Tensor, feature: Tensor, labels: Tensor, target: Tensor, *, consistency_weight: float
) -> Tensor:
    """Return cross-entropy plus weighted distance to the frozen feature, for each sample.

    The paper compares with one view, mirrored by a fair coin. The distance is linear in the frozen feature, so
    `target` holds the mean of both views' features and the term is the coin's expectation: the same objective without
    its variance.

    Args:
        logits: class logits (b, n_classes) of these features.
        feature: normalised prompted features (b, joint_width).
        labels: class indices (b,).
        target: frozen features to stay near (b, joint_width); of norm one, or the mean of two such.
        consistency_weight: alpha of the paper, at least 0.

    Returns:
        (b,) losses.
    """
    loss = F.cross_entropy(logits, labels, reduction="none")
    if consistency_weight:
        loss = loss + consistency_weight * (1.0 - (feature * target).sum(dim=-1))
    return loss
