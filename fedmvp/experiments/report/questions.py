"""What a study was run to answer: what privacy leaves of a gain, and which method is ahead.

One entry of FedMVP stands for it in comparisons. It is chosen by its score without privacy: choosing by private results
would be a selection that no epsilon covers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedmvp.evaluation.intervals import OverSeeds
from fedmvp.evaluation.settings import share_of_gain
from fedmvp.experiments.report.summary import PLAIN, Comparison, Entry, Terms

FLOOR = "zero-shot-attributes"
PROBE = "linear-probe"
OURS = "fedmvp"


@dataclass(frozen=True)
class Kept:
    """What privacy leaves of the gain over zero-shot.

    Attributes:
        share: 1 is all of the gain without privacy; None where there is no such gain.
        shown: whether that gain is beyond its interval over seeds; a share of less is a share of noise.
    """

    share: float | None
    shown: bool


def floor(comparison: Comparison) -> Entry | None:
    """Zero-shot with attributes, what FedMVP is before training; None where the study lacks it."""
    return next((entry for entry in comparison.baselines if entry.method == FLOOR), None)


def best(comparison: Comparison, entries: Sequence[Entry]) -> Entry | None:
    """The entry with the best mean without privacy; None where none was run without."""
    scores = {entry: comparison.score(entry, PLAIN) for entry in entries}
    known = {entry: score.mean for entry, score in scores.items() if score is not None}
    return max(known, key=lambda entry: known[entry], default=None)


def chosen(comparison: Comparison) -> Entry | None:
    """The entry that stands for FedMVP."""
    return best(comparison, [entry for entry in comparison.trained if entry.method.startswith(OURS)])


def best_other(comparison: Comparison) -> Entry | None:
    """The best trained entry that is neither FedMVP nor the linear probe, by its score without privacy."""
    others = [entry for entry in comparison.trained if not entry.method.startswith(OURS) and entry.method != PROBE]
    return best(comparison, others)


def probe(comparison: Comparison) -> Entry | None:
    """The linear probe; the best size of it."""
    return best(comparison, [entry for entry in comparison.trained if entry.method == PROBE])


def one_size_each(comparison: Comparison) -> tuple[Entry, ...]:
    """Of every trained method the size that is best without privacy, or the first where none was run without."""
    methods: dict[str, list[Entry]] = {}
    for entry in comparison.trained:
        methods.setdefault(entry.method, []).append(entry)
    return tuple(best(comparison, entries) or entries[0] for entries in methods.values())


def leaders(comparison: Comparison, terms: Terms) -> frozenset[Entry]:
    """The best trained entry of a column and those not shown to be worse; without an interval the best one alone.

    Not shown to be worse: the interval of the difference by seed holds 0.
    """
    scores = {entry: comparison.score(entry, terms) for entry in comparison.trained}
    means = {entry: score.mean for entry, score in scores.items() if score is not None}
    if not means:
        return frozenset()
    first = max(means, key=lambda entry: means[entry])
    return frozenset(
        entry for entry in means if entry == first or beyond(comparison.gain((first, terms), (entry, terms))) == 0
    )


def beyond(gain: OverSeeds | None) -> int | None:
    """1 where the whole interval is above 0, -1 below, 0 where it holds 0; None without an interval."""
    if gain is None or gain.low is None or gain.high is None:
        return None
    return 1 if gain.low > 0 else -1 if gain.high < 0 else 0


def kept(comparison: Comparison, entry: Entry, terms: Terms) -> Kept | None:
    """The share of the mean gain over zero-shot with attributes, over the seeds that all three have.

    Returns:
        None where one of the three is not there.
    """
    start = floor(comparison)
    if start is None:
        return None
    values = [comparison.by_seed(entry, terms), comparison.by_seed(entry, PLAIN), comparison.by_seed(start, PLAIN)]
    seeds = set.intersection(*(set(found) for found in values))
    if not seeds:
        return None
    private, plain, low = (sum(found[seed] for seed in sorted(seeds)) / len(seeds) for found in values)
    shown = beyond(comparison.gain((entry, PLAIN), (start, PLAIN))) == 1
    return Kept(share_of_gain(private, plain, low), shown) if plain > low else Kept(None, shown=False)
