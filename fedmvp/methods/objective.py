"""What is learned from labels: one class an image, or any number of them.

An objective maps the logits and labels of a batch to one loss a sample. Every sum runs within a sample, so that each
method can be trained under every privacy mode with each objective.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

UNKNOWN = -1
"""A label nobody decided: it adds nothing to a loss and is left out of every metric."""


class Objective(Protocol):
    """Logits and labels to losses."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return losses (b,) of logits (b, n_classes) and labels with the batch in front."""

    def check_labels(self, labels: Tensor, n_classes: int) -> None:
        """Refuse labels that do not fit.

        Raises:
            ValueError: says what they must be.
        """


@dataclass(frozen=True)
class SingleLabel:
    """Cross-entropy of the softmax over classes; labels are class indices (b,)."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return losses (b,)."""
        return F.cross_entropy(logits, labels, reduction="none")

    def check_labels(self, labels: Tensor, n_classes: int) -> None:
        """Refuse anything but class indices."""
        whole = not labels.dtype.is_floating_point
        if not whole or labels.dim() != 1 or (len(labels) and not 0 <= labels.min() <= labels.max() < n_classes):
            raise ValueError(f"labels must be one class index below {n_classes} an image")


@dataclass(frozen=True, eq=False)
class Calibration:
    """What makes a logit of the tower a log-odds: scale * logit + offset; public, never fitted on private images.

    A cosine times CLIP's scale is far above zero for every label, where a sigmoid is flat.

    Attributes:
        scale: > 0.
        offset: of each label (n_classes,), or a number for all.
    """

    scale: float = 1.0
    offset: Tensor | float = 0.0

    def __call__(self, logits: Tensor) -> Tensor:
        """Return log-odds of logits (b, n_classes)."""
        offset = self.offset.to(logits) if isinstance(self.offset, Tensor) else self.offset
        return self.scale * logits + offset


def calibrate(public_logits: Tensor, *, scale: float, prevalence: float) -> Calibration:
    """Choose offsets so that the mean log-odds of each label, over public images, is that of a prevalence.

    Args:
        public_logits: zero-shot logits of images that no site owns (n, n_classes); their labels are not needed.
        scale: kept as it is, > 0.
        prevalence: expected share of images with a label, in (0, 1).

    Raises:
        ValueError: a number out of its range, or no images.
    """
    if scale <= 0 or not 0 < prevalence < 1 or public_logits.dim() != 2 or not len(public_logits):
        raise ValueError("calibration needs public logits (n, n_classes), a positive scale and a prevalence in (0, 1)")
    prior = math.log(prevalence / (1 - prevalence))
    return Calibration(scale, prior - scale * public_logits.float().mean(dim=0))


@dataclass(frozen=True, eq=False)
class MultiLabel:
    """Binary cross-entropy summed over the labels of a sample, or the asymmetric loss.

    Labels are (b, n_classes): 1, 0, or `UNKNOWN`. With both focusing powers and the margin at zero the loss is plain
    binary cross-entropy. Otherwise it is the asymmetric loss (Ridnik et al. 2021, equations 4 to 7): a positive counts
    (1 - p)^focus_positive, a negative p_m^focus_negative with p_m = max(p - margin, 0).

    Attributes:
        calibration: from logits to log-odds.
        focus_positive: 0, or at least 1.
        focus_negative: 0, or at least 1.
        margin: probability below which a negative counts nothing, in [0, 1).
    """

    calibration: Calibration = field(default_factory=Calibration)
    focus_positive: float = 0.0
    focus_negative: float = 0.0
    margin: float = 0.0

    def __post_init__(self) -> None:
        if any(power < 0 or 0 < power < 1 for power in (self.focus_positive, self.focus_negative)):
            raise ValueError("a focusing power below 1 has no bounded gradient: take 0, or at least 1")
        if not 0 <= self.margin < 1:
            raise ValueError(f"the margin must be in [0, 1), not {self.margin}")

    @classmethod
    def asymmetric(cls, calibration: Calibration | None = None) -> MultiLabel:
        """Return the asymmetric loss with the powers and margin its authors use."""
        return cls(calibration or Calibration(), focus_negative=4.0, margin=0.05)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return losses (b,)."""
        odds = self.calibration(logits)
        if not (self.focus_positive or self.focus_negative or self.margin):
            positive, negative = -F.logsigmoid(odds), -F.logsigmoid(-odds)
        else:
            positive, negative = self._asymmetric(odds)
        zero = torch.zeros_like(odds)
        return (torch.where(labels == 1, positive, zero) + torch.where(labels == 0, negative, zero)).sum(dim=-1)

    def check_labels(self, labels: Tensor, n_classes: int) -> None:
        """Refuse anything but ones, zeros and `UNKNOWN`."""
        fits = labels.dim() == 2 and labels.shape[1] == n_classes
        if not fits or not bool(((labels == 1) | (labels == 0) | (labels == UNKNOWN)).all()):
            raise ValueError(f"labels must be {n_classes} numbers an image: 1, 0, or {UNKNOWN} for unknown")

    def _asymmetric(self, odds: Tensor) -> tuple[Tensor, Tensor]:
        """What a positive and a negative cost, of the same shape as the log-odds."""
        probability = torch.sigmoid(odds)
        positive, negative = -F.logsigmoid(odds), -F.logsigmoid(-odds)
        if self.focus_positive:
            positive = positive * (1 - probability) ** self.focus_positive
        shifted = (probability - self.margin).clamp(min=0)
        if self.margin:
            negative = -torch.log1p(-shifted)
        if self.focus_negative:
            negative = negative * shifted**self.focus_negative
        return positive, negative
