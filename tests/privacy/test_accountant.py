"""Three accountants and a closed form must tell the same epsilon."""

import itertools
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from privacy import (
    SubsampledGaussian,
    accountant,
    calibrate_noise_multiplier,
    epsilon,
    epsilon_prv,
    epsilon_rdp,
    renyi,
)
from privacy.mechanism import DistributedGaussian, Mechanism, Rounding

GRID = [(0.01, 0.8, 500), (0.064, 1.12, 500), (0.128, 4.56, 300), (0.2, 2.0, 20), (1.0, 8.0, 40)]

# sample rate, steps, delta: noise multiplier, to two decimals, for epsilon 1, 2, 4 and 8
PUBLISHED = [
    (0.128, 300, 1e-5, (8.39, 4.56, 2.57, 1.54)),
    (0.064, 500, 1e-5, (5.45, 3.01, 1.75, 1.12)),
    (0.064, 50, 1e-5, (2.03, 1.31, 0.92, 0.68)),
    (0.032, 500, 1e-5, (2.83, 1.65, 1.08, 0.78)),
    (0.0256, 1000, 1e-5, (3.15, 1.81, 1.14, 0.82)),
    (0.01024, 2000, 2e-6, (2.04, 1.24, 0.87, 0.67)),
]


WIDE_GRID = [
    (rate, noise, steps)
    for rate, noises in (
        (0.004, (0.7, 1.0)),
        (0.01, (0.8, 1.1)),
        (0.0256, (1.14, 1.81)),
        (0.064, (1.75, 3.01)),
        (0.2, (4.0, 6.0)),
    )
    for noise in noises
    for steps in (20, 200, 500)
]
"""Thirty rows, epsilon from 0.16 to 5.1."""


@pytest.mark.parametrize(("rate", "noise", "steps"), GRID)
def test_the_independent_accountants_agree(rate: float, noise: float, steps: int) -> None:
    _check_agreement(rate, noise, steps, looseness=1.3)


@pytest.mark.parametrize(("rate", "noise", "steps"), WIDE_GRID)
def test_the_independent_accountants_agree_over_thirty_settings(rate: float, noise: float, steps: int) -> None:
    _check_agreement(rate, noise, steps, looseness=float("inf"))  # far off where few steps cost little


def test_the_wide_grid_has_thirty_rows_from_loud_to_quiet() -> None:
    values = [epsilon([SubsampledGaussian(*row)], 1e-5) for row in WIDE_GRID]
    assert len(set(WIDE_GRID)) == 30
    assert min(values) < 0.2
    assert max(values) > 5


