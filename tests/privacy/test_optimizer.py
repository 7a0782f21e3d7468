"""Clipping bounds every record, whatever it holds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.privacy.sums import clip_each, sum_of


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(0, 9), scale=st.floats(-12, 18), bound=st.floats(-4, 3))
def test_no_clipped_gradient_is_longer_than_the_bound(seed: int, size: int, scale: float, bound: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    gradients = [torch.randn(size, *shape, generator=generator) * 10**scale for shape in ((7, 3), (5,), ())]
    assert (clip_each(gradients, 10**bound).norm(dim=1) <= 10**bound * (1 + 1e-6)).all()


def test_a_short_gradient_is_left_alone_and_a_long_one_keeps_its_direction() -> None:
    short, long = torch.tensor([[0.3, -0.4]]), torch.tensor([[30.0, -40.0]])
    clipped = clip_each([torch.cat([short, long])], 1.0)
    assert torch.equal(clipped[:1], short.double())
    assert torch.allclose(clipped[1:], torch.tensor([[0.6, -0.8]], dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_a_gradient_that_is_not_finite_counts_as_zero_and_harms_no_other(bad: float) -> None:
    good = torch.tensor([0.1, 0.2, 0.3])
    gradients = [torch.stack([good, torch.tensor([0.1, bad, bad])])]
    assert torch.equal(clip_each(gradients, 1.0), torch.stack([good, torch.zeros(3)]).double())
    assert torch.equal(sum_of(gradients, 1.0), good.double())
