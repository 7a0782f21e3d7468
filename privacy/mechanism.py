"""Mechanisms as frozen values: everything that decides privacy, and nothing that only decides speed.

An epsilon is always recomputed from these values; none is ever stored as the truth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, get_args

ADD_OR_REMOVE_ONE = "add-or-remove-one"
"""The one neighbouring relation accounted for: two datasets differ by the presence of one unit."""

MIN_NOISE_MULTIPLIER = 0.3
"""Below this one step alone costs an epsilon of many tens: not a guarantee, and slow to account for."""

MAX_STEPS = 10_000_000
"""Largest number of steps of one mechanism: far above any training, low enough to catch a unit mistake."""

MAX_DELTA = 0.1
"""A larger delta permits to publish a tenth of the records outright."""


MIN_LOCAL_DEVIATION = 4.0
"""Smallest deviation of one site's discrete noise, in steps of the grid: above it a sum of such noises is as good as
one (the correction of Kairouz, Liu and Steinke 2021 is below 1e-60)."""

MAX_ROUNDING_INFLATION = 2.0**-10
"""How much a record's influence may grow by rounding a sum to the grid; charged whether it does or not."""


class Mode(StrEnum):
    """Who adds the noise, and to what. ``UNSAFE_NO_DP`` adds none and is stamped on everything it makes.

    ``RECORD_LOCAL``: each site, at full strength, in every step. ``RECORD_DISTRIBUTED``: each site a share, in the
    ring, to one gradient a round. ``SILO_DISTRIBUTED``: each site a share, to its whole update; a site is protected.
    """

    RECORD_LOCAL = "record-local"
    RECORD_DISTRIBUTED = "record-distributed"
    SILO_DISTRIBUTED = "silo-distributed"
    UNSAFE_NO_DP = "UNSAFE-no-dp"

    @property
    def is_distributed(self) -> bool:
        """Whether the noise is complete only in the sum, so that the guarantee needs the secure sum."""
        return self in (Mode.RECORD_DISTRIBUTED, Mode.SILO_DISTRIBUTED)


class Unit(StrEnum):
    """What one neighbouring dataset adds or removes."""

    RECORD = "record"
    PATIENT = "patient"
    SITE = "site"


class Rounding(StrEnum):
    """How values are brought to the grid before discrete noise is added."""

    DITHERED = "dithered"
    CONDITIONAL = "conditional"


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
class DistributedGaussian:
    """A number of rounds whose noise is the sum of the sites' discrete Gaussian shares.

    Args:
        sample_rate: probability in (0, 1] with which each unit enters a round; 1 where the unit is a site.
        noise_multiplier: standard deviation of the summed noise of the guaranteed honest survivors, over the clipping
            norm.
        steps: rounds, at least 1.
        dimension: coordinates of the vector.
        shares: honest survivors that the threshold guarantees (t - c); each adds noise of ``noise_multiplier * grid /
            sqrt(shares)`` steps of the grid.
        grid: the clipping norm in steps of the grid.
        rounding: how values come to the grid; decides how much one unit's influence can grow.

    Raises:
        ValueError: a value is out of range, or the grid is too coarse for the noise or the dimension.
    """

    sample_rate: float
    noise_multiplier: float
    steps: int
    dimension: int
    shares: int
    grid: float
    rounding: Rounding

    def __post_init__(self) -> None:
        object.__setattr__(self, "rounding", Rounding(self.rounding))
        SubsampledGaussian(self.sample_rate, self.noise_multiplier, self.steps)
        if self.dimension < 1 or self.shares < 1:
            raise ValueError(f"dimension and shares must be at least 1, not {self.dimension} and {self.shares}")
        if not (math.isfinite(self.grid) and self.grid > 0):
            raise ValueError(f"grid must be positive, not {self.grid}")
        if self.local_deviation < MIN_LOCAL_DEVIATION:
            raise ValueError(
                f"each site's noise would be {self.local_deviation:.3g} steps of the grid where "
                f"{MIN_LOCAL_DEVIATION:g} are needed: choose a ring with more bits"
            )
        if self.rounding is Rounding.DITHERED and math.sqrt(self.dimension) > MAX_ROUNDING_INFLATION * self.grid:
            raise ValueError(
                f"a clipping norm of {self.grid:.3g} steps of the grid is too coarse for {self.dimension} coordinates: "
                "choose a ring with more bits"
            )

    @property
    def local_deviation(self) -> float:
        """Standard deviation of one site's share of the noise, in steps of the grid."""
        return self.noise_multiplier * self.grid / math.sqrt(self.shares)

    @property
    def sensitivity(self) -> float:
        """Largest L2 influence of one unit on the rounded sum, in steps of the grid.

        Dithered: R(S + g) and R(S) differ from g by less than 1 in each coordinate, and the largest inflation allowed
        is charged whatever the grid. Conditional: the bound on the rounded vector of Kairouz, Liu and Steinke 2021 with
        beta = exp(-1/2).
        """
        if self.rounding is Rounding.DITHERED:
            return self.grid * (1 + MAX_ROUNDING_INFLATION)
        return math.sqrt(rounded_square_bound(self.grid, self.dimension))


def rounded_square_bound(grid: float, dimension: int) -> float:
    """Largest squared norm of a rounded vector that conditional rounding accepts (Kairouz et al. 2021, equation 1).

    Args:
        grid: norm of the vector before rounding, in steps of the grid.
        dimension: its coordinates.
    """
    always = (grid + math.sqrt(dimension)) ** 2
    usually = grid**2 + dimension / 4 + math.sqrt(2 * 0.5) * (grid + math.sqrt(dimension) / 2)
    return min(always, usually)


