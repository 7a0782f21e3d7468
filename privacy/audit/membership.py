"""What an outsider with the losses of a released model can tell about who was trained on.

Yeom et al. 2018's attack: a record is called a member where its loss is small. It is weak, needs no shadow models, and
shows plain overfitting; stronger attacks exist, so a harmless outcome says nothing about what a better one reaches.

The losses of members are private. This is for the people of a site and for experiments on public data: publishing a
report about private records is a release that no ledger has charged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privacy.audit.bounds import epsilon_lower_bound_from_rates, log_ratios, rate_bounds
from privacy.mechanism import ADD_OR_REMOVE_ONE

Losses = Sequence[float] | npt.NDArray[np.floating]
Array = npt.NDArray[np.float64]

_THRESHOLDS = 2  # one for the guess "member", one for the guess "not a member"


@dataclass(frozen=True, slots=True)
class MembershipReport:
    """How well a threshold on the loss tells members from others.

    Args:
        auc: probability that a random member has a smaller loss than a random non-member, ties counting half; 0.5 is
            chance.
        auc_low: lower end of its interval at ``confidence``.
        auc_high: upper end.
        balanced_accuracy: mean of the two rates of right answers on the second half, threshold from the first.
        tpr_at_1_percent: share of members found where at most 1 % of the others are accused, on all records.
        tpr_at_0_1_percent: the same at 0.1 %; with fewer than 1,000 non-members it means at none.
        epsilon_lower: lower bound on epsilon at ``delta``, at ``confidence``.
        delta: as given.
        confidence: in (0, 1), of the interval and, apart, of the bound.
        members: how many losses of members.
        nonmembers: how many others.
        unit: what one loss stands for.
        neighboring_relation: under which epsilon is stated.
    """

    auc: float
    auc_low: float
    auc_high: float
    balanced_accuracy: float
    tpr_at_1_percent: float
    tpr_at_0_1_percent: float
    epsilon_lower: float
    delta: float
    confidence: float
    members: int
    nonmembers: int
    unit: str = "record"
    neighboring_relation: str = ADD_OR_REMOVE_ONE


def membership_attack(
    member_losses: Losses, nonmember_losses: Losses, *, delta: float, confidence: float = 0.95, seed: int = 0
) -> MembershipReport:
    """Attack a released model by the losses of its records.

    Both kinds are divided at random into halves. On the first, three thresholds are chosen: one for the balanced
    accuracy, and for epsilon one for each direction of guessing. The second half judges them; the two for epsilon share
    the permitted error equally (Bonferroni), and their rates are bounded exactly (Clopper-Pearson).

    The bound and the interval count records as independent trials. They are exactly that for losses from as many
    independent trainings; losses of one model share its randomness, and then both are approximate, where
    :func:`privacy.audit.audit_mechanism` is not. Non-members must come from the distribution of the members, or the
    attack measures that difference instead.

    Args:
        member_losses: (n,) losses of records that were trained on, at least 2.
        nonmember_losses: (k,) losses of records that were not, at least 2.
        delta: in [0, 1).
        confidence: in (0, 1).
        seed: of the division into halves, which must not depend on the losses.

    Raises:
        ValueError: too few losses, one that is not finite, or a value out of range.
    """
    members, others = _check_losses("member_losses", member_losses), _check_losses("nonmember_losses", nonmember_losses)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), not {confidence}")
    if not 0 <= delta < 1:
        raise ValueError(f"delta must lie in [0, 1), not {delta}")
    generator = np.random.default_rng(seed)
    members_first, members_second = _halves(members, generator)
    others_first, others_second = _halves(others, generator)
    area = _area_under_curve(members, others)
    low, high = _interval(area, min(len(members), len(others)), 1 - confidence)
    cut = _best_accuracy(members_first, others_first)
    each = 1 - (1 - confidence) / _THRESHOLDS
    return MembershipReport(
        auc=area,
        auc_low=low,
        auc_high=high,
        balanced_accuracy=float((np.mean(members_second <= cut) + np.mean(others_second > cut)) / 2),
        tpr_at_1_percent=_true_rate_at(0.01, members, others),
        tpr_at_0_1_percent=_true_rate_at(0.001, members, others),
        epsilon_lower=max(
            epsilon_lower_bound_from_rates(
                true_positives=int((members_second <= chosen).sum()),
                positives=len(members_second),
                false_positives=int((others_second <= chosen).sum()),
                negatives=len(others_second),
                delta=delta,
                confidence=each,
            )
            for chosen in _best_thresholds(members_first, others_first, delta, each)
        ),
        delta=delta,
        confidence=confidence,
        members=len(members),
        nonmembers=len(others),
    )


def _check_losses(name: str, losses: Losses) -> Array:
    values = np.asarray(losses, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"{name} must be a list of at least 2 losses, not an array of shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds a loss that is not finite")
    return values


def _halves(losses: Array, generator: np.random.Generator) -> tuple[Array, Array]:
    mixed = generator.permutation(losses)
    return mixed[: len(mixed) // 2], mixed[len(mixed) // 2 :]


def _area_under_curve(members: Array, others: Array) -> float:
    ordered = np.sort(others)
    above = len(others) - np.searchsorted(ordered, members, side="right")
    not_below = len(others) - np.searchsorted(ordered, members, side="left")
    return float((above + not_below).mean() / (2 * len(others)))


def _interval(area: float, independent: int, error: float) -> tuple[float, float]:
    """Areas under which the observed one is not too surprising, for any distributions and any size.

    Hoeffding 1963, section 5: a two-sample U-statistic with values in [0, 1] deviates no more than a mean over
    min(n, k) independent pairs, so P[U >= u] <= exp(-min(n, k) KL(u, area)), and the same below.
    """
    permitted = math.log(2 / error) / independent

    def last_within(end: float) -> float:
        inside, outside = area, end
        if _divergence(area, end) <= permitted:
            return end
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if _divergence(area, middle) <= permitted else (inside, middle)
        return outside

    return last_within(0.0), last_within(1.0)


def _divergence(observed: float, expected: float) -> float:
    """Kullback-Leibler divergence between two coins, in nats."""
    total = 0.0
    for seen, supposed in ((observed, expected), (1 - observed, 1 - expected)):
        if seen > 0:
            total += math.inf if supposed <= 0 else seen * math.log(seen / supposed)
    return total


def _counts(members: Array, others: Array) -> tuple[Array, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """A threshold midway to the next loss for every loss, with the members and others at or below it; all (k,)."""
    values = np.unique(np.concatenate([members, others]))
    thresholds = np.append(values[:-1] / 2 + values[1:] / 2, values[-1])
    return (
        thresholds,
        np.searchsorted(np.sort(members), thresholds, side="right").astype(np.int64),
        np.searchsorted(np.sort(others), thresholds, side="right").astype(np.int64),
    )


def _best_accuracy(members: Array, others: Array) -> float:
    thresholds, true, false = _counts(members, others)
    return float(thresholds[np.argmax(true / len(members) - false / len(others))])


def _best_thresholds(members: Array, others: Array, delta: float, confidence: float) -> tuple[float, float]:
    """The thresholds that promise most for the guess "member" and for the guess "not a member"."""
    thresholds, true, false = _counts(members, others)
    rates = rate_bounds(true, len(members), false, len(others), confidence)
    forward, backward = log_ratios(*rates, delta)
    return float(thresholds[np.argmax(forward)]), float(thresholds[np.argmax(backward)])


def _true_rate_at(false_rate: float, members: Array, others: Array) -> float:
    accused = math.floor(false_rate * len(others) + 1e-9)
    return float(np.mean(members < np.sort(others)[accused]))
