"""Intervals over seeds. The Wilson interval of one run, in `fedmvp.evaluation.accuracy`, knows nothing of seeds."""

# ruff: noqa: PLC0415 - scipy costs a second and is loaded when first used

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class OverSeeds:
    """A metric of several runs that differ by their seed, with the 95 % interval of its mean by Student's t.

    The interval holds for what seeds decide (noise, sampling, partition); the images of the test set are the same.

    Attributes:
        values: one a run, at least one.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values or not all(math.isfinite(value) for value in self.values):
            raise ValueError("an interval over seeds needs one finite value a run, at least one")

    def __str__(self) -> str:
        if self.half_width is None:
            return f"{self.mean:.3f} (one run)"
        return f"{self.mean:.3f} ± {self.half_width:.3f} ({len(self.values)} runs)"

    @property
    def mean(self) -> float:
        """The mean."""
        return sum(self.values) / len(self.values)

    @property
    def half_width(self) -> float | None:
        """Half of the 95 % interval: the quantile t(n - 1, 0.975) times s / sqrt(n); None for a single run."""
        count = len(self.values)
        if count == 1:
            return None
        from scipy.stats import t  # type: ignore[import-untyped]

        spread = math.sqrt(sum((value - self.mean) ** 2 for value in self.values) / (count - 1))
        return float(t.ppf(0.975, count - 1)) * spread / math.sqrt(count)

    @property
    def low(self) -> float | None:
        """Lower end; None for a single run."""
        return None if self.half_width is None else self.mean - self.half_width

    @property
    def high(self) -> float | None:
        """Upper end; None for a single run."""
        return None if self.half_width is None else self.mean + self.half_width


def difference(first: Sequence[float], second: Sequence[float]) -> OverSeeds:
    """Return first less second by seed: narrower than two intervals where both move with the seed.

    Args:
        first: a metric by seed.
        second: the same metric of the other method, for the same seeds in the same order.

    Raises:
        ValueError: different numbers of runs.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} runs cannot be compared with {len(second)} by seed")
    return OverSeeds(tuple(one - other for one, other in zip(first, second, strict=True)))