def test_control_an_accountant_of_another_relation_or_without_sampling_fails_the_same_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    genuine = accountant.epsilon_prv
    others: dict[str, Callable[[SubsampledGaussian], SubsampledGaussian]] = {
        "replace-one": lambda row: replace(row, noise_multiplier=row.noise_multiplier / 2),
        "a tenth more steps": lambda row: replace(row, steps=row.steps + row.steps // 10),
        "no sampling": lambda row: replace(row, sample_rate=1.0, steps=20),
    }
    for change in others.values():
        with monkeypatch.context() as patch:
            patch.setitem(
                globals(), "epsilon_prv", lambda rows, delta, change=change: genuine([change(r) for r in rows], delta)
            )
            with pytest.raises(AssertionError):
                _check_agreement(0.064, 1.75, 500, looseness=float("inf"))


def _check_agreement(rate: float, noise: float, steps: int, *, looseness: float) -> None:
    history = [SubsampledGaussian(rate, noise, steps)]
    record = epsilon(history, 1e-5)
    assert abs(epsilon_prv(history, 1e-5) - record) <= 0.015
    assert record <= epsilon_rdp(history, 1e-5) <= looseness * record


@pytest.mark.parametrize(("rate", "steps", "delta", "noises"), PUBLISHED)
def test_the_accountant_of_record_meets_the_published_table(
    rate: float, steps: int, delta: float, noises: tuple[float, ...]
) -> None:
    for target, noise in zip((1.0, 2.0, 4.0, 8.0), noises, strict=True):
        above, below = (epsilon([SubsampledGaussian(rate, noise + slack, steps)], delta) for slack in (-0.007, 0.007))
        assert below <= target <= above


def _exact_gaussian(noise: float, steps: int, delta: float) -> float:
    """Balle and Wang 2018, theorem 8, for a sensitivity of one."""
    mu = steps**0.5 / noise
    return float(
        brentq(lambda e: norm.cdf(mu / 2 - e / mu) - norm.cdf(-mu / 2 - e / mu) * 2.718281828459045**e - delta, 0, 200)
    )


@pytest.mark.parametrize(("noise", "steps"), [(1.0, 1), (3.0, 50), (20.0, 500)])
def test_without_subsampling_the_closed_form_is_met_from_above(noise: float, steps: int) -> None:
    exact = _exact_gaussian(noise, steps, 1e-5)
    assert exact <= epsilon([SubsampledGaussian(1.0, noise, steps)], 1e-5) <= exact + 0.01


def test_epsilon_rises_with_steps_and_rate_and_falls_with_noise_and_delta() -> None:
    base = epsilon([SubsampledGaussian(0.05, 1.2, 100)], 1e-5)
    assert base < epsilon([SubsampledGaussian(0.05, 1.2, 101)], 1e-5)
    assert base < epsilon([SubsampledGaussian(0.051, 1.2, 100)], 1e-5)
    assert base < epsilon([SubsampledGaussian(0.05, 1.19, 100)], 1e-5)
    assert base < epsilon([SubsampledGaussian(0.05, 1.2, 100)], 1e-6)


def test_epsilon_falls_with_noise_across_the_changes_of_grid() -> None:
    noises = (1.9, 1.99, 2.0, 2.1, 3.9, 3.99, 4.0, 4.1)
    values = [epsilon([SubsampledGaussian(0.02, noise, 400)], 1e-5) for noise in noises]
    assert all(first > second for first, second in itertools.pairwise(values))


def test_a_history_counts_the_same_in_any_order_and_any_split() -> None:
    one, other = SubsampledGaussian(0.05, 1.2, 60), SubsampledGaussian(0.1, 2.5, 40)
    whole = epsilon([one, other], 1e-5)
    parts = [SubsampledGaussian(0.1, 2.5, 10)] * 4 + [SubsampledGaussian(0.05, 1.2, 20)] * 3
    assert epsilon(parts, 1e-5) == whole == epsilon([other, one], 1e-5)
    assert max(epsilon([one], 1e-5), epsilon([other], 1e-5)) < whole < epsilon([one], 1e-5) + epsilon([other], 1e-5)


def test_many_equal_rounds_cost_one_composition_and_a_repeated_question_none() -> None:
    accountant._one_step.cache_clear()
    accountant._composed.cache_clear()
    rounds = [SubsampledGaussian(0.031, 1.31, 7)] * 150
    first = epsilon(rounds, 1e-5)
    assert epsilon(rounds, 1e-5) == first == epsilon([SubsampledGaussian(0.031, 1.31, 1050)], 1e-5)
    assert (accountant._one_step.cache_info().misses, accountant._composed.cache_info().misses) == (1, 1)


def test_nothing_run_costs_nothing() -> None:
    assert epsilon([], 1e-5) == epsilon_rdp([], 1e-5) == epsilon_prv([], 1e-5) == 0.0


def test_calibration_is_tight_and_on_the_safe_side() -> None:
    noise = calibrate_noise_multiplier(2.0, 1e-5, 0.064, 50)
    assert epsilon([SubsampledGaussian(0.064, noise, 50)], 1e-5) <= 2.0
    assert epsilon([SubsampledGaussian(0.064, noise * 0.999, 50)], 1e-5) > 2.0


def test_a_calibration_that_was_made_before_composes_nothing_anew() -> None:
    first = calibrate_noise_multiplier(3.0, 1e-5, 0.071, 40)
    before = accountant._epsilon_pld.cache_info()
    assert calibrate_noise_multiplier(3.0, 1e-5, 0.071, 40) == first
    after = accountant._epsilon_pld.cache_info()
    assert (after.misses, after.hits > before.hits) == (before.misses, True)


def test_a_target_that_is_no_number_is_refused() -> None:
    for target in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="target_epsilon"):
            calibrate_noise_multiplier(target, 1e-5, 0.1, 10)


SHARED = DistributedGaussian(
    sample_rate=0.064,
    noise_multiplier=2.0,
    steps=1,
    dimension=10_000,
    shares=4,
    grid=2.0**24,
    rounding=Rounding.DITHERED,
)
LOCAL = SubsampledGaussian(0.05, 2.0, 10)
QUIETER = SubsampledGaussian(0.05, 3.0, 10)


