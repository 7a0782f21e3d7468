"""Average precision over labels: the metric of images with several labels.

Only for images that no site owns, as all of this package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def average_precision(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float | None:
    """Return the sum over thresholds of precision times the recall gained, without interpolation.

    Images of equal score are taken together, so that their order does not matter. Equal to scikit-learn's
    `average_precision_score`.

    Args:
        scores: of one label (n,), finite; higher is likelier.
        positive: whether each image has the label (n,).

    Returns:
        In [0, 1]; None where no image has the label.
    """
    if not positive.any():
        return None
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(positive[order])
    last_of_score = np.append(np.diff(scores[order]) != 0, True)
    found, taken = found[last_of_score], np.flatnonzero(last_of_score) + 1
    gained = np.diff(found, prepend=0) / found[-1]
    return float((gained * (found / taken)).sum())


@dataclass(frozen=True)
class MeanAveragePrecision:
    """Average precision of every label, and its mean.

    Attributes:
        by_label: None for a label that no image has.
    """

    by_label: tuple[float | None, ...]

    @property
    def measured(self) -> int:
        """How many labels at least one image has."""
        return sum(value is not None for value in self.by_label)

    @property
    def value(self) -> float:
        """The mean over the labels that at least one image has.

        Raises:
            ValueError: there is none.
        """
        return self.over(range(len(self.by_label)))

    def over(self, labels: Sequence[int]) -> float:
        """Return the mean over some labels, leaving out those that no image has.

        Raises:
            ValueError: nothing is left.
        """
        values = [value for label in labels if (value := self.by_label[label]) is not None]
        if not values:
            raise ValueError("no image has any of these labels: there is no average precision")
        return sum(values) / len(values)


@dataclass(frozen=True)
class SeenUnseen:
    """Mean average precision by whether labels were trained on, in [0, 1].

    Attributes:
        seen: over labels that sites trained on.
        unseen: over the others.
        all: over both.
    """

    seen: float
    unseen: float
    all: float


def mean_average_precision(logits: Tensor, labels: Tensor) -> MeanAveragePrecision:
    """Return the average precision of each label.

    Args:
        logits: (n, n_classes); any increasing function of them gives the same.
        labels: (n, n_classes): 1, 0, or -1 where nobody decided, which leaves the image out for that label.

    Raises:
        ValueError: shapes that differ, or logits that are not finite.
    """
    scores, truth = logits.detach().cpu().double().numpy(), labels.detach().cpu().numpy()
    if scores.shape != truth.shape or scores.ndim != 2:
        raise ValueError(f"logits {scores.shape} and labels {truth.shape} must both be (n, n_classes)")
    if not np.isfinite(scores).all():
        raise ValueError("logits that are not finite have no order")
    return MeanAveragePrecision(
        tuple(
            average_precision(column[known], answers[known] == 1)
            for column, answers, known in zip(scores.T, truth.T, (truth != -1).T, strict=True)
        )
    )


def seen_and_unseen(measured: MeanAveragePrecision, seen: Sequence[int]) -> SeenUnseen:
    """Return the three means of generalised zero-shot learning.

    Args:
        measured: of logits for all labels at once.
        seen: the labels that were trained on.

    Raises:
        ValueError: one side has no label that an image has.
    """
    every = range(len(measured.by_label))
    trained = set(seen)
    unseen = [label for label in every if label not in trained]
    return SeenUnseen(measured.over(sorted(trained)), measured.over(unseen), measured.over(every))
