"""Renyi accounting of the distributed modes: discrete noise in shares, sampling, and parameters that change.

Noise that several sites add in shares to a grid is not exactly Gaussian, and no privacy-loss distribution of its
subsampled form is known. Its Renyi divergence is, for sums (Kairouz, Liu and Steinke 2021, arXiv 2102.06387) and, up to
a factor, under Poisson sampling (Zhu and Wang 2019). Everything here is a pure function of mechanisms; all orders are
whole numbers, and every curve is for adding and for removing one unit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from privacy.errors import BudgetExceeded
from privacy.mechanism import (
    MIN_LOCAL_DEVIATION,
    MIN_NOISE_MULTIPLIER,
    DistributedGaussian,
    Mechanism,
    Rounding,
    SubsampledGaussian,
    check_delta,
)
from privacy.spending import terms

ORDERS: tuple[int, ...] = (*range(2, 65), *range(72, 129, 8), *range(160, 257, 32), *range(320, 513, 64), 768, 1024)
"""Orders at which curves are compared: dense where epsilons from 0.5 to 10 have theirs, up to a delta of 1e-9."""

_CALIBRATION_TOLERANCE = 1e-4  # relative, on the noise multiplier

_Curve = npt.NDArray[np.float64]


def rdp(mechanism: Mechanism, order: int) -> float:
    """Renyi divergence that a mechanism may cause, all its steps together.

    Args:
        mechanism: local or distributed.
        order: a whole number, at least 2.

    Raises:
        ValueError: the order is too small.
    """
    if order < 2:
        raise ValueError(f"order must be at least 2, not {order}")
    return mechanism.steps * _one_step(replace(mechanism, steps=1), order)


def rdp_curve(mechanisms: Iterable[Mechanism]) -> _Curve:
    """Renyi divergence of the composition at each of :data:`ORDERS`; any mixture of mechanisms, in any order."""
    steps: Counter[Mechanism] = Counter()
    for mechanism in mechanisms:
        steps[replace(mechanism, steps=1)] += mechanism.steps
    total = np.zeros(len(ORDERS))
    for count, curve in sorted((count, tuple(_one_step_curve(row))) for row, count in steps.items()):
        total += count * np.array(curve)
    return total


def to_epsilon(curve: Sequence[float] | _Curve, delta: float, orders: Sequence[int] = ORDERS) -> float:
    """Epsilon at ``delta`` of a Renyi curve, by the best of its orders.

    Canonne, Kamath and Steinke 2020 (arXiv 2004.00010), proposition 12: epsilon(alpha) + log(1 - 1/alpha) - log(alpha
    delta) / (alpha - 1).

    Args:
        curve: Renyi divergence at each order.
        delta: in (0, 0.1].
        orders: above 1.
    """
    check_delta(delta)
    alphas = np.asarray(orders, dtype=np.float64)
    values = np.asarray(curve) + np.log1p(-1 / alphas) - np.log(delta * alphas) / (alphas - 1)
    return max(0.0, float(values.min()))


def epsilon_distributed(
    mechanisms: Iterable[DistributedGaussian], gaussians: Iterable[SubsampledGaussian], delta: float
) -> float:
    """Epsilon of a history fixed in advance, distributed and local rounds in one Renyi curve.

    Args:
        mechanisms: rounds whose noise was shared.
        gaussians: rounds or steps with noise of full strength.
        delta: in (0, 0.1].

    Returns:
        An upper bound on epsilon; 0.0 for no mechanism at all.
    """
    check_delta(delta)
    history: list[Mechanism] = [*mechanisms, *gaussians]
    return to_epsilon(rdp_curve(history), delta) if history else 0.0


def filtered_epsilon(mechanisms: Iterable[Mechanism], delta: float, order: int) -> float:
    """Epsilon of a history whose later mechanisms may depend on earlier results, at an order fixed in advance.

    Feldman and Zrnic 2021, theorem 4.3: while the sum of the divergences at one order stays below a bound, the bound
    holds for the whole although every mechanism was chosen adaptively. The best order of the history that came about
    is not covered by it.

    Args:
        mechanisms: in any order.
        delta: in (0, 0.1].
        order: a whole number, at least 2.
    """
    check_delta(delta)
    return _filtered(math.fsum(rdp(mechanism, order) for mechanism in mechanisms), delta, order)


def filter_order(delta: float, epsilon_max: float) -> int:
    """The order of :data:`ORDERS` at which a budget admits most noise of Gaussian kind, from the budget alone.

    A divergence of ``rate * order`` is admitted up to ``rate = (epsilon_max - log(1/delta) / (order - 1)) / order``.
    """
    check_delta(delta)
    rates = [(epsilon_max - _filtered(0.0, delta, order)) / order for order in ORDERS]
    return ORDERS[rates.index(max(rates))]


def best_order(planned: Sequence[Mechanism], delta: float) -> int:
    """The order of :data:`ORDERS` at which a plan costs least; to be chosen before the first round, and then kept.

    Raises:
        ValueError: there is no plan.
    """
    if not planned:
        raise ValueError("an order follows from a plan, and there is none")
    check_delta(delta)
    costs = [_filtered(cost, delta, order) for cost, order in zip(rdp_curve(planned).tolist(), ORDERS, strict=True)]
    return ORDERS[costs.index(min(costs))]


class RenyiFilter:
    """Admits mechanisms one by one until the budget at a fixed order is spent; each may depend on earlier results.

    Args:
        order: a whole number, at least 2; see :func:`best_order` and :func:`filter_order`.
        epsilon_max: the budget.
        delta: in (0, 0.1].

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(self, order: int, epsilon_max: float, delta: float) -> None:
        check_delta(delta)
        if order < 2:
            raise ValueError(f"order must be at least 2, not {order}")
        if not epsilon_max > 0:
            raise ValueError(f"epsilon_max must be positive, not {epsilon_max}")
        self._order, self._epsilon_max, self._delta = order, epsilon_max, delta
        self._admitted: list[Mechanism] = []

    @property
    def epsilon(self) -> float:
        """Epsilon of what was admitted; from the start the order alone costs log(1/delta) / (order - 1)."""
        return filtered_epsilon(self._admitted, self._delta, self._order)

    def admits(self, mechanism: Mechanism) -> bool:
        """Whether the budget covers this mechanism next."""
        return self._after(mechanism) <= self._epsilon_max

    def charge(self, mechanism: Mechanism) -> None:
        """Admit a mechanism; call it before the mechanism runs.

        Raises:
            BudgetExceeded: the budget does not cover it; nothing was charged.
        """
        if not self.admits(mechanism):
            what = terms(self._delta, "unit", f"fedmvp Renyi filter at order {self._order}")
            raise BudgetExceeded(self._after(mechanism), self._epsilon_max, what)
        self._admitted.append(mechanism)

    def _after(self, mechanism: Mechanism) -> float:
        return filtered_epsilon([*self._admitted, mechanism], self._delta, self._order)


