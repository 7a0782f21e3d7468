"""Real vectors as fixed-point integers modulo 2^b, and back: a sum is exact or the round is refused.

Each site's integers lie in [-M, M] times its weight, and the policy guarantees max_cohort * W * M < 2^(b-1), so the
wrap-around of the unsigned type never reaches a sum of honest inputs, and a sum outside its bound proves that some
input was not one. Without weights W is 1 and nothing but the vector is sent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_agg.errors import AggregationAborted, LocalProtocolError
from secure_agg.parallel import over_slices, threads_for
from secure_agg.policy import SecureSumPolicy
from secure_agg.transitions import Step

BLOCK_VALUES = 128 * 1024  # values encoded at a time: still in the cache, and enough for a thread to be worth waking

Reals = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class DecodedSum:
    """A sum as real numbers.

    Args:
        values: sum of the inputs, each times its weight (d,).
        weight: sum of the weights; the number of inputs where the policy has no weights.
    """

    values: NDArray[np.float64]
    weight: int

    def __repr__(self) -> str:
        return f"DecodedSum(values=<{self.values.size} numbers>, weight={self.weight})"

    @property
    def mean(self) -> NDArray[np.float64]:
        """The weighted mean of the inputs (d,)."""
        return self.values / self.weight


def encode(
    policy: SecureSumPolicy, values: Reals, *, weight: int | None = None, out: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Encode a real vector (d,) as ring elements; see :func:`encode_with_count`."""
    return encode_with_count(policy, values, weight=weight, out=out)[0]


