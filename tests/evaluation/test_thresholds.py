from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score as reference

from fedmvp.evaluation.thresholds import choose_thresholds, f1_score


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=25))
def test_no_other_threshold_does_better_on_the_public_images(case: list[tuple[int, bool]]) -> None:
    scores = torch.tensor([[score / 2] for score, _ in case])
    labels = torch.tensor([[int(positive)] for _, positive in case])
    chosen = choose_thresholds(scores, labels)
    assert bool(chosen.fitted) == bool(labels.any())
    reached = float(f1_score(chosen(scores), labels))
    others = [float(f1_score((scores >= value).long(), labels)) for value in torch.linspace(-2, 2, 41)]
    assert not labels.any() or reached >= max(others) - 1e-6


def test_a_label_that_no_public_image_has_gets_the_default_and_is_named() -> None:
    labels = torch.tensor([[1, 0], [0, 0], [0, -1]])
    chosen = choose_thresholds(torch.tensor([[2.0, 9.0], [0.0, 8.0], [-1.0, 7.0]]), labels, default=0.25)
    assert chosen.fitted.tolist() == [True, False]
    assert chosen.values.tolist() == [1.0, 0.25]


def test_the_f1_score_is_scikit_learns_over_the_images_somebody_decided() -> None:
    draws = torch.Generator().manual_seed(2)
    predicted, labels = torch.randint(0, 2, (40, 3), generator=draws), torch.randint(0, 2, (40, 3), generator=draws)
    labels[:9, 1] = -1
    found = f1_score(predicted, labels)
    kept = (labels != -1).numpy()
    wanted = [reference(labels[kept[:, i], i], predicted[kept[:, i], i]) for i in range(3)]
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_scores_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="must both be"):
        choose_thresholds(torch.zeros(2, 3), torch.zeros(3, 2))