@lru_cache(maxsize=256)
def calibrate_distributed(
    target_epsilon: float,
    delta: float,
    *,
    sample_rate: float,
    steps: int,
    dimension: int,
    shares: int,
    grid: float,
    rounding: Rounding | str,
) -> float:
    """The smallest noise multiplier (to 4 digits) whose epsilon does not pass the target.

    Args:
        target_epsilon: > 0.
        delta: in (0, 0.1].
        sample_rate: see :class:`DistributedGaussian`, as are the others.
        steps: all rounds together.
        dimension: coordinates.
        shares: honest survivors guaranteed.
        grid: clipping norm in steps of the grid.
        rounding: how values come to the grid.

    Returns:
        A multiplier on the safe side, never one whose shares would be too small for the grid.

    Raises:
        ValueError: a value is out of range, or the target is out of reach with any sensible noise.
    """
    if not (math.isfinite(target_epsilon) and target_epsilon > 0):
        raise ValueError(f"target_epsilon must be positive, not {target_epsilon}")

    def spent(noise_multiplier: float) -> float:
        mechanism = DistributedGaussian(
            sample_rate, noise_multiplier, steps, dimension, shares, grid, Rounding(rounding)
        )
        return epsilon_distributed([mechanism], [], delta)

    least = max(MIN_NOISE_MULTIPLIER, MIN_LOCAL_DEVIATION * math.sqrt(max(shares, 1)) / grid * (1 + 1e-9))
    low, high = least, 2 * least
    while spent(high) > target_epsilon:
        low, high = high, high * 2
        if high > 1e5 * max(1.0, least):
            raise ValueError(f"no sensible noise multiplier reaches epsilon {target_epsilon} at delta {delta}")
    while high / low > 1 + _CALIBRATION_TOLERANCE:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if spent(middle) <= target_epsilon else (middle, high)
    return high


