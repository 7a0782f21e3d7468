"""What a site adds to the ring: rounding moves no further than is accounted for, and the shares add up to the noise."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from privacy import Mode, PrivacyParameters, PrivacyRefused, SubsampledGaussian, epsilon
from privacy.audit import epsilon_lower_bound_from_rates
from privacy.discrete_gaussian import DiscreteGaussian
from privacy.distributed import noisy_sum, noisy_update, share_sigma
from privacy.mechanism import DistributedGaussian, NoiseShares, rounded_square_bound
from tests.privacy.checks import SURPRISE, check_gaussian
from tests.privacy.conftest import PARAMS

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

DIMENSION, SHARES, NORM = 200, 4, 0.5
RECORDS = replace(
    PARAMS,
    mode=Mode.RECORD_DISTRIBUTED,
    steps_per_round=1,
    noise_multiplier=2.0,
    max_grad_norm=NORM,
    noise_shares=NoiseShares(dimension=DIMENSION, shares=SHARES, grid=2.0**14, clamp=2**40),
)
SITE_DIMENSION = 50
SITES = replace(
    RECORDS,
    mode=Mode.SILO_DISTRIBUTED,
    unit="site",
    noise_shares=NoiseShares(dimension=SITE_DIMENSION, shares=SHARES, grid=100.0, clamp=2**40),
)


def silent(size: int, sigma: Fraction, randomness: object) -> Integers:
    return np.zeros(size, dtype=np.int64)


def with_shares(params: PrivacyParameters, **changes: float) -> PrivacyParameters:
    assert params.noise_shares is not None
    return replace(params, noise_shares=replace(params.noise_shares, **changes))


def unchecked(params: PrivacyParameters, **changes: float) -> PrivacyParameters:
    """Parameters that the constructor would refuse."""
    assert params.noise_shares is not None
    shares = replace(params.noise_shares)
    for name, value in changes.items():
        object.__setattr__(shares, name, value)
    copied = replace(params)
    object.__setattr__(copied, "noise_shares", shares)
    return copied


# Sensitivity of the dithered rounding

Round = Callable[[Floats, bytes], Integers]
"""Maps clipped gradients (n, d) and the key of the dither to the rounded vector (d,)."""


def dithered(params: PrivacyParameters) -> Round:
    return lambda gradients, key: noisy_sum(
        gradients.sum(axis=0), params, SHARES, randomness=lambda size: key[:size], noise=silent
    )


def check_sensitivity(round_sum: Round, grid: float) -> None:
    """Assert that one record of norm C, added in front, moves the rounded vector by grid * (1 + 2^-10) at most."""
    rng = np.random.default_rng(1)
    for case in range(400):
        key = rng.bytes(32)
        others = rng.normal(size=(case % 4, DIMENSION)) * 10.0 ** rng.uniform(-6, 0)
        record = rng.normal(size=DIMENSION) * (rng.random(DIMENSION) < rng.choice([0.01, 0.3, 1.0]))
        if case % 3 == 0:
            record = rng.choice([-1.0, 1.0], DIMENSION)
        record *= NORM / max(float(np.linalg.norm(record)), 1e-9)
        if case % 5 == 0:  # a sum beside which this very dither rounds every coordinate of the record outwards
            step = NORM / grid
            threshold = step * rng.integers(-50, 50, DIMENSION) - step * dither_of(key)
            others = (threshold + step * np.where(record > 0, -1, 1) * 1e-6)[None]
        _assert_close(round_sum, others, record, key, grid)
    many = np.full((16_000, DIMENSION), 0.5 * NORM / grid)  # half a step of the grid in each coordinate
    _assert_close(round_sum, many, np.full(DIMENSION, NORM / math.sqrt(DIMENSION)), rng.bytes(32), grid)


def dither_of(key: bytes) -> Floats:
    """The dither of a key, read off the rounding: a binary search for the smallest value that is rounded up."""
    exact = with_shares(RECORDS, grid=2.0**14)
    low, high = np.zeros(DIMENSION), np.ones(DIMENSION)
    for _ in range(30):
        middle = (low + high) / 2
        up = dithered(exact)((middle * NORM / 2.0**14)[None], key) >= 1
        low, high = np.where(up, low, middle), np.where(up, middle, high)
    return 1 - high


def _assert_close(round_sum: Round, others: Floats, record: Floats, key: bytes, grid: float) -> None:
    without, with_it = round_sum(others, key), round_sum(np.concatenate([record[None], others]), key)
    moved = float(np.linalg.norm((with_it - without).astype(np.float64)))
    assert moved <= grid * (1 + 2.0**-10), "one record moves the rounded sum further than is accounted for"


def test_one_record_moves_the_rounded_sum_by_no_more_than_the_mechanism_states() -> None:
    grid = 2.0**14
    assert isinstance(RECORDS.mechanism, DistributedGaussian)
    assert RECORDS.mechanism.sensitivity == grid * (1 + 2.0**-10)
    check_sensitivity(dithered(RECORDS), grid)


def _by_record(gradients: Floats, key: bytes) -> Integers:
    """A dither of its own for each term; one term more, and all the others are drawn anew."""
    draws = np.random.default_rng([len(gradients), int.from_bytes(key, "big")]).random(gradients.shape)
    rounded: Integers = np.floor(gradients * 2.0**14 / NORM + draws).sum(axis=0).astype(np.int64)
    return rounded


def _in_float32(gradients: Floats, key: bytes) -> Integers:
    """Sums kept in single precision, which at a fine grid loses whole steps of it."""
    total = np.cumsum(gradients.astype(np.float32) + np.float32(300), axis=0, dtype=np.float32)
    last = total[-1] if len(total) else np.zeros(DIMENSION, dtype=np.float32)
    return dithered(RECORDS)(last.astype(np.float64)[None], key)


@pytest.mark.parametrize(
    ("broken", "grid"),
    [
        (dithered(unchecked(RECORDS, grid=4.0)), 4.0),
        (dithered(unchecked(RECORDS, grid=1000.0)), 1000.0),
        (_by_record, 2.0**14),
        (_in_float32, 2.0**14),
        (lambda gradients, key: dithered(RECORDS)(gradients * 1.01, key), 2.0**14),
    ],
    ids=["a grid of 4", "a grid of 1000", "a dither for each record", "sums in float32", "clipped too long"],
)
def test_control_rounding_that_is_too_coarse_or_done_by_record_fails_the_same_check(broken: Round, grid: float) -> None:
    with pytest.raises(AssertionError, match="further than"):
        check_sensitivity(broken, grid)


def check_cut(cut: Callable[[Floats], Integers]) -> None:
    """Assert that what has been cut lies in its range and never further apart than before."""
    rng = np.random.default_rng(2)
    for _ in range(300):
        one = rng.normal(size=DIMENSION) * 10.0 ** rng.uniform(-2, 3)
        other = one + rng.normal(size=DIMENSION) * 10.0 ** rng.uniform(-2, 2)
        free = [dithered(RECORDS)(vector[None], bytes(32)) for vector in (one, other)]
        bound = [cut(vector) for vector in (one, other)]
        assert max(abs(vector).max() for vector in bound) <= 2**16, "beyond the range that the ring has room for"
        apart = [float(np.linalg.norm((pair[1] - pair[0]).astype(np.float64))) for pair in (free, bound)]
        assert apart[1] <= apart[0], "cutting moved two vectors further apart"


def test_cutting_to_the_range_of_the_ring_moves_no_two_vectors_further_apart() -> None:
    cut = dithered(with_shares(RECORDS, clamp=2**16))
    check_cut(lambda vector: cut(vector[None], bytes(32)))


def test_control_wrapping_around_instead_of_cutting_fails_the_same_check() -> None:
    def wrapped(vector: Floats) -> Integers:
        return (dithered(RECORDS)(vector[None], bytes(32)) + 2**16) % 2**17 - 2**16

    with pytest.raises(AssertionError, match="further apart"):
        check_cut(wrapped)


# Conditional rounding of a whole update


def check_rounded(round_update: Callable[[Floats], Integers], params: PrivacyParameters) -> None:
    """Assert that no rounded update is longer than accounted for, and that on average rounding changes little."""
    assert isinstance(params.mechanism, DistributedGaussian)
    rng = np.random.default_rng(3)
    for _ in range(4):
        update = rng.normal(size=SITE_DIMENSION)
        update *= NORM / float(np.linalg.norm(update))
        draws = np.stack([round_update(update) for _ in range(2500)])
        # 6.5 deviations of the mean, 0.065; refusing the longest draws costs another 0.03.
        assert abs(draws.mean(axis=0) - update * 100 / NORM).max() < 0.1, "rounding is biased"
        longest = math.sqrt(float(np.square(draws).sum(axis=1).max()))
        assert longest <= params.mechanism.sensitivity, "a rounded update is longer than is accounted for"


def _round_site(update: Floats) -> Integers:
    return noisy_update(update, SITES, SHARES, noise=silent)


def test_conditional_rounding_keeps_its_bound_and_hardly_any_bias() -> None:
    check_rounded(_round_site, SITES)


@pytest.mark.parametrize("way", ["unconditional", "floor"])
def test_control_rounding_without_a_condition_or_without_a_dither_fails_the_same_check(way: str) -> None:
    rng = np.random.default_rng(4)

    def broken(update: Floats) -> Integers:
        dither = rng.random(SITE_DIMENSION) if way == "unconditional" else np.zeros(SITE_DIMENSION)
        return np.floor(update * 100 / NORM + dither).astype(np.int64)

    with pytest.raises(AssertionError, match="longer than" if way == "unconditional" else "biased"):
        check_rounded(broken, SITES)


def test_a_long_update_is_clipped_a_short_one_is_not_and_a_broken_one_counts_as_zero() -> None:
    direction = np.full(SITE_DIMENSION, 1 / math.sqrt(SITE_DIMENSION))
    for norm, expected in ((1000 * NORM, 100.0), (0.3 * NORM, 30.0), (0.0, 0.0)):
        rounded = _round_site(direction * norm)
        assert abs(rounded - direction * expected).max() < 1
    for bad in (math.nan, math.inf, -math.inf):
        spoiled = direction.copy()
        spoiled[3] = bad
        assert not _round_site(spoiled).any()


def test_rounding_that_never_meets_its_bound_is_refused() -> None:
    update = np.full(SITE_DIMENSION, NORM / math.sqrt(SITE_DIMENSION))
    bound = rounded_square_bound(100.0, SITE_DIMENSION)
    assert math.sqrt(bound) == SITES.mechanism.sensitivity  # type: ignore[union-attr]
    refusals = []
    for number in range(40):  # the generator repeats itself, so a first refusal is the last word
        key = number.to_bytes(32, "big")
        try:
            rounded = noisy_update(update, SITES, SHARES, randomness=lambda size, key=key: key[:size], noise=silent)
            assert float(np.square(rounded).sum()) <= bound
        except PrivacyRefused as refusal:
            refusals.append(str(refusal))
    assert 0 < len(refusals) < 40
    assert all("generator of randomness is broken" in refusal for refusal in refusals)


# The shares of the noise

NOISY_DIMENSION = 20_000
LOUD = with_shares(RECORDS, dimension=NOISY_DIMENSION, grid=2.0**30)
TARGET = 2.0 * 2.0**30
"""Standard deviation of the whole noise in steps of the grid."""

Share = Callable[[int], Integers]
"""Maps the number of honest survivors to what one site sends for an empty batch."""


def one_share(survivors: int) -> Integers:
    return noisy_sum(np.zeros(NOISY_DIMENSION), LOUD, survivors)


def of_update(survivors: int) -> Integers:
    params = with_shares(replace(LOUD, mode=Mode.SILO_DISTRIBUTED, unit="site"), clamp=2**40)
    return noisy_update(np.zeros(NOISY_DIMENSION), params, survivors)


def check_shares(share: Share) -> None:
    """Assert the law of one share, that shares are independent, and that together they are the noise accounted for."""
    for survivors in (1, 3, SHARES):
        each = [share(survivors).astype(np.float64) for _ in range(survivors + 1)]
        for draws in each:
            check_gaussian(draws, TARGET / math.sqrt(survivors))
        for first, second in itertools.pairwise(each):
            check_gaussian((first - second) / math.sqrt(2), TARGET / math.sqrt(survivors))
        whole = sum(each[:survivors], start=np.zeros(NOISY_DIMENSION))
        check_gaussian(whole, TARGET)
        statistic = float(np.square(whole).sum()) / TARGET**2
        assert statistic > chi2.ppf(SURPRISE, NOISY_DIMENSION), "the sum is quieter than accounted for"


@pytest.mark.parametrize("share", [one_share, of_update])
def test_each_share_has_its_part_of_the_noise_and_all_of_them_the_whole(share: Share) -> None:
    check_shares(share)


_REPEATED = bytes(range(32))


@pytest.mark.parametrize(
    "broken",
    [
        lambda survivors: one_share(SHARES),
        lambda survivors: one_share(survivors) * 97 // 100,
        lambda survivors: noisy_sum(np.zeros(NOISY_DIMENSION), LOUD, survivors, randomness=lambda n: _REPEATED[:n]),
        lambda survivors: noisy_sum(np.zeros(NOISY_DIMENSION), LOUD, survivors, noise=silent),
    ],
    ids=["as if all shared it", "three per cent short", "the same in every call", "none"],
)
def test_control_noise_that_is_short_or_repeats_fails_the_same_check(broken: Share) -> None:
    with pytest.raises(AssertionError):
        check_shares(broken)


@settings(deadline=None)
@given(
    noise=st.floats(0.5, 300), grid=st.floats(2.0**14, 2.0**40), survivors=st.integers(1, 12), beyond=st.integers(0, 9)
)
def test_the_parameter_of_a_share_is_rounded_up_and_by_less_than_a_millionth_of_a_step(
    noise: float, grid: float, survivors: int, beyond: int
) -> None:
    params = with_shares(replace(RECORDS, noise_multiplier=noise), grid=grid, shares=survivors + beyond)
    sigma = share_sigma(params, survivors)
    needed = (Fraction(noise) * Fraction(grid)) ** 2
    assert sigma**2 * survivors >= needed
    assert (sigma - Fraction(1, 2**20)) ** 2 * survivors <= needed


# Refusals


def test_more_shares_than_the_mechanism_is_charged_for_are_refused() -> None:
    for survivors in (0, -1, SHARES + 1):
        with pytest.raises(PrivacyRefused, match=f"up to {SHARES} shares, not {survivors}"):
            noisy_sum(np.zeros(DIMENSION), RECORDS, survivors)
        with pytest.raises(PrivacyRefused, match="larger than the study allows"):
            noisy_update(np.zeros(SITE_DIMENSION), SITES, survivors)


def test_noise_of_another_mode_or_for_another_dimension_is_refused() -> None:
    with pytest.raises(PrivacyRefused, match="belongs to record-distributed, not to silo-distributed"):
        noisy_sum(np.zeros(SITE_DIMENSION), SITES, 2)
    with pytest.raises(PrivacyRefused, match="belongs to silo-distributed, not to record-distributed"):
        noisy_update(np.zeros(DIMENSION), RECORDS, 2)
    for params in (PARAMS, replace(PARAMS, mode=Mode.UNSAFE_NO_DP)):
        with pytest.raises(PrivacyRefused, match="has no shares of noise"):
            noisy_sum(np.zeros(DIMENSION), params, 2)
        with pytest.raises(PrivacyRefused, match="has no shares of noise"):
            share_sigma(params, 2)
    for shape in ((DIMENSION + 1,), (1, DIMENSION), ()):
        with pytest.raises(PrivacyRefused, match=f"where {DIMENSION} coordinates"):
            noisy_sum(np.zeros(shape), RECORDS, 2)


# Why one step a round: with two, the state between them is protected by one site's share alone

SITES_TOGETHER, RUNS = 64, 300_000
CONFIDENCE = 1 - 1e-6


def _rate_of_flips(record_is_there: bool, own_deviation: float) -> int:
    """Two steps of one site, and how often the released sum says that the state had moved.

    In step 1 the record alone moves the state, by the clipping norm 1. In step 2 the clipped gradients of 63 others
    point up where the state is past one half, and down where it is not. Of step 2 the sum over all sites is released,
    with the noise of all of them.
    """
    steps_of_grid = 2**12
    state = DiscreteGaussian(Fraction(own_deviation) * steps_of_grid).sample(RUNS) + steps_of_grid * record_is_there
    others = np.where(state > steps_of_grid // 2, 63, -63) * steps_of_grid
    return int((others + DiscreteGaussian(steps_of_grid).sample(RUNS) > 0).sum())


def _epsilon_shown(own_deviation: float) -> float:
    found, wrongly = (_rate_of_flips(there, own_deviation) for there in (True, False))
    return epsilon_lower_bound_from_rates(
        true_positives=found,
        positives=RUNS,
        false_positives=wrongly,
        negatives=RUNS,
        delta=1e-5,
        confidence=CONFIDENCE,
    )


def test_two_steps_with_shared_noise_leak_more_than_the_noise_of_the_sum_would_allow() -> None:
    claimed = epsilon([SubsampledGaussian(1.0, 1.0, 2)], 1e-5)
    assert claimed == pytest.approx(6.57, abs=0.02)
    assert _epsilon_shown(1 / math.sqrt(SITES_TOGETHER)) > claimed + 1


def test_control_the_same_attack_shows_less_than_is_claimed_where_each_site_adds_all_the_noise() -> None:
    assert 0 < _epsilon_shown(1.0) < epsilon([SubsampledGaussian(1.0, 1.0, 2)], 1e-5)


@pytest.mark.parametrize("steps", [2, 64])
def test_more_than_one_step_a_round_is_refused_where_records_share_the_noise(steps: int) -> None:
    with pytest.raises(ValueError, match=f"exactly one step a round, not {steps}: with more, the state between them"):
        replace(RECORDS, steps_per_round=steps)
    assert replace(SITES, steps_per_round=steps).mechanism.steps == 1  # a site's whole update has one noise
