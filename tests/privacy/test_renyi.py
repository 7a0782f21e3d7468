"""The accounting of the distributed modes is an upper bound, and the formulas are the published ones."""

import itertools
import math
from dataclasses import replace
from decimal import Decimal, localcontext
from fractions import Fraction

import dp_accounting
import numpy as np
import pytest
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy import SubsampledGaussian, epsilon, renyi
from privacy.errors import BudgetExceeded
from privacy.mechanism import DistributedGaussian, Mechanism
from privacy.renyi import (
    ORDERS,
    RenyiFilter,
    best_order,
    calibrate_distributed,
    epsilon_distributed,
    filter_order,
    filtered_epsilon,
    rdp,
    rdp_curve,
    to_epsilon,
)

DELTA = 1e-5
SHARED = DistributedGaussian(
    sample_rate=0.064,
    noise_multiplier=2.0,
    steps=50,
    dimension=100_000,
    shares=8,
    grid=2.0**26,
    rounding="dithered",  # type: ignore[arg-type]
)
WHOLE = replace(SHARED, sample_rate=1.0, noise_multiplier=8.0)
SILO = replace(WHOLE, grid=2.0**12, rounding="conditional")
COARSE = replace(SILO, dimension=10_000, shares=64, noise_multiplier=0.5, grid=64.0)
"""Shares at the smallest deviation that is allowed, where every term of the bounds is largest."""


def _decimal(value: float | Fraction) -> Decimal:
    exact = Fraction(value)
    return Decimal(exact.numerator) / Decimal(exact.denominator)


def _unsampled(mechanism: DistributedGaussian, order: int) -> Decimal:
    """Kairouz, Liu and Steinke 2021 in fifty digits, from the fields of the mechanism."""
    pi = Decimal("3.14159265358979323846264338327950288419716939937510582097")
    grid, root = _decimal(mechanism.grid), Decimal(mechanism.dimension).sqrt()
    variance = (_decimal(mechanism.noise_multiplier) * grid) ** 2 / mechanism.shares
    tau = 10 * sum(((-2 * pi**2 * variance * k / (k + 1)).exp() for k in range(1, mechanism.shares)), start=Decimal(0))
    if mechanism.rounding == "dithered":
        sensitivity = grid * (1 + Decimal(2) ** -10)
        assert sensitivity >= grid + root
    else:
        likely = grid**2 + Decimal(mechanism.dimension) / 4 + grid + root / 2  # sqrt(2 log(1 / beta)) = 1
        sensitivity = min((grid + root) ** 2, likely).sqrt()
    distance = sensitivity / (mechanism.shares * variance).sqrt()
    return min(order * distance**2 / 2 + tau * mechanism.dimension, Decimal(order) / 2 * (distance + root * tau) ** 2)


def _published(mechanism: DistributedGaussian, order: int, factor: int = 3) -> Decimal:
    """One step, by Zhu and Wang 2019, theorem 5, in fifty digits: terms as printed there, nothing rearranged."""
    with localcontext() as context:
        context.prec = 50
        whole = _unsampled(mechanism, order)
        rate = _decimal(mechanism.sample_rate)
        if rate == 1:
            return whole
        rest = 1 - rate
        total = rest ** (order - 1) * (order * rate - rate + 1)
        total += math.comb(order, 2) * rate**2 * rest ** (order - 2) * _unsampled(mechanism, 2).exp()
        for j in range(3, order + 1):
            level = ((j - 1) * _unsampled(mechanism, j)).exp()
            total += factor * math.comb(order, j) * rest ** (order - j) * rate**j * level
        return min(whole, total.ln() / (order - 1))


CASES = [
    SHARED,
    WHOLE,
    SILO,
    COARSE,
    replace(SHARED, sample_rate=1e-5),
    replace(SHARED, sample_rate=0.9),
    replace(SHARED, noise_multiplier=0.5),
    replace(COARSE, sample_rate=0.01),
    replace(SHARED, shares=1),
]


def _agrees(computed: float, expected: Decimal) -> bool:
    return abs(computed / float(expected) - 1) < 1e-9


@pytest.mark.parametrize("mechanism", CASES)
@pytest.mark.parametrize("order", [2, 3, 7, 32])
def test_one_step_is_the_published_bound_to_nine_digits(mechanism: DistributedGaussian, order: int) -> None:
    assert _agrees(rdp(replace(mechanism, steps=1), order), _published(mechanism, order))