def test_rounds_of_one_mechanism_cost_their_composition_whatever_the_budget() -> None:
    for budget in (0.5, 8.0, float("inf")):
        local = [LOCAL, replace(LOCAL, steps=7), LOCAL]
        assert accountant.spent(local, 1e-5, budget) == accountant.composition(local, 1e-5) == epsilon(local, 1e-5)
        assert accountant.name(local, 1e-5, budget) == accountant.ACCOUNTANT
        shared = [SHARED] * 5
        assert accountant.spent(shared, 1e-5, budget) == renyi.epsilon_distributed(shared, [], 1e-5)
        assert accountant.name(shared, 1e-5, budget) == accountant.DISTRIBUTED_ACCOUNTANT
        assert accountant.spent([], 1e-5, budget) == 0.0


@pytest.mark.parametrize("history", [[LOCAL, QUIETER], [SHARED, LOCAL], [SHARED, replace(SHARED, shares=5)]])
@pytest.mark.parametrize("budget", [0.4, 2.0, 8.0, float("inf")])
def test_rounds_of_differing_mechanisms_cost_what_the_filter_says_and_never_less_than_composition(
    history: list[Mechanism], budget: float
) -> None:
    order = renyi.filter_order(1e-5, budget)
    for rounds in (history, history * 4, [*history, history[0]]):
        spent = accountant.spent(rounds, 1e-5, budget)
        filtered = renyi.filtered_epsilon(rounds, 1e-5, order)
        assert spent == max(filtered, accountant.composition(rounds, 1e-5)) >= filtered
        assert accountant.name(rounds, 1e-5, budget) == f"{accountant.ADAPTIVE_ACCOUNTANT} at order {order}"


def test_of_filter_and_composition_the_larger_one_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renyi, "filtered_epsilon", lambda *_: 0.01)
    history: list[Mechanism] = [LOCAL, QUIETER]
    assert accountant.spent(history, 1e-5, 8.0) == accountant.composition(history, 1e-5) > 0.01


def test_control_the_composition_of_differing_mechanisms_is_below_what_they_cost() -> None:
    """What an accountant would say that forgot that the second was chosen after the first was seen."""
    history: list[Mechanism] = [LOCAL, QUIETER]
    assert accountant.composition(history, 1e-5) < accountant.spent(history, 1e-5, 8.0)


def test_the_first_round_of_another_mechanism_never_makes_the_sum_smaller() -> None:
    for first, other in ((LOCAL, QUIETER), (SHARED, LOCAL), (LOCAL, SHARED)):
        before = accountant.spent([first] * 3, 1e-5, 8.0)
        assert before < accountant.spent([first, first, first, other], 1e-5, 8.0)


@pytest.mark.parametrize("mechanism", [LOCAL, SHARED])
def test_the_curve_of_a_run_is_what_its_ledger_will_say_after_each_round(mechanism: Mechanism) -> None:
    curve = accountant.curve(mechanism, 6, 1e-5)
    assert curve == [accountant.spent([mechanism] * rounds, 1e-5, 8.0) for rounds in range(1, 7)]
    assert all(first < second for first, second in itertools.pairwise(curve))


@pytest.mark.parametrize("rounds", [0, -1])
def test_no_rounds_have_no_curve(rounds: int) -> None:
    assert accountant.curve(LOCAL, rounds, 1e-5) == []


def test_a_target_out_of_reach_of_any_noise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accountant, "epsilon", lambda mechanisms, delta: 1 / mechanisms[0].noise_multiplier)
    with pytest.raises(ValueError, match="no noise multiplier below 1e5"):
        calibrate_noise_multiplier(1e-9, 1e-5, 1.0, 10)


def test_control_an_accountant_that_forgets_some_steps_fails_the_table() -> None:
    rate, steps, delta, noises = PUBLISHED[0]
    forgetful = epsilon([SubsampledGaussian(rate, noises[0] - 0.007, steps - 10)], delta)
    assert not forgetful >= 1.0


def test_the_ledger_can_be_imported_without_torch_or_an_accounting_library() -> None:
    heavy = "{'torch', 'opacus', 'dp_accounting'}"
    script = f"import sys, privacy.ledger, privacy.receipt; print(sorted({heavy} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
