from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fedmvp.model.loss import fedmvp_loss

FEATURE = F.normalize(torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), dim=-1)
PLAIN, MIRRORED = (
    F.normalize(torch.randn(4, 6, generator=torch.Generator().manual_seed(seed)), dim=-1) for seed in (1, 2)
)
CLASSIFIER = torch.randn(3, 6, generator=torch.Generator().manual_seed(3))
LABELS = torch.tensor([0, 2, 1, 2])


def loss(feature: torch.Tensor, target: torch.Tensor, weight: float, rows: slice = slice(None)) -> torch.Tensor:
    logits = 20.0 * feature @ CLASSIFIER.T
    return fedmvp_loss(logits[rows], feature[rows], LABELS[rows], target[rows], consistency_weight=weight)


def test_the_loss_is_cross_entropy_plus_weighted_distance_for_each_sample() -> None:
    cosine = F.cosine_similarity(FEATURE, PLAIN)
    expected = F.cross_entropy(20.0 * FEATURE @ CLASSIFIER.T, LABELS, reduction="none") + 10.0 * (1 - cosine)
    torch.testing.assert_close(loss(FEATURE, PLAIN, 10.0), expected)


def test_a_samples_loss_does_not_depend_on_the_others() -> None:
    together = loss(FEATURE, PLAIN, 10.0)
    for sample in range(4):
        torch.testing.assert_close(loss(FEATURE, PLAIN, 10.0, slice(sample, sample + 1))[0], together[sample])


def test_the_mean_of_both_views_gives_the_expectation_of_the_coin() -> None:
    expected = (loss(FEATURE, PLAIN, 10.0) + loss(FEATURE, MIRRORED, 10.0)) / 2
    torch.testing.assert_close(loss(FEATURE, (PLAIN + MIRRORED) / 2, 10.0), expected)


@pytest.mark.parametrize("weight", [0.0, 5.0])
def test_staying_at_the_frozen_feature_costs_no_consistency(weight: float) -> None:
    torch.testing.assert_close(loss(PLAIN, PLAIN, weight), loss(PLAIN, PLAIN, 0.0), atol=1e-5, rtol=1e-5)
