"""Epsilon from mechanisms: the accountant of record and two others that must agree with it.

The number of record comes from the privacy-loss distributions of Google's dp_accounting (add-or-remove-one: the larger
of the two directions), discretised pessimistically so that it is an upper bound. Renyi accounting and Opacus' PRV
accountant are cross-checks. Composition needs parameters fixed in advance; the signed study fixes them. The accounting
libraries are imported when first used: they cost seconds, and opacus brings torch.
"""
# ruff: noqa: PLC0415

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from privacy.mechanism import MIN_NOISE_MULTIPLIER, Mechanism, SubsampledGaussian, check_delta

_INTERVALS = ((4.0, 1e-4), (2.0, 5e-4), (0.0, 1e-3))
"""Grid of the privacy loss in nats, by the smallest noise multiplier of a history. Rounding is upwards, under 0.02 in
epsilon; loud noise needs the finer grid because its losses are small, and can afford it because they are few."""

ACCOUNTANT = f"dp_accounting-{version('dp-accounting')} PLD"
"""Name and version of the accountant of record where every mechanism is a local one."""

DISTRIBUTED_ACCOUNTANT = "fedmvp RDP of summed discrete Gaussians"
"""Name of the accountant of record as soon as the noise of one mechanism was distributed."""

ADAPTIVE_ACCOUNTANT = "fedmvp Renyi filter"
"""Name of the accountant of record once mechanisms differ: they may have been chosen after seeing results."""

_RDP_ORDERS = (*(1 + x / 10 for x in range(1, 100)), *range(11, 65), 80, 96, 128, 192, 256, 384, 512, 1024)
_CALIBRATION_TOLERANCE = 1e-4  # relative, on the noise multiplier

_Row = tuple[float, float, int]  # sample rate, noise multiplier, steps


def epsilon(mechanisms: Iterable[SubsampledGaussian], delta: float) -> float:
    """Epsilon of the composition, by privacy-loss distributions: the number of record.

    Args:
        mechanisms: what was run, in any order; equal rows are merged, so hundreds of equal rounds cost one composition.
        delta: in (0, 0.1].

    Returns:
        An upper bound on epsilon under add-or-remove-one; 0.0 for no mechanism at all.

    Raises:
        ValueError: ``delta`` is out of range.
    """
    check_delta(delta)
    return _epsilon_pld(_merge(mechanisms), delta)


def spent(mechanisms: Sequence[Mechanism], delta: float, epsilon_max: float) -> float:
    """Epsilon that a dataset has spent on a history of rounds: the number a ledger decides by.

    Where all rounds are of one mechanism it was fixed before the first, and composition as usual holds. Once two
    differ, the later may have been chosen after seeing what the earlier gave, and only a filter at an order fixed in
    advance is proved (Feldman and Zrnic 2021); the order follows from delta and the budget of the ledger's creation.
    Whether a second mechanism is ever used may itself depend on results: over both outcomes together delta doubles.

    Args:
        mechanisms: one for each round released, in any order.
        delta: in (0, 0.1].
        epsilon_max: the budget.

    Returns:
        The larger of what composition and, where it is needed, the filter say; 0.0 for no mechanism at all.
    """
    composed = composition(mechanisms, delta)
    if _is_adaptive(mechanisms):
        from privacy import renyi

        order = renyi.filter_order(delta, epsilon_max)
        return max(composed, renyi.filtered_epsilon(mechanisms, delta, order))
    return composed


def composition(mechanisms: Iterable[Mechanism], delta: float) -> float:
    """Epsilon of mechanisms fixed in advance: privacy-loss distributions, or Renyi where noise was distributed."""
    rows = tuple(mechanisms)
    local = [mechanism for mechanism in rows if isinstance(mechanism, SubsampledGaussian)]
    if len(local) == len(rows):
        return epsilon(local, delta)
    from privacy import renyi

    distributed = [mechanism for mechanism in rows if not isinstance(mechanism, SubsampledGaussian)]
    return renyi.epsilon_distributed(distributed, local, delta)


def curve(mechanism: Mechanism, rounds: int, delta: float) -> list[float]:
    """Epsilon after each of the coming rounds of one mechanism, known before the first.

    Args:
        mechanism: of one round.
        rounds: at least 1.
        delta: in (0, 0.1].
    """
    return [composition([mechanism] * completed, delta) for completed in range(1, rounds + 1)]


def name(mechanisms: Sequence[Mechanism], delta: float, epsilon_max: float) -> str:
    """Name of the accountant of record for a history; see :func:`spent`."""
    if _is_adaptive(mechanisms):
        from privacy import renyi

        return f"{ADAPTIVE_ACCOUNTANT} at order {renyi.filter_order(delta, epsilon_max)}"
    if all(isinstance(mechanism, SubsampledGaussian) for mechanism in mechanisms):
        return ACCOUNTANT
    return DISTRIBUTED_ACCOUNTANT