def _filtered(divergence: float, delta: float, order: int) -> float:
    return divergence + math.log(1 / delta) / (order - 1)


@lru_cache(maxsize=1024)
def _one_step_curve(mechanism: Mechanism) -> _Curve:
    curve = np.array([_one_step(mechanism, order) for order in ORDERS])
    curve.flags.writeable = False
    return curve


@lru_cache(maxsize=65536)
def _one_step(mechanism: Mechanism, order: int) -> float:
    if isinstance(mechanism, DistributedGaussian):
        return _distributed(mechanism, order)
    levels = np.arange(2, order + 1, dtype=np.float64)
    if mechanism.sample_rate == 1:
        return order / (2 * mechanism.noise_multiplier**2)
    return _sampled(mechanism.sample_rate, order, levels * (levels - 1) / (2 * mechanism.noise_multiplier**2))


def _distributed(mechanism: DistributedGaussian, order: int) -> float:
    """The bound of Zhu and Wang 2019 for any mechanism (theorem 5), or that without sampling where it is smaller.

    Its factor of 3 for levels from 3 on covers both directions for every mechanism; the formula without it is the
    Gaussian's and rests on a symmetry that is not used here. That sampling never costs anything follows from the
    quasi-convexity of the divergence (van Erven and Harremoes 2014).
    """
    whole = float(_unsampled(mechanism, np.array([float(order)]))[0])
    if mechanism.sample_rate == 1:
        return whole
    levels = np.arange(2, order + 1, dtype=np.float64)
    weights = (levels - 1) * _unsampled(mechanism, levels)
    weights[1:] += math.log(3)
    return min(whole, _sampled(mechanism.sample_rate, order, weights))


def _unsampled(mechanism: DistributedGaussian, orders: _Curve) -> _Curve:
    """Of a sum of discrete Gaussians, Kairouz, Liu and Steinke 2021, section 4: min of two bounds at each order."""
    deviation, dimension = mechanism.local_deviation, mechanism.dimension
    k = np.arange(1, mechanism.shares, dtype=np.float64)
    excess = 10 * float(np.exp(-2 * math.pi**2 * deviation**2 * k / (k + 1)).sum())
    distance = mechanism.sensitivity / (math.sqrt(mechanism.shares) * deviation)
    together = orders * distance**2 / 2 + excess * dimension
    apart = orders / 2 * (distance + math.sqrt(dimension) * excess) ** 2
    return np.minimum(together, apart)


def _sampled(sample_rate: float, order: int, log_weights: _Curve) -> float:
    """log(sum over j of binomial(order, rate; j) weight_j) / (order - 1), the weights of 0 and 1 being one.

    The binomial probabilities add up to one, so the sum is one plus the terms of ``weight - 1``, none of them negative:
    nothing cancels at small rates, and logarithms keep large orders finite.

    Args:
        sample_rate: in (0, 1).
        order: at least 2.
        log_weights: for j from 2 to the order, each >= 0.
    """
    j = np.arange(2, order + 1)
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, order + 1)))])
    log_binomial = log_factorials[order] - log_factorials[j] - log_factorials[order - j]
    log_binomial += j * math.log(sample_rate) + (order - j) * math.log1p(-sample_rate)
    with np.errstate(divide="ignore"):
        above_one = log_weights + np.log(-np.expm1(-log_weights))
    return float(np.logaddexp(0.0, np.logaddexp.reduce(log_binomial + above_one))) / (order - 1)
