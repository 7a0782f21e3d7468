"""Batches are Poisson samples at the declared rate."""

from fractions import Fraction

import numpy as np
import pytest

from privacy.sampling import PoissonSampler
from tests.privacy.checks import check_inclusions


def test_each_record_enters_each_batch_independently_at_the_declared_rate() -> None:
    sampler = PoissonSampler(300, 0.07)
    check_inclusions([sampler.sample() for _ in range(2000)], 300, 0.07)


def _fixed_size(rng: np.random.Generator) -> np.ndarray:
    return rng.choice(300, 21, replace=False)


def _shuffled(rng: np.random.Generator, step: int, epoch: list[np.ndarray]) -> np.ndarray:
    if step % 14 == 0:
        epoch[0] = rng.permutation(300)
    return epoch[0][step % 14 * 21 : (step % 14 + 1) * 21]


def test_control_batches_of_fixed_size_fail_the_same_check() -> None:
    rng = np.random.default_rng(3)
    with pytest.raises(AssertionError, match="independently of each other"):
        check_inclusions([_fixed_size(rng) for _ in range(2000)], 300, 0.07)


def test_control_shuffled_batches_fail_the_same_check() -> None:
    rng, epoch = np.random.default_rng(4), [np.arange(300)]
    with pytest.raises(AssertionError):
        check_inclusions([_shuffled(rng, step, epoch) for step in range(2000)], 300, 0.07)


def test_control_a_rate_three_per_cent_high_fails_the_same_check() -> None:
    sampler = PoissonSampler(300, 0.0721)
    with pytest.raises(AssertionError):
        check_inclusions([sampler.sample() for _ in range(8000)], 300, 0.07)


@pytest.mark.parametrize("rate", [0.1, 1 / 3, 0.0256, 1e-9])
def test_the_rate_is_never_above_the_declared_one_and_exact_to_a_64_bit_step(rate: float) -> None:
    threshold = int(Fraction(rate) * 2**64)
    for draw, included in ((threshold - 1, True), (threshold, False)):
        sampler = PoissonSampler(1, rate, lambda size, draw=draw: draw.to_bytes(size, "little"))  # type: ignore[misc]
        assert len(sampler.sample()) == int(included)


def test_rate_one_takes_every_record_and_no_records_give_an_empty_batch() -> None:
    assert PoissonSampler(5, 1.0).sample().tolist() == [0, 1, 2, 3, 4]
    assert PoissonSampler(0, 0.5).sample().tolist() == []


@pytest.mark.parametrize(("n_records", "rate"), [(-1, 0.5), (5, 0.0), (5, 1.5), (5, float("nan"))])
def test_impossible_samplers_are_refused(n_records: int, rate: float) -> None:
    with pytest.raises(ValueError, match="must"):
        PoissonSampler(n_records, rate)