def encode_with_count(
    policy: SecureSumPolicy, values: Reals, *, weight: int | None = None, out: NDArray[Any] | None = None
) -> tuple[NDArray[Any], int]:
    """Encode a real vector and count the values that had to be saturated.

    Args:
        policy: ring, fraction bits, largest magnitude and largest weight.
        values: real vector (d,) of floating-point numbers, finite.
        weight: 1 to the policy's max_weight; only where the policy has weights, and there it must be given.
        out: where the ring elements go (policy.length,); memory that an earlier round has touched is faster than new.

    Returns:
        Ring elements (policy.length,): each value as round-half-even(v * 2^f) saturated to [-M, M], times the weight,
        in two's complement, and the weight behind them if there is one; and how many values were saturated. The count
        is for the site's own log: it is data dependent and never sent.

    Raises:
        LocalProtocolError: if type or shape is wrong, a value is not finite, or the weight is not one of the policy's;
            what ``out`` holds then is undefined.
    """
    _check_weight(policy, weight)
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f" or values.shape != (policy.dimension,):
        shown = f"{values.dtype}{values.shape}" if isinstance(values, np.ndarray) else type(values).__name__
        raise LocalProtocolError(
            f"the vector to encode is {shown} where the policy says floating-point numbers of shape "
            f"({policy.dimension},)",
            remedy="hand in the update of the model that the policy describes, as one flat array",
        )
    encoded = np.empty(policy.length, dtype=policy.dtype) if out is None else out
    if (encoded.dtype, encoded.shape) != (policy.dtype, (policy.length,)) or not encoded.flags.carray:
        raise LocalProtocolError(
            f"the array to encode into is not a writable {policy.dtype}({policy.length},)",
            remedy="make it with numpy.empty(policy.length, policy.dtype), or leave it out",
        )
    signed = _signed(policy, encoded)
    saturated: list[int] = []

    def encode_blocks(first: int, stop: int) -> None:
        for start in range(first * BLOCK_VALUES, min(stop * BLOCK_VALUES, policy.dimension), BLOCK_VALUES):
            block = values[start : start + BLOCK_VALUES]
            saturated.append(_encode_block(policy, block, signed[start : start + block.size], weight or 1))

    blocks = -(-policy.dimension // BLOCK_VALUES)
    over_slices(encode_blocks, blocks, threads_for(values.nbytes, None))
    if weight is not None:
        signed[-1] = weight
    return encoded, sum(saturated)


def _encode_block(policy: SecureSumPolicy, block: Reals, out: NDArray[Any], weight: int) -> int:
    """Encode a few values into signed ring elements; return how many were saturated."""
    limit = float(policy.max_magnitude)
    if limit > policy.max_magnitude:  # M has more than 53 bits: the largest double that is not above it
        limit = math.nextafter(limit, 0.0)
    # Times a power of two is exact in float32 too, unless it overflows: then the block is done again in float64.
    scaled, fits = _scaled(block, policy.fraction_bits, limit, np.float32 if block.dtype == np.float32 else np.float64)
    if not fits and scaled.dtype == np.float32:
        scaled, fits = _scaled(block, policy.fraction_bits, limit, np.float64)
    if not fits and not np.isfinite(block).all():
        raise LocalProtocolError(
            "the vector to encode holds a value that is not a finite number",
            remedy="replace non-finite gradients by zero and clamp to the value range before adding noise",
        )
    np.rint(scaled, out=scaled)
    saturated = 0
    if fits:
        np.copyto(out, scaled, casting="unsafe")
    else:
        above, below = scaled > limit, scaled < -limit
        np.copyto(out, np.clip(scaled, -limit, limit), casting="unsafe")
        out[above], out[below] = policy.max_magnitude, -policy.max_magnitude
        saturated = int(np.count_nonzero(above) + np.count_nonzero(below))
    if weight != 1:
        np.multiply(out, weight, out=out)  # stays within the ring: the policy has room for every site's weight
    return saturated


def _scaled(block: Reals, fraction_bits: int, limit: float, dtype: type[np.floating[Any]]) -> tuple[Reals, bool]:
    """Return a block times 2^fraction_bits, and whether all of it lies within a limit; not if one is not a number."""
    with np.errstate(over="ignore"):  # an overflow to infinity saturates like any other large value
        scaled = np.multiply(block, dtype(2.0**fraction_bits), dtype=dtype)
    return scaled, -limit <= float(scaled.min()) and float(scaled.max()) <= limit


def _check_weight(policy: SecureSumPolicy, weight: int | None) -> None:
    """Refuse a weight where there is none, and none where there is one."""
    if policy.max_weight is None:
        if weight is not None:
            raise LocalProtocolError(
                "a weight was given and the policy has none", remedy="leave it out, or sign a policy with max_weight"
            )
    elif not isinstance(weight, int) or not 1 <= weight <= policy.max_weight:
        raise LocalProtocolError(
            f"the weight {weight} is not a whole number between 1 and {policy.max_weight}",
            remedy="use the coarse size that the roster states for this site, cut to the policy's max_weight",
        )


def encode_integers(policy: SecureSumPolicy, integers: NDArray[np.int64]) -> NDArray[Any]:
    """Encode values that are on the grid already, as the distributed modes of privacy make them.

    Args:
        policy: ring, dimension and largest magnitude; without weights.
        integers: values times 2^fraction_bits (d,), int64.

    Returns:
        Ring elements (d,) in two's complement.

    Raises:
        LocalProtocolError: if type, shape or range is wrong, or the policy has weights. A value out of range is as
            unlikely as the policy's room for noise makes it; nothing is cut, because that would change the noise.
    """
    _check_weight(policy, None)
    if not isinstance(integers, np.ndarray) or integers.dtype != np.int64 or integers.shape != (policy.dimension,):
        shown = f"{integers.dtype}{integers.shape}" if isinstance(integers, np.ndarray) else type(integers).__name__
        raise LocalProtocolError(
            f"the integers to encode are {shown} where the policy says int64({policy.dimension},)",
            remedy="hand in what privacy.distributed makes for the same policy",
        )
    if _magnitude(integers) > policy.max_magnitude:
        raise LocalProtocolError(
            "a value to encode lies beyond the policy's max_magnitude",
            remedy="try the round again: noise of this size is drawn once in a million million vectors",
        )
    return integers.astype(policy.dtype)


def check_encoded(policy: SecureSumPolicy, vector: NDArray[Any]) -> None:
    """Check that a vector is one that :func:`encode` could have made; LocalProtocolError otherwise."""
    if not isinstance(vector, np.ndarray) or vector.dtype != policy.dtype or vector.shape != (policy.length,):
        shown = f"{vector.dtype}{vector.shape}" if isinstance(vector, np.ndarray) else type(vector).__name__
        raise LocalProtocolError(
            f"the encoded vector is {shown} where the policy says {policy.dtype}({policy.length},)",
            remedy="encode it with secure_agg.ring.encode under the same policy",
        )
    signed, weight = _signed(policy, vector), 1
    if policy.max_weight is not None:
        weight, signed = int(signed[-1]), signed[:-1]
        _check_weight(policy, weight)
    if _magnitude(signed) > weight * policy.max_magnitude:
        raise LocalProtocolError(
            "the encoded vector holds a value above the policy's max_magnitude",
            remedy="encode it with secure_agg.ring.encode, which saturates",
        )


def check_sum(policy: SecureSumPolicy, total: NDArray[Any], n: int) -> None:
    """Check that a total can be the sum of n honest inputs.

    Args:
        policy: ring, largest magnitude and largest weight.
        total: ring elements (policy.length,).
        n: number of inputs in it.

    Raises:
        AggregationAborted: if type or shape is wrong or a coordinate lies outside what n inputs can make.
    """
    if total.dtype != policy.dtype or total.shape != (policy.length,):
        raise AggregationAborted(Step.PUBLISH, "the sum has the wrong type or length")
    if not 1 <= n <= policy.max_cohort:
        raise AggregationAborted(Step.PUBLISH, f"a sum of {n} inputs is not possible under this policy")
    signed, weight = _signed(policy, total), n
    if policy.max_weight is not None:
        weight, signed = int(signed[-1]), signed[:-1]
        if not n <= weight <= n * policy.max_weight:
            raise AggregationAborted(Step.PUBLISH, "the sum of the weights is not one that its inputs can make")
    if _magnitude(signed) > weight * policy.max_magnitude:
        raise AggregationAborted(
            Step.PUBLISH, "the sum is larger than its inputs can make it: an input was out of range"
        )


def decode_sum(policy: SecureSumPolicy, total: NDArray[Any], n: int) -> DecodedSum:
    """Decode a sum of n inputs.

    Args:
        policy: ring, fraction bits, largest magnitude and largest weight.
        total: ring elements (policy.length,).
        n: number of inputs in it (the survivors).

    Returns:
        The real sum and its weight; exact wherever the integer sum is below 2^53.

    Raises:
        AggregationAborted: if the total cannot be a sum of n honest inputs.
    """
    check_sum(policy, total, n)
    signed = _signed(policy, total)
    weight = n if policy.max_weight is None else int(signed[-1])
    return DecodedSum(signed[: policy.dimension] * 2.0**-policy.fraction_bits, weight)


def _signed(policy: SecureSumPolicy, vector: NDArray[Any]) -> NDArray[Any]:
    """View ring elements as two's complement."""
    return np.ascontiguousarray(vector).view(np.dtype(f"i{policy.ring_bits // 8}"))


def _magnitude(signed: NDArray[Any]) -> int:
    """Return the largest magnitude as a Python integer, so that the most negative value does not wrap."""
    return max(int(signed.max()), -int(signed.min()))
