"""The ring of a study whose noise is distributed: how fine the grid is, and how much room the noise needs.

Everything here follows from the signed policy and the length of the vector, so that every party computes the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from privacy.mechanism import MAX_ROUNDING_INFLATION, NoiseShares
from secure_agg.errors import PolicyError
from secure_agg.policy import MAX_FRACTION_BITS, SecureSumPolicy

if TYPE_CHECKING:
    from fedmvp.study.policy import StudyPolicy

OVERFLOW_BITS = 40
"""A vector's noise leaves its room with a probability of at most 2^-40; then the site sends nothing in that round."""

MAX_CLAMP = 2**43
"""Largest magnitude before noise, in steps of the grid: up to it a float64 is off by at most 2^-10 of a step."""


@dataclass(frozen=True)
class DistributedRing:
    """What the policy of a distributed mode gives for vectors of one length.

    Args:
        secure_sum: ring, grid and largest magnitude, noise included.
        noise_shares: the same grid as the privacy accounting sees it.
    """

    secure_sum: SecureSumPolicy
    noise_shares: NoiseShares


def distributed_ring(policy: StudyPolicy, dimension: int) -> DistributedRing:
    """Lay out the ring of a distributed mode.

    The grid is the coarsest power of two on which rounding lengthens one unit's influence by no more than is charged
    for; found by comparing, not by a logarithm, which two platforms may round differently. Values are cut at
    ``value_range``; above that there is room for the noise of the smallest cohort's shares, which are the largest.

    Args:
        policy: of a distributed mode.
        dimension: coordinates of the vector.

    Raises:
        PolicyError: the ring has too few bits, or value_range does not fit the grid.
    """
    aggregation = policy.aggregation
    influence = largest_influence(policy)
    root = math.sqrt(dimension)
    fraction_bits = next(
        (bits for bits in range(MAX_FRACTION_BITS + 1) if root <= MAX_ROUNDING_INFLATION * (influence * 2.0**bits)),
        None,
    )
    if fraction_bits is None:
        raise PolicyError(
            "[training] learning_rate, [privacy] max_grad_norm: one unit's influence on an update is too small for any "
            "grid: raise one of them, or lower expected_batch_size"
        )
    plain = replace(_without_range(policy, dimension), fraction_bits=fraction_bits)
    grid = influence * 2.0**fraction_bits
    clamp = math.floor(aggregation.value_range * 2.0**fraction_bits)
    fewest = plain.threshold(plain.min_cohort) - plain.colluders
    deviation = policy.privacy.noise_multiplier * grid / math.sqrt(fewest)
    room = math.ceil(math.sqrt(2 * math.log(2 * dimension * 2.0**OVERFLOW_BITS)) * deviation) + 1
    if clamp < 1:
        raise PolicyError(
            f"[aggregation] value_range {aggregation.value_range:g} is below one step of the grid: write a larger one"
        )
    if clamp > MAX_CLAMP:
        raise PolicyError(
            f"[aggregation] value_range {aggregation.value_range:g} is too large for exact rounding on a grid this "
            "fine: write a smaller one, or raise learning_rate"
        )
    if plain.max_cohort * (clamp + room) >= 2 ** (plain.ring_bits - 1):
        raise PolicyError(
            f"[aggregation] a ring of {plain.ring_bits} bits has no room for {plain.max_cohort} vectors of range "
            f"{aggregation.value_range:g} with their noise on a grid this fine: set ring_bits = 64, or a smaller "
            "value_range"
        )
    shares = plain.threshold(plain.max_cohort) - plain.colluders
    return DistributedRing(
        replace(plain, max_magnitude=clamp + room),
        NoiseShares(dimension=dimension, shares=shares, grid=grid, clamp=clamp),
    )


def largest_influence(policy: StudyPolicy) -> float:
    """L2 norm of the most that one unit can change a site's update, before rounding.

    In ``record-distributed`` the update is ``-(learning_rate / expected_batch_size)`` times a sum of gradients, each of
    norm ``max_grad_norm`` at most; in ``silo-distributed`` it is itself clipped.
    """
    if policy.privacy.mode == "silo-distributed":
        return policy.privacy.max_grad_norm
    step = policy.training.learning_rate / policy.privacy.expected_batch_size
    return policy.privacy.max_grad_norm * step


def _without_range(policy: StudyPolicy, dimension: int) -> SecureSumPolicy:
    """The secure sum's limits with the smallest range there is, to be widened."""
    aggregation = policy.aggregation
    return SecureSumPolicy(
        colluders=aggregation.colluders,
        min_cohort=aggregation.min_cohort,
        min_honest=aggregation.min_honest,
        max_cohort=aggregation.max_cohort,
        dimension=dimension,
        ring_bits=aggregation.ring_bits,
        fraction_bits=0,
        max_magnitude=1,
        dropout_permille=aggregation.dropout_permille,
        mask_cipher=aggregation.mask_cipher,
    )
