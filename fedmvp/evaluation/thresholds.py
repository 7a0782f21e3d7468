"""From scores to labels: a threshold for each label, chosen on public images.

A threshold fitted on private images would be a release; there is no function for that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Thresholds:
    """What a score must reach for each label.

    Attributes:
        values: (n_classes,).
        fitted: whether public images had the label (n_classes,); the others got the default.
    """

    values: Tensor
    fitted: Tensor

    def __call__(self, scores: Tensor) -> Tensor:
        """Return labels (n, n_classes), 1 or 0, of scores (n, n_classes)."""
        return (scores >= self.values.to(scores)).long()


def choose_thresholds(public_scores: Tensor, public_labels: Tensor, *, default: float = 0.0) -> Thresholds:
    """Choose for each label the threshold with the best F1 score on public images.

    Midway between two scores where possible; the highest such threshold where several are equally good.

    Args:
        public_scores: of images that no site owns (n, n_classes), finite; log-odds, so that 0 is a probability of half.
        public_labels: (n, n_classes): 1, 0, or -1 where nobody decided.
        default: for a label that no public image has.

    Raises:
        ValueError: shapes that differ, or scores that are not finite.
    """
    scores, truth = public_scores.detach().cpu().double().numpy(), public_labels.detach().cpu().numpy()
    if scores.shape != truth.shape or scores.ndim != 2 or not np.isfinite(scores).all():
        raise ValueError(f"scores {scores.shape} and labels {truth.shape} must both be (n, n_classes), and finite")
    chosen = [
        _best(column[answers != -1], answers[answers != -1] == 1)
        for column, answers in zip(scores.T, truth.T, strict=True)
    ]
    return Thresholds(
        torch.tensor([default if value is None else value for value in chosen], dtype=torch.float32),
        torch.tensor([value is not None for value in chosen]),
    )


def f1_score(predicted: Tensor, labels: Tensor) -> Tensor:
    """Return the F1 score of each label (n_classes,), zero where nothing was right.

    Args:
        predicted: (n, n_classes), 1 or 0.
        labels: (n, n_classes): 1, 0, or -1 where nobody decided.
    """
    known = labels != -1
    right = ((predicted == 1) & (labels == 1)).sum(dim=0)
    called, there = ((predicted == 1) & known).sum(dim=0), (labels == 1).sum(dim=0)
    return 2 * right / (called + there).clamp(min=1)


def _best(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float | None:
    """The threshold with the best F1 score; None if nothing is positive."""
    if not positive.any():
        return None
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    right = np.cumsum(positive[order])
    f1 = 2 * right / (np.arange(1, len(ranked) + 1) + positive.sum())
    f1[np.append(ranked[:-1] == ranked[1:], False)] = -1.0  # a threshold does not part equal scores
    place = int(np.argmax(f1))
    below = ranked[place + 1] if place + 1 < len(ranked) else ranked[place]
    return float((ranked[place] + below) / 2)