def _is_adaptive(mechanisms: Iterable[Mechanism]) -> bool:
    return len({replace(mechanism, steps=1) for mechanism in mechanisms}) > 1


def epsilon_rdp(mechanisms: Iterable[SubsampledGaussian], delta: float) -> float:
    """Epsilon by Renyi accounting (dp_accounting): a looser upper bound, never below the number of record."""
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    check_delta(delta)
    rows = _merge(mechanisms)
    if not rows:
        return 0.0
    accountant = RdpAccountant(orders=list(_RDP_ORDERS))
    for sample_rate, noise_multiplier, steps in rows:
        event: Any = dp_accounting.GaussianDpEvent(noise_multiplier)
        if sample_rate < 1:
            event = dp_accounting.PoissonSampledDpEvent(sample_rate, event)
        accountant.compose(event, steps)
    return float(accountant.get_epsilon(delta))


def epsilon_prv(mechanisms: Iterable[SubsampledGaussian], delta: float) -> float:
    """Epsilon by Opacus' PRV accountant, an independent implementation (within about 0.01 of the number of record).

    It models the removal direction only, which is why it is a cross-check and not the number of record. Imports torch.
    """
    from opacus.accountants import PRVAccountant

    check_delta(delta)
    rows = _merge(mechanisms)
    if not rows:
        return 0.0
    accountant = PRVAccountant()
    accountant.history = [(noise_multiplier, sample_rate, steps) for sample_rate, noise_multiplier, steps in rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # log(0) at rate 1, and advice on the orders of its first guess
        return float(accountant.get_epsilon(delta))


def calibrate_noise_multiplier(target_epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    """The smallest noise multiplier (to 4 digits) whose epsilon of record does not pass the target.

    Args:
        target_epsilon: > 0.
        delta: in (0, 0.1].
        sample_rate: in (0, 1].
        steps: all steps of all rounds together.

    Returns:
        A multiplier on the safe side: ``epsilon`` of it is at most ``target_epsilon``.

    Raises:
        ValueError: the target is not positive, or out of reach with any sensible noise.
    """
    if not (math.isfinite(target_epsilon) and target_epsilon > 0):
        raise ValueError(f"target_epsilon must be positive, not {target_epsilon}")

    def spent(noise_multiplier: float) -> float:
        return epsilon([SubsampledGaussian(sample_rate, noise_multiplier, steps)], delta)

    low, high = MIN_NOISE_MULTIPLIER, 1.0
    while spent(high) > target_epsilon:
        low, high = high, high * 2
        if high > 1e5:
            raise ValueError(f"no noise multiplier below 1e5 reaches epsilon {target_epsilon} at delta {delta}")
    while high / low > 1 + _CALIBRATION_TOLERANCE:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if spent(middle) <= target_epsilon else (middle, high)
    return high


def _merge(mechanisms: Iterable[SubsampledGaussian]) -> tuple[_Row, ...]:
    """Equal rows added up, in one fixed order, so that the caches see one key for one history."""
    steps: Counter[tuple[float, float]] = Counter()
    for mechanism in mechanisms:
        steps[float(mechanism.sample_rate), float(mechanism.noise_multiplier)] += mechanism.steps
    return tuple((rate, noise, count) for (rate, noise), count in sorted(steps.items()))


@lru_cache(maxsize=4096)
def _epsilon_pld(rows: Sequence[_Row], delta: float) -> float:
    if not rows:
        return 0.0
    smallest_noise = min(noise_multiplier for _, noise_multiplier, _ in rows)
    interval = next(interval for at_least, interval in _INTERVALS if smallest_noise >= at_least)
    composed = _composed(rows[0], interval)
    for row in rows[1:]:
        composed = composed.compose(_composed(row, interval))
    return float(composed.get_epsilon_for_delta(delta))


@lru_cache(maxsize=64)
def _composed(row: _Row, interval: float) -> Any:
    sample_rate, noise_multiplier, steps = row
    one_step = _one_step(sample_rate, noise_multiplier, interval)
    return one_step if steps == 1 else one_step.self_compose(steps)


@lru_cache(maxsize=64)
def _one_step(sample_rate: float, noise_multiplier: float, interval: float) -> Any:
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier,
        sensitivity=1,
        sampling_prob=sample_rate,
        value_discretization_interval=interval,
        pessimistic_estimate=True,
        use_connect_dots=True,
        neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
    )