def test_control_the_same_comparison_sees_a_wrong_formula() -> None:
    one = replace(SHARED, steps=1)
    assert not _agrees(rdp(one, 7), _published(SHARED, 7, factor=1))
    assert _agrees(rdp(one, 2), _published(SHARED, 2, factor=1))
    without_root = replace(COARSE, steps=1)
    wrong = rdp(without_root, 7) * (COARSE.grid / COARSE.sensitivity) ** 2
    assert not _agrees(wrong, _published(COARSE, 7))
    for changed in (
        replace(one, shares=1),
        replace(one, dimension=10),
    ):  # neither matters: the noise is far from coarse
        assert _agrees(rdp(changed, 7), _published(SHARED, 7))


@pytest.mark.parametrize("sigma", [0.5, 0.6])
def test_the_correction_for_summing_shares_is_the_published_one_where_it_is_not_negligible(sigma: float) -> None:
    coarse = replace(COARSE, steps=1)
    object.__setattr__(coarse, "noise_multiplier", sigma * math.sqrt(64) / 64)  # the constructor would refuse it
    assert coarse.local_deviation == pytest.approx(sigma)
    assert _agrees(renyi._distributed(coarse, 5), _published(coarse, 5))
    least = 5 * coarse.sensitivity**2 / (2 * 64 * sigma**2)
    assert renyi._distributed(coarse, 5) > 1.001 * least


@pytest.mark.parametrize(("noise", "steps"), [(3.0, 1), (8.0, 50), (40.0, 500)])
def test_without_sampling_a_fine_grid_costs_what_a_gaussian_does(noise: float, steps: int) -> None:
    shared = replace(WHOLE, noise_multiplier=noise, steps=steps)
    for order in (2, 10, 100):
        gaussian = order * steps / (2 * noise**2)
        assert gaussian < rdp(shared, order) < gaussian * (1 + 2.0**-10) ** 2 * (1 + 1e-12)
    record = epsilon([SubsampledGaussian(1.0, noise, steps)], DELTA)
    assert record < epsilon_distributed([shared], [], DELTA) < 1.15 * record


@pytest.mark.parametrize(
    ("rate", "noise", "steps"),
    [(0.01, 0.8, 500), (0.064, 1.31, 50), (0.128, 8.39, 300), (0.5, 2.0, 10), (1.0, 4.24, 50)],
)
def test_epsilon_is_never_below_that_of_a_continuous_gaussian_of_the_same_size(
    rate: float, noise: float, steps: int
) -> None:
    record = epsilon([SubsampledGaussian(rate, noise, steps)], DELTA)
    assert record <= epsilon_distributed(
        [replace(SHARED, sample_rate=rate, noise_multiplier=noise, steps=steps)], [], DELTA
    )
    assert record <= epsilon_distributed([], [SubsampledGaussian(rate, noise, steps)], DELTA)


def test_control_noise_counted_by_the_share_or_steps_forgotten_fall_below_it() -> None:
    record = epsilon([SubsampledGaussian(1.0, 4.24, 50)], DELTA)
    shared = replace(WHOLE, noise_multiplier=4.24)
    assert epsilon_distributed([replace(shared, noise_multiplier=4.24 * math.sqrt(8))], [], DELTA) < record
    assert epsilon_distributed([replace(shared, steps=35)], [], DELTA) < record


@pytest.mark.parametrize("mechanism", [SubsampledGaussian(0.064, 1.31, 7), SubsampledGaussian(1.0, 4.0, 3)])
def test_local_mechanisms_have_the_curve_of_an_independent_implementation(mechanism: SubsampledGaussian) -> None:
    event = dp_accounting.GaussianDpEvent(mechanism.noise_multiplier)
    if mechanism.sample_rate < 1:
        event = dp_accounting.PoissonSampledDpEvent(mechanism.sample_rate, event)
    accountant = RdpAccountant(orders=list(ORDERS))
    accountant.compose(event, mechanism.steps)
    assert rdp_curve([mechanism]) == pytest.approx(accountant.rdp, rel=1e-8)
    assert to_epsilon(rdp_curve([mechanism]), DELTA) == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-8)


def test_a_sampled_discrete_law_that_can_be_summed_up_stays_below_the_bound() -> None:
    """One coordinate: the divergence itself, in both directions, of a sampled shift of a sum of four shares."""
    mechanism = replace(COARSE, dimension=1, shares=4, grid=8192.0, noise_multiplier=0.5, sample_rate=0.3, steps=1)
    mechanism = replace(mechanism, rounding="dithered")
    deviation, shift = mechanism.noise_multiplier * mechanism.grid, math.ceil(mechanism.grid + 1)
    x = np.arange(-16 * shift, 16 * shift)
    one, other = (
        -((x - s) ** 2) / (2 * deviation**2) - math.log(deviation * math.sqrt(2 * math.pi)) for s in (0, shift)
    )
    mixture = np.logaddexp(math.log(0.7) + one, math.log(0.3) + other)
    for order in (2, 3, 5, 9):
        for p, q in ((mixture, one), (one, mixture)):
            true = np.logaddexp.reduce(order * p - (order - 1) * q) / (order - 1)
            assert true < rdp(mechanism, order)


