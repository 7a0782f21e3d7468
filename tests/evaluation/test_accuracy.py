from __future__ import annotations

import pytest
import torch

from fedmvp.evaluation.accuracy import (
    Accuracy,
    accuracy_of,
    prompted_accuracy,
    prompted_logits,
    zero_shot_accuracy,
    zero_shot_logits,
)
from fedmvp.model.features import extract_features
from fedmvp.model.parameters import get_vector
from tests.model.tiny import disturb, random_images, tiny_model

LABELS = torch.arange(30) % 3


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (500, 1000, 0.4691, 0.5309)],
)
def test_wilson_intervals_agree_with_published_values(correct: int, total: int, low: float, high: float) -> None:
    accuracy = Accuracy(correct, total)
    assert accuracy.low == pytest.approx(low, abs=5e-5)
    assert accuracy.high == pytest.approx(high, abs=5e-5)
    assert accuracy.low <= accuracy.value <= accuracy.high


@pytest.mark.parametrize(("correct", "total"), [(0, 0), (3, 2), (-1, 5)])
def test_a_share_that_is_none_is_refused(correct: int, total: int) -> None:
    with pytest.raises(ValueError, match="not a share"):
        Accuracy(correct, total)


def test_accuracy_counts_the_largest_logit() -> None:
    logits = torch.tensor([[0.0, 2.0], [3.0, 1.0], [0.0, 1.0]])
    assert accuracy_of(logits, torch.tensor([1, 0, 0])) == Accuracy(2, 3)


def test_before_training_the_prompted_accuracy_is_the_zero_shot_accuracy() -> None:
    model = tiny_model()
    features = extract_features(model, random_images(30))
    assert prompted_accuracy(model, features, LABELS) == zero_shot_accuracy(model, features, LABELS)
    torch.testing.assert_close(prompted_logits(model, features, batch_size=7), zero_shot_logits(model, features))


@pytest.mark.parametrize("probe_gain", [0.0, 4.0])
def test_parameters_that_are_given_are_the_ones_that_are_measured(probe_gain: float) -> None:
    model = tiny_model(probe_gain=probe_gain)
    features = extract_features(model, random_images(30))
    start = get_vector(model)
    disturb(model)
    moved = get_vector(model)
    tuned = prompted_logits(model, features, parameters=moved)
    assert not torch.allclose(tuned, zero_shot_logits(model, features), atol=1e-3)
    assert zero_shot_accuracy(model, features, LABELS) == zero_shot_accuracy(tiny_model(), features, LABELS)
    back = prompted_logits(model, features, parameters=start)
    torch.testing.assert_close(back, zero_shot_logits(model, features))
    assert not prompted_logits(model, features).requires_grad
