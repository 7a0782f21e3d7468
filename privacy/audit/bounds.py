"""From counts of right guesses to lower bounds on epsilon that hold with a stated confidence.

Both relations are for add-or-remove-one, where a guess says whether a record was there.
"""
# ruff: noqa: PLC0415 - scipy costs a second and is loaded when first used

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Counts = int | npt.NDArray[np.int64]

_TOLERANCE = 1e-6  # of a bound in nats, always on the lower side
_LARGEST_EPSILON = 64.0  # e**-64 is below any probability that counts can show


def epsilon_lower_bound(*, canaries: int, guesses: int, correct: int, delta: float, confidence: float = 0.95) -> float:
    """Largest epsilon that one run with independently included canaries rejects.

    Steinke, Nasr and Jagielski 2023 (arXiv 2305.08846, computed in their Appendix D). If each of m canaries is in with
    probability 1/2 and the mechanism is (epsilon, delta)-private, then the number of right guesses W among r satisfies,
    with W* ~ Binomial(r, e^epsilon / (1 + e^epsilon)),

        P[W >= v]  <=  P[W* >= v]  +  2 m delta  max_{1 <= i <= v} P[v - i <= W* < v] / i.

    The bound is valid for a number of guesses, and a rule for them, that were fixed before the outcome was seen.

    Args:
        canaries: m, all that took part in the coin tosses, guessed or not.
        guesses: r, at most ``canaries``.
        correct: v, at most ``guesses``.
        delta: in [0, 1).
        confidence: in (0, 1); a private mechanism is accused with at most the rest.

    Returns:
        A bound in [0, 64]; 0.0 where nothing can be rejected.

    Raises:
        ValueError: the counts do not fit together, or a value is out of range.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(f"need correct <= guesses <= canaries, not {correct}, {guesses} and {canaries}")
    _check_probabilities(delta, confidence)
    allowed = 1 - confidence
    return _largest_rejected(lambda epsilon: p_value(canaries, guesses, correct, epsilon, delta) <= allowed)


def p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Largest probability that an (epsilon, delta)-private mechanism gives to ``correct`` or more right guesses.

    Args:
        canaries: m.
        guesses: r.
        correct: v.
        epsilon: >= 0.
        delta: in [0, 1).

    Returns:
        The right side of the inequality of :func:`epsilon_lower_bound`, at most 1.
    """
    from scipy.stats import binom  # type: ignore[import-untyped]

    accuracy = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(correct - 1, guesses, accuracy))
    if not correct or not delta:
        return min(tail, 1.0)
    below = binom.pmf(np.arange(correct - 1, -1, -1), guesses, accuracy)  # P[W* = v-1], P[W* = v-2], ...
    gained = float((np.cumsum(below) / np.arange(1, correct + 1)).max())
    return min(tail + 2 * canaries * delta * gained, 1.0)


def epsilon_lower_bound_from_rates(
    *, true_positives: int, positives: int, false_positives: int, negatives: int, delta: float, confidence: float = 0.95
) -> float:
    """Lower bound on epsilon from the two rates of one test that was fixed before the trials.

    With exact (Clopper-Pearson) one-sided bounds on both rates, each at half of the permitted error: privacy demands
    TPR <= e^epsilon FPR + delta and, for the opposite guess, 1 - FPR <= e^epsilon (1 - TPR) + delta.

    Args:
        true_positives: trials with the record in which the test said so.
        positives: trials with the record, at least 1, independent of each other.
        false_positives: trials without the record in which the test said that it is there.
        negatives: trials without the record, at least 1, independent of each other.
        delta: in [0, 1).
        confidence: in (0, 1).

    Returns:
        A bound >= 0.

    Raises:
        ValueError: the counts do not fit together, or a value is out of range.
    """
    if not (0 <= true_positives <= positives and 0 <= false_positives <= negatives and positives and negatives):
        raise ValueError(f"no rates: {true_positives} of {positives} and {false_positives} of {negatives}")
    _check_probabilities(delta, confidence)
    true_rate, false_rate = rate_bounds(true_positives, positives, false_positives, negatives, confidence)
    forward, backward = log_ratios(true_rate, false_rate, delta)
    return max(0.0, float(forward), float(backward))


def rate_bounds(
    true_positives: Counts, positives: int, false_positives: Counts, negatives: int, confidence: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """A lower bound on the true-positive rate and an upper one on the false-positive rate that hold together.

    Args:
        true_positives: count or counts, shape (k,).
        positives: trials with the record.
        false_positives: count or counts, shape (k,).
        negatives: trials without.
        confidence: that both hold; for each of several counts by itself.

    Returns:
        Two arrays in [0, 1] of the shape of the counts.
    """
    each = (1 - confidence) / 2
    return _at_least(np.asarray(true_positives), positives, each), 1 - _at_least(
        negatives - np.asarray(false_positives), negatives, each
    )


def log_ratios(
    true_rate: npt.NDArray[np.float64], false_rate: npt.NDArray[np.float64], delta: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """What two rates imply for epsilon, for the guess "in" and for the guess "out"; minus infinity for nothing."""
    return _log_ratio(true_rate - delta, false_rate), _log_ratio(1 - false_rate - delta, 1 - true_rate)


def _log_ratio(above: npt.NDArray[np.float64], below: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        return np.log(np.maximum(above, 0)) - np.log(below)


def _at_least(successes: npt.NDArray[np.int64], trials: int, error: float) -> npt.NDArray[np.float64]:
    """One-sided Clopper-Pearson: the smallest rate that makes this many successes as likely as ``error``."""
    from scipy.stats import beta

    some = np.maximum(successes, 1)
    bound: npt.NDArray[np.float64] = np.where(successes > 0, beta.ppf(error, some, trials - some + 1), 0.0)
    return bound


def _largest_rejected(rejects: Callable[[float], bool]) -> float:
    """Bisection that ends on a rejected epsilon; 0.0 if not even epsilon zero is rejected.

    A mechanism that is private for one epsilon is so for every larger one, so any rejected value is a valid bound,
    also where the p-value is not monotone.
    """
    if not rejects(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while rejects(high):
        if high >= _LARGEST_EPSILON:
            return _LARGEST_EPSILON
        low, high = high, high * 2
    while high - low > _TOLERANCE:
        middle = (low + high) / 2
        low, high = (middle, high) if rejects(middle) else (low, middle)
    return low


def _check_probabilities(delta: float, confidence: float) -> None:
    if not 0 <= delta < 1:
        raise ValueError(f"delta must lie in [0, 1), not {delta}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), not {confidence}")