def test_epsilon_rises_with_steps_rate_and_dimension_and_falls_with_noise_and_delta() -> None:
    def spent(mechanism: DistributedGaussian, delta: float = DELTA) -> float:
        return epsilon_distributed([mechanism], [], delta)

    for base in (SHARED, SILO):
        assert spent(base) < spent(replace(base, steps=51))
        assert spent(base) < spent(replace(base, noise_multiplier=base.noise_multiplier * 0.99))
        assert spent(base) < spent(base, 1e-6)
        assert spent(base) <= spent(replace(base, dimension=200_000))
    assert spent(SILO) < spent(replace(SILO, dimension=200_000))
    rates = [spent(replace(SHARED, sample_rate=rate)) for rate in (0.001, 0.01, 0.064, 0.2, 0.5, 0.9, 0.999, 1.0)]
    assert all(first <= second for first, second in itertools.pairwise(rates))
    assert rates[0] < rates[3] < rates[-1]


def test_small_rates_and_large_orders_neither_vanish_nor_overflow() -> None:
    for rate in (1e-9, 1e-4, 0.5):
        for noise in (0.3, 500.0):
            curve = rdp_curve([replace(SHARED, sample_rate=rate, noise_multiplier=noise)])
            assert np.isfinite(curve).all()
            assert (curve > 0).all()
            assert (np.diff(curve) >= 0).all()


def test_a_history_counts_the_same_in_any_order_and_any_split() -> None:
    local = SubsampledGaussian(0.05, 1.2, 60)
    whole = epsilon_distributed([SHARED, SILO], [local], DELTA)
    parts: list[DistributedGaussian] = [
        replace(SILO, steps=25),
        *[replace(SHARED, steps=5)] * 10,
        replace(SILO, steps=25),
    ]
    split = epsilon_distributed(parts, [replace(local, steps=20)] * 3, DELTA)
    assert split == pytest.approx(whole, rel=1e-12)
    assert rdp_curve([SHARED, SILO, local]) == pytest.approx(
        rdp_curve([SHARED]) + rdp_curve([SILO]) + rdp_curve([local]), rel=1e-12
    )
    alone = [epsilon_distributed([SHARED], [], DELTA), epsilon_distributed([SILO], [], DELTA)]
    assert max(alone) < epsilon_distributed([SHARED, SILO], [], DELTA) < sum(alone) + 1


def test_nothing_run_costs_nothing() -> None:
    assert epsilon_distributed([], [], DELTA) == 0.0


def test_an_epsilon_that_the_conversion_would_make_negative_is_zero() -> None:
    assert to_epsilon(np.zeros(len(ORDERS)), 0.1) == 0.0


@pytest.mark.parametrize("rounding", ["dithered", "conditional"])
def test_calibration_is_tight_and_on_the_safe_side(rounding: str) -> None:
    rate = 0.064 if rounding == "dithered" else 1.0
    common = {"sample_rate": rate, "steps": 50, "dimension": 50_000, "shares": 8, "grid": 2.0**22, "rounding": rounding}
    noise = calibrate_distributed(2.0, DELTA, **common)  # type: ignore[arg-type]
    mechanism = DistributedGaussian(noise_multiplier=noise, **common)  # type: ignore[arg-type]
    assert epsilon_distributed([mechanism], [], DELTA) <= 2.0
    assert epsilon_distributed([replace(mechanism, noise_multiplier=noise * 0.9998)], [], DELTA) > 2.0
    before = calibrate_distributed.cache_info().hits
    assert calibrate_distributed(2.0, DELTA, **common) == noise  # type: ignore[arg-type]
    assert calibrate_distributed.cache_info().hits == before + 1


def test_calibration_never_goes_below_the_noise_that_the_grid_needs() -> None:
    noise = calibrate_distributed(
        1e6, DELTA, sample_rate=1.0, steps=1, dimension=1, shares=100, grid=50.0, rounding="conditional"
    )
    assert 4 * math.sqrt(100) / 50 <= noise < 1.001 * 4 * math.sqrt(100) / 50


@pytest.mark.parametrize("target", [0.0, -1.0, float("nan"), float("inf"), 1e-9])
def test_a_target_that_is_no_number_or_out_of_reach_is_refused(target: float) -> None:
    with pytest.raises(ValueError, match="epsilon"):
        calibrate_distributed(
            target, DELTA, sample_rate=1.0, steps=50, dimension=10, shares=4, grid=2.0**20, rounding="dithered"
        )


