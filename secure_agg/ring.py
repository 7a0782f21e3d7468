"""Real vectors as fixed-point integers modulo 2^b, and back: a sum is exact or the round is refused.

Each site's integers lie in [-M, M] and the policy guarantees max_cohort * M < 2^(b-1), so the wrap-around of the
unsigned type never reaches a sum of honest inputs, and a sum outside [-nM, nM] proves that some input was not one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_agg.errors import AggregationAborted, LocalProtocolError
from secure_agg.policy import SecureSumPolicy
from secure_agg.transitions import Step


def encode(policy: SecureSumPolicy, values: NDArray[np.float64]) -> NDArray[Any]:
    """Encode a real vector (d,) as ring elements (d,); see :func:`encode_with_count`."""
    return encode_with_count(policy, values)[0]


def encode_with_count(policy: SecureSumPolicy, values: NDArray[np.float64]) -> tuple[NDArray[Any], int]:
    """Encode a real vector and count the values that had to be saturated.

    Args:
        policy: ring, fraction bits and largest magnitude.
        values: real vector (d,), finite.

    Returns:
        Ring elements (d,), each round-half-even(v * 2^f) saturated to [-M, M] as two's complement; and how many were
        saturated. The count is for the site's own log: it is data dependent and never sent.

    Raises:
        LocalProtocolError: if the shape is not (d,) or a value is not finite.
    """
    if values.shape != (policy.dimension,):
        raise LocalProtocolError(f"a vector of shape {values.shape} where the policy says ({policy.dimension},)")
    if not np.isfinite(values).all():
        raise LocalProtocolError("the vector holds a value that is not a finite number")
    with np.errstate(over="ignore"):  # an overflow to infinity saturates like any other large value
        scaled = np.ldexp(np.asarray(values, dtype=np.float64), policy.fraction_bits)
    np.rint(scaled, out=scaled)
    limit = float(policy.max_magnitude)
    # Above 2^53 float(M) may lie beside M: the integer clip decides. It fits, as M < 2^62 for 3 sites or more.
    saturated = int(np.count_nonzero(np.abs(scaled) > limit))
    np.clip(scaled, -limit, limit, out=scaled)
    signed = scaled.astype(np.int64)
    if limit != policy.max_magnitude:
        np.clip(signed, -policy.max_magnitude, policy.max_magnitude, out=signed)
    return signed.astype(policy.dtype), saturated


def check_encoded(policy: SecureSumPolicy, vector: NDArray[Any]) -> None:
    """Check that a vector is one that :func:`encode` could have made; LocalProtocolError otherwise."""
    if vector.dtype != policy.dtype or vector.shape != (policy.dimension,):
        raise LocalProtocolError(
            f"a vector {vector.dtype}{vector.shape} where the policy says {policy.dtype}({policy.dimension},)"
        )
    if _magnitude(policy, vector) > policy.max_magnitude:
        raise LocalProtocolError("the vector holds a value above the policy's max_magnitude")


def check_sum(policy: SecureSumPolicy, total: NDArray[Any], n: int) -> None:
    """Check that a total can be the sum of n honest inputs.

    Args:
        policy: ring and largest magnitude.
        total: ring elements (d,).
        n: number of inputs in it.

    Raises:
        AggregationAborted: if the shape or type is wrong or a coordinate lies outside [-nM, nM].
    """
    if total.dtype != policy.dtype or total.shape != (policy.dimension,):
        raise AggregationAborted(Step.PUBLISH, "the sum has the wrong type or length")
    if not 1 <= n <= policy.max_cohort:
        raise AggregationAborted(Step.PUBLISH, f"a sum of {n} inputs is not possible under this policy")
    if _magnitude(policy, total) > n * policy.max_magnitude:
        raise AggregationAborted(
            Step.PUBLISH, "the sum is larger than its inputs can make it: an input was out of range"
        )


def decode_sum(policy: SecureSumPolicy, total: NDArray[Any], n: int) -> NDArray[np.float64]:
    """Decode a sum of n inputs.

    Args:
        policy: ring, fraction bits and largest magnitude.
        total: ring elements (d,).
        n: number of inputs in it (the survivors).

    Returns:
        The real sum (d,); exact wherever the integer sum is below 2^53.

    Raises:
        AggregationAborted: if the total cannot be a sum of n honest inputs.
    """
    check_sum(policy, total, n)
    return np.ldexp(_signed(policy, total).astype(np.float64), -policy.fraction_bits)


def _signed(policy: SecureSumPolicy, vector: NDArray[Any]) -> NDArray[Any]:
    """Read ring elements as two's complement."""
    return np.ascontiguousarray(vector).view(np.dtype(f"i{policy.ring_bits // 8}"))


def _magnitude(policy: SecureSumPolicy, vector: NDArray[Any]) -> int:
    """Return the largest magnitude as a Python integer, so that the most negative value does not wrap."""
    signed = _signed(policy, vector)
    return max(int(signed.max()), -int(signed.min()))