Mechanism = SubsampledGaussian | DistributedGaussian


@dataclass(frozen=True, slots=True)
class NoiseShares:
    """What the distributed modes need besides: the part of the ring in which the noise is drawn.

    Args:
        dimension: coordinates of the vector, at least 1.
        shares: honest survivors that the threshold guarantees in the *largest* cohort; a mechanism is charged for them.
        grid: the clipping norm in steps of the grid, above 0.
        clamp: largest magnitude of a coordinate before noise, in steps of the grid.
    """

    dimension: int
    shares: int
    grid: float
    clamp: int

    def __post_init__(self) -> None:
        if self.clamp < 1:
            raise ValueError(f"clamp must be at least 1, not {self.clamp}")


PerSampleEngine = Literal["book-keeping", "hooks"]
"""How a record's gradient is come by: see :mod:`privacy.per_sample`."""


@dataclass(frozen=True, slots=True)
class PerformanceParameters:
    """Everything of training that costs time or memory and changes no distribution.

    Args:
        max_physical_batch: most records in one forward pass, at least 1.
        per_sample_engine: ``"book-keeping"`` (clipping costs little more than no clipping, in time and in memory) or
            ``"hooks"`` (Opacus' own, which holds a gradient a record). A module with a trained layer that the former
            does not know is trained by the latter.

    Raises:
        ValueError: a value is out of range.
    """

    max_physical_batch: int = 256
    per_sample_engine: PerSampleEngine = "book-keeping"

    def __post_init__(self) -> None:
        if self.max_physical_batch < 1:
            raise ValueError(f"max_physical_batch must be at least 1, not {self.max_physical_batch}")
        if self.per_sample_engine not in get_args(PerSampleEngine):
            raise ValueError(f"per_sample_engine is one of {get_args(PerSampleEngine)}, not {self.per_sample_engine!r}")


@dataclass(frozen=True, slots=True)
class PrivacyParameters:
    """Every number of a study that changes the privacy of one unit.

    Args:
        mode: see :class:`Mode`.
        unit: ``"record"`` (one training example), ``"patient"`` (all examples of one patient) or, with
            ``SILO_DISTRIBUTED`` and only there, ``"site"``.
        neighboring_relation: only ``"add-or-remove-one"``.
        sample_rate: Poisson inclusion probability of a unit per step, in (0, 1]. Where the unit is a site it samples
            records for training and does not enter the accounting.
        noise_multiplier: noise standard deviation over ``max_grad_norm``: of one site's noise in ``RECORD_LOCAL``, of
            the sum over the guaranteed honest survivors in the distributed modes; ignored by ``UNSAFE_NO_DP``.
        max_grad_norm: L2 norm to which each unit's gradient, or a site's whole update, is clipped, > 0; ignored by
            ``UNSAFE_NO_DP``.
        expected_batch_size: public denominator of every step, > 0; never the number of records of the site.
        steps_per_round: steps between two releases, at least 1; exactly 1 in ``RECORD_DISTRIBUTED``.
        delta: the delta at which epsilon is stated.
        noise_shares: needed by the distributed modes and refused by the others.

    Raises:
        ValueError: a value is out of range, or two contradict each other.
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
    noise_shares: NoiseShares | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "mode", Mode(self.mode))
        check_unit(self.unit, self.mode)
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
        if self.mode is Mode.RECORD_DISTRIBUTED and self.steps_per_round != 1:
            raise ValueError(
                f"record-distributed takes exactly one step a round, not {self.steps_per_round}: with more, the state "
                "between them is protected by one site's share of the noise only, and no epsilon of the sum covers it"
            )
        if self.mode.is_distributed != (self.noise_shares is not None):
            raise ValueError("noise_shares belong to the distributed modes, and to them alone")
        if self.mode is not Mode.UNSAFE_NO_DP:
            if not (math.isfinite(self.max_grad_norm) and self.max_grad_norm > 0):
                raise ValueError(f"max_grad_norm must be positive, not {self.max_grad_norm}")
            self.mechanism  # noqa: B018 - refuses what no mechanism allows

    @property
    def mechanism(self) -> Mechanism:
        """What one round costs.

        Raises:
            ValueError: the mode is ``UNSAFE_NO_DP``, which no mechanism describes.
        """
        if self.mode is Mode.UNSAFE_NO_DP:
            raise ValueError("UNSAFE-no-dp has no mechanism: its epsilon is infinite")
        if self.noise_shares is None:
            return SubsampledGaussian(self.sample_rate, self.noise_multiplier, self.steps_per_round)
        of_site = self.mode is Mode.SILO_DISTRIBUTED
        return DistributedGaussian(
            sample_rate=1.0 if of_site else self.sample_rate,
            noise_multiplier=self.noise_multiplier,
            steps=1,
            dimension=self.noise_shares.dimension,
            shares=self.noise_shares.shares,
            grid=self.noise_shares.grid,
            rounding=Rounding.CONDITIONAL if of_site else Rounding.DITHERED,
        )


def check_unit(unit: str, mode: Mode | None = None) -> None:
    """Refuse a privacy unit that does not exist, or not in a mode.

    Args:
        unit: one of :class:`Unit`.
        mode: None where any mode may follow.

    Raises:
        ValueError: as the summary says.
    """
    if unit not in set(Unit):
        raise ValueError(f"unit {unit!r} is unknown: choose 'record', 'patient' or 'site'")
    if mode is not None and mode is not Mode.UNSAFE_NO_DP and (unit == Unit.SITE) != (mode is Mode.SILO_DISTRIBUTED):
        raise ValueError(
            f"unit {unit!r} does not go with mode {mode.value}: a site is the unit of silo-distributed, and of it alone"
        )


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