def test_orders_and_deltas_out_of_range_are_refused() -> None:
    for order in (1, 0, -3):
        with pytest.raises(ValueError, match="order"):
            rdp(SHARED, order)
        with pytest.raises(ValueError, match="order"):
            RenyiFilter(order, 1.0, DELTA)
    with pytest.raises(ValueError, match="epsilon_max"):
        RenyiFilter(8, float("nan"), DELTA)
    with pytest.raises(ValueError, match="plan"):
        best_order([], DELTA)
    for call in (
        lambda: epsilon_distributed([], [], 0.0),
        lambda: filtered_epsilon([], 1.0, 8),
        lambda: RenyiFilter(8, 1.0, 0.0),
        lambda: filter_order(0.0, 1.0),
        lambda: best_order([SHARED], 0.0),
    ):
        with pytest.raises(ValueError, match="delta"):
            call()


def test_the_filter_admits_exactly_up_to_its_budget() -> None:
    step = SubsampledGaussian(1.0, 4.0, 1)  # 8 / 32 at order 8: exact in binary
    budget = 20 * 0.25 + math.log(1 / DELTA) / 7
    exact, short = RenyiFilter(8, budget, DELTA), RenyiFilter(8, math.nextafter(budget, 0), DELTA)
    for count in range(1, 21):
        exact.charge(step)
        if count < 20:
            short.charge(step)
    assert exact.epsilon == budget
    for full in (exact, short):
        before = full.epsilon
        assert not full.admits(step)
        with pytest.raises(BudgetExceeded):
            full.charge(step)
        assert full.epsilon == before


def _mechanisms() -> st.SearchStrategy[Mechanism]:
    local = st.builds(
        SubsampledGaussian,
        sample_rate=st.sampled_from([0.01, 0.1, 1.0]),
        noise_multiplier=st.sampled_from([0.7, 1.5, 6.0, 20.0]),
        steps=st.integers(1, 40),
    )
    shared = st.builds(
        lambda noise, steps: replace(WHOLE, noise_multiplier=noise, steps=steps),
        st.sampled_from([2.0, 10.0, 40.0]),
        st.integers(1, 40),
    )
    return st.one_of(local, shared)


@settings(deadline=None, max_examples=60)
@given(offered=st.lists(_mechanisms(), max_size=30), order=st.sampled_from([2, 5, 12, 32]), budget=st.floats(0.5, 20.0))
def test_the_filter_never_admits_more_than_the_budget_whatever_comes_next(
    offered: list[Mechanism], order: int, budget: float
) -> None:
    admitted: list[Mechanism] = []
    running = RenyiFilter(order, budget, DELTA)
    for mechanism in offered:
        if running.admits(mechanism):
            running.charge(mechanism)
            admitted.append(mechanism)
        else:
            assert filtered_epsilon([*admitted, mechanism], DELTA, order) > budget
    divergence = sum(Fraction(rdp(mechanism, order)) for mechanism in admitted)
    allowed = Fraction(budget) - Fraction(math.log(1 / DELTA)) / (order - 1)
    assert not admitted or divergence <= allowed + Fraction(1, 10**12)
    if admitted:
        assert to_epsilon(rdp_curve(admitted), DELTA) <= budget


def test_control_the_best_order_afterwards_admits_more_than_the_order_chosen_in_advance() -> None:
    budget, round_ = 8.0, SubsampledGaussian(0.01, 0.7, 50)
    running = RenyiFilter(filter_order(DELTA, budget), budget, DELTA)
    admitted = 0
    while running.admits(round_):
        running.charge(round_)
        admitted += 1
    hindsight: list[Mechanism] = [round_] * 36
    assert min(filtered_epsilon(hindsight, DELTA, order) for order in ORDERS) <= budget
    assert filtered_epsilon(hindsight, DELTA, filter_order(DELTA, budget)) > budget
    assert 0 < admitted < 36


@pytest.mark.parametrize("budget", [0.5, 1.0, 4.0, 12.0])
def test_the_order_that_follows_from_the_budget_is_the_best_for_noise_that_just_spends_it(budget: float) -> None:
    order = filter_order(DELTA, budget)
    rate = (budget - math.log(1 / DELTA) / (order - 1)) / order
    plan = [SubsampledGaussian(1.0, math.sqrt(1 / (2 * rate)), 1)]
    assert filtered_epsilon(plan, DELTA, order) == pytest.approx(budget, rel=1e-9)
    assert filtered_epsilon(plan, DELTA, best_order(plan, DELTA)) == pytest.approx(budget, rel=1e-9)
    assert all(filtered_epsilon(plan, DELTA, other) >= budget * (1 - 1e-9) for other in ORDERS)


def test_the_order_of_an_infinite_budget_exists() -> None:
    assert filter_order(DELTA, float("inf")) in ORDERS
