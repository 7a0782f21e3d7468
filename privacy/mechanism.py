"""Mechanisms as frozen values: everything that decides privacy, and nothing that only decides speed.

An epsilon is always recomputed from these values; none is ever stored as the truth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

ADD_OR_REMOVE_ONE = "add-or-remove-one"
"""The one neighbouring relation accounted for: two datasets differ by the presence of one unit."""

MIN_NOISE_MULTIPLIER = 0.3
"""Below this one step alone costs an epsilon of many tens: not a guarantee, and slow to account for."""

MAX_STEPS = 10_000_000
"""Largest number of steps of one mechanism: far above any training, low enough to catch a unit mistake."""

MAX_DELTA = 0.1
"""A larger delta permits to publish a tenth of the records outright."""


class Mode(StrEnum):
    """Who adds the noise. ``UNSAFE_NO_DP`` adds none and is stamped on everything it makes."""

    RECORD_LOCAL = "record-local"
    UNSAFE_NO_DP = "UNSAFE-no-dp"


@dataclass(frozen=True, slots=True)
class SubsampledGaussian:
    """A number of Poisson-subsampled Gaussian steps of sensitivity one.

    Args:
        sample_rate: probability in (0, 1] with which each unit enters a step, independently of all others.
        noise_multiplier: standard deviation of the noise divided by the clipping norm.
        steps: how many such steps, at least 1.

    Raises:
        ValueError: a value is out of range.
    """

    sample_rate: float
    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        _check_sample_rate(self.sample_rate)
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier >= MIN_NOISE_MULTIPLIER):
            raise ValueError(f"noise_multiplier must be at least {MIN_NOISE_MULTIPLIER}, not {self.noise_multiplier}")
        _check_steps("steps", self.steps)


@dataclass(frozen=True, slots=True)
class PrivacyParameters:
    """Every number of a study that changes the privacy of one record.

    Args:
        mode: see :class:`Mode`.
        unit: what is protected; only ``"record"`` (one training example) is implemented.
        neighboring_relation: only ``"add-or-remove-one"``.
        sample_rate: Poisson inclusion probability per step, in (0, 1].
        noise_multiplier: noise standard deviation over ``max_grad_norm``; ignored by ``UNSAFE_NO_DP``.
        max_grad_norm: L2 norm to which each per-sample gradient is clipped, > 0; ignored by ``UNSAFE_NO_DP``.
        expected_batch_size: public denominator of every step, > 0; never the number of records of the site.
        steps_per_round: DP-SGD steps between two releases, at least 1.
        delta: the delta at which epsilon is stated.

    Raises:
        ValueError: a value is out of range or not implemented.
    """

    mode: Mode
    unit: str
    neighboring_relation: str
    sample_rate: float
    noise_multiplier: float
    max_grad_norm: float
    expected_batch_size: float
    steps_per_round: int
    delta: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "mode", Mode(self.mode))
        check_unit(self.unit)
        if self.neighboring_relation != ADD_OR_REMOVE_ONE:
            raise ValueError(
                f"neighboring_relation {self.neighboring_relation!r} is not implemented: every epsilon here is for "
                f"{ADD_OR_REMOVE_ONE!r} (replace-one costs up to twice as much for the same noise)"
            )
        _check_sample_rate(self.sample_rate)
        _check_steps("steps_per_round", self.steps_per_round)
        check_delta(self.delta)
        if not (math.isfinite(self.expected_batch_size) and self.expected_batch_size > 0):
            raise ValueError(f"expected_batch_size must be positive, not {self.expected_batch_size}")
        if self.mode is Mode.RECORD_LOCAL:
            if not (math.isfinite(self.max_grad_norm) and self.max_grad_norm > 0):
                raise ValueError(f"max_grad_norm must be positive, not {self.max_grad_norm}")
            SubsampledGaussian(self.sample_rate, self.noise_multiplier, self.steps_per_round)

    @property
    def mechanism(self) -> SubsampledGaussian:
        """What one round costs.

        Raises:
            ValueError: the mode is ``UNSAFE_NO_DP``, which no mechanism describes.
        """
        if self.mode is Mode.UNSAFE_NO_DP:
            raise ValueError("UNSAFE-no-dp has no mechanism: its epsilon is infinite")
        return SubsampledGaussian(self.sample_rate, self.noise_multiplier, self.steps_per_round)


def check_unit(unit: str) -> None:
    """Refuse a privacy unit that is not implemented.

    Raises:
        ValueError: ``unit`` is not ``"record"``.
    """
    if unit == "patient":
        raise ValueError(
            "unit 'patient' is not implemented yet: use unit = \"record\" and remember that a patient with k records "
            "is protected k times less (group privacy), or keep one record per patient"
        )
    if unit != "record":
        raise ValueError(f"unit {unit!r} is unknown: the only unit implemented is 'record'")


def check_delta(delta: float) -> None:
    """Refuse a delta outside (0, 0.1].

    Raises:
        ValueError: as the summary says.
    """
    if not 0 < delta <= MAX_DELTA:
        raise ValueError(f"delta must lie in (0, {MAX_DELTA}], not {delta}")


def _check_sample_rate(sample_rate: float) -> None:
    if not 0 < sample_rate <= 1:
        raise ValueError(f"sample_rate must lie in (0, 1], not {sample_rate}")


def _check_steps(name: str, steps: int) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MAX_STEPS:
        raise ValueError(f"{name} must be a whole number from 1 to {MAX_STEPS}, not {steps!r}")
