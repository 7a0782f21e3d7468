"""Average precision, beside scikit-learn's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from fedmvp.evaluation.average_precision import (
    MeanAveragePrecision,
    average_precision,
    mean_average_precision,
    seen_and_unseen,
)

CASES = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=1, max_size=40)


def columns(case: list[tuple[int, bool]]) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties, and truth."""
    return np.array([score / 3 for score, _ in case]), np.array([positive for _, positive in case])


def check_equal(scores: np.ndarray, positive: np.ndarray, found: float | None) -> None:
    assert found == pytest.approx(average_precision_score(positive, scores), abs=1e-12)


@given(CASES.filter(lambda case: any(positive for _, positive in case)))
def test_it_is_scikit_learns(case: list[tuple[int, bool]]) -> None:
    scores, positive = columns(case)
    check_equal(scores, positive, average_precision(scores, positive))


def test_control_taking_ties_one_by_one_fails_the_same_check() -> None:
    scores, positive = np.zeros(4), np.array([True, False, False, True])
    ranked = np.cumsum(positive) / np.arange(1, 5)
    with pytest.raises(AssertionError):
        check_equal(scores, positive, float(ranked[positive].mean()))


def test_the_order_of_images_does_not_matter() -> None:
    scores, positive = np.repeat(np.arange(5.0), 4), np.arange(20) % 3 == 0
    shuffled = np.random.default_rng(0).permutation(20)
    assert average_precision(scores, positive) == average_precision(scores[shuffled], positive[shuffled])


def test_the_mean_leaves_out_labels_that_no_image_has_and_images_nobody_decided() -> None:
    draws = torch.Generator().manual_seed(0)
    logits = torch.randn(30, 4, generator=draws)
    labels = (torch.rand(30, 4, generator=draws) < 0.4).long()
    labels[:, 3] = 0
    labels[:10, 1] = -1
    measured = mean_average_precision(logits, labels)
    kept = (labels[:, 1] != -1).numpy()
    wanted = [
        average_precision_score(labels[:, 0], logits[:, 0]),
        average_precision_score(labels[kept, 1], logits[kept, 1]),
        average_precision_score(labels[:, 2], logits[:, 2]),
    ]
    assert measured.by_label[:3] == pytest.approx(wanted)
    assert measured.by_label[3] is None
    assert measured.measured == 3
    assert measured.value == pytest.approx(np.mean(wanted))
    both = seen_and_unseen(measured, seen=[0, 1])
    assert (both.seen, both.unseen, both.all) == pytest.approx((np.mean(wanted[:2]), wanted[2], np.mean(wanted)))


def test_without_a_single_positive_there_is_no_mean() -> None:
    with pytest.raises(ValueError, match="no average precision"):
        MeanAveragePrecision((None, None)).value  # noqa: B018


@pytest.mark.parametrize(
    ("logits", "labels"), [(torch.zeros(2, 3), torch.zeros(2, 2)), (torch.full((2, 1), torch.nan), torch.ones(2, 1))]
)
def test_logits_that_cannot_be_ranked_are_refused(logits: torch.Tensor, labels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"must both|not finite"):
        mean_average_precision(logits, labels)
