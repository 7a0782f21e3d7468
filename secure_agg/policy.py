"""What a site has agreed to before any round: cohort floor, threshold rule, graph, ring and vector length.

A site reads these from its own copy of the signed study policy and never takes one from the server.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from secure_agg.errors import PolicyError
from secure_agg.graph import COMPLETE_GRAPH_LIMIT_SITES, GraphParameters, sparse_parameters
from secure_agg.keystream import CIPHER_NAMES, CipherName

__all__ = ["COMPLETE_GRAPH_LIMIT_SITES", "MAX_COHORT_SITES", "RING_DTYPES", "PolicyError", "SecureSumPolicy"]

MAX_COHORT_SITES = 10_000
MIN_HONEST_FLOOR = 2  # with one honest input in the sum, the sum is that input
MAX_DIMENSION = 2**31  # keeps one vector's field below the 4 GiB of the canonical encoding for 16 bits
MAX_FRACTION_BITS = 60

RING_DTYPES: dict[int, np.dtype[Any]] = {
    16: np.dtype(np.uint16),
    32: np.dtype(np.uint32),
    64: np.dtype(np.uint64),
}


@dataclass(frozen=True)
class SecureSumPolicy:
    """The agreed limits of one secure sum.

    Args:
        colluders: sites c, at least 1, that may pool what they know with the server without learning an honest input.
        min_cohort: fewest sites a round may start with and end with.
        min_honest: fewest honest inputs in any sum that opens, at least 2.
        max_cohort: most sites of a round; fixes the room in the ring.
        dimension: length of every site's vector.
        ring_bits: 16, 32 or 64; values are added modulo 2^ring_bits.
        fraction_bits: a real value x is carried as the integer round(x * 2^fraction_bits).
        max_magnitude: largest magnitude M of one encoded value of weight 1.
        max_weight: largest weight W of a site. None: every site counts once and no weight is sent. Otherwise a site
            sends its vector times its weight, and the weight as one more masked coordinate: only sums of both open.
        dropout_permille: sites of a thousand that may fall silent in a round, which the sparse graph of a cohort above
            COMPLETE_GRAPH_LIMIT_SITES must bear; 0 to 500.
        mask_cipher: "aes-256-ctr", or "chacha20" for machines without AES instructions.

    Raises:
        PolicyError: if a bound is broken, or max_cohort * max_weight * max_magnitude could wrap around the ring.
    """

    colluders: int
    min_cohort: int
    min_honest: int
    max_cohort: int
    dimension: int
    ring_bits: int = 32
    fraction_bits: int = field(kw_only=True)
    max_magnitude: int = field(kw_only=True)
    max_weight: int | None = field(default=None, kw_only=True)
    dropout_permille: int = field(default=50, kw_only=True)
    mask_cipher: CipherName = field(default="aes-256-ctr", kw_only=True)

    def __post_init__(self) -> None:
        _require(self.colluders >= 1, "colluders is at least 1: every site that reads the sum is itself curious")
        _require(self.min_honest >= MIN_HONEST_FLOOR, f"min_honest is at least {MIN_HONEST_FLOOR}")
        _require(
            self.min_cohort >= MIN_HONEST_FLOOR + 1, "min_cohort is at least 3: of two sites, each learns the other"
        )
        _require(
            self.min_cohort <= self.max_cohort <= MAX_COHORT_SITES,
            f"max_cohort lies between min_cohort and {MAX_COHORT_SITES}",
        )
        _require(1 <= self.dimension <= MAX_DIMENSION, f"dimension lies between 1 and {MAX_DIMENSION}")
        _require(self.ring_bits in RING_DTYPES, "ring_bits is 16, 32 or 64")
        _require(0 <= self.fraction_bits <= MAX_FRACTION_BITS, f"fraction_bits lies between 0 and {MAX_FRACTION_BITS}")
        _require(self.max_magnitude >= 1, "max_magnitude is at least 1")
        _require(self.max_weight is None or self.max_weight >= 1, "max_weight is at least 1, or None for no weights")
        _require(0 <= self.dropout_permille <= 500, "dropout_permille lies between 0 and 500")
        _require(self.mask_cipher in CIPHER_NAMES, "mask_cipher is aes-256-ctr or chacha20")
        _require(
            self.max_cohort * (self.max_weight or 1) * self.max_magnitude < 2 ** (self.ring_bits - 1),
            "max_cohort * max_weight * max_magnitude must stay below 2^(ring_bits - 1), or a sum could wrap unnoticed",
        )
        self.threshold(self.min_cohort)
        self.threshold(self.max_cohort)

    @classmethod
    def from_range(
        cls,
        *,
        value_range: float,
        colluders: int,
        min_cohort: int,
        min_honest: int,
        max_cohort: int,
        dimension: int,
        ring_bits: int = 32,
        max_weight: int | None = None,
        dropout_permille: int = 50,
        mask_cipher: CipherName = "aes-256-ctr",
    ) -> Self:
        """Choose the finest fixed-point grid on which max_cohort values of a range cannot overflow.

        Args:
            value_range: largest magnitude of a real value that must be carried without saturating, above 0.
            colluders: as in the class, like every argument after it.
            min_cohort: fewest sites of a round.
            min_honest: fewest honest inputs.
            max_cohort: most sites of a round.
            dimension: length of every vector.
            ring_bits: 16, 32 or 64.
            max_weight: largest weight, or None.
            dropout_permille: dropouts the sparse graph must bear.
            mask_cipher: cipher of the masks.

        Returns:
            A policy with the largest max_magnitude that cannot wrap, and the fraction_bits that use it.
        """
        _require(ring_bits in RING_DTYPES, "ring_bits is 16, 32 or 64")
        _require(max_cohort >= 1, "max_cohort is at least 1")
        _require(max_weight is None or max_weight >= 1, "max_weight is at least 1, or None for no weights")
        _require(np.isfinite(value_range) and value_range > 0, "value_range is a finite number above 0")
        max_magnitude = (2 ** (ring_bits - 1) - 1) // (max_cohort * (max_weight or 1))
        _require(max_magnitude > value_range, f"a range of {value_range} does not fit a ring of {ring_bits} bits")
        fraction_bits = min(int(np.floor(np.log2(max_magnitude / value_range))), MAX_FRACTION_BITS)
        return cls(
            colluders=colluders,
            min_cohort=min_cohort,
            min_honest=min_honest,
            max_cohort=max_cohort,
            dimension=dimension,
            ring_bits=ring_bits,
            fraction_bits=fraction_bits,
            max_magnitude=max_magnitude,
            max_weight=max_weight,
            dropout_permille=dropout_permille,
            mask_cipher=mask_cipher,
        )

    @property
    def length(self) -> int:
        """Elements of a masked vector: the dimension, and one more where weights are sent."""
        return self.dimension + (self.max_weight is not None)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The unsigned integer type whose wrap-around is the ring."""
        return RING_DTYPES[self.ring_bits]

    def threshold(self, n: int) -> int:
        """Return t, how many sites must answer in every phase of a cohort of n.

        t is the smallest integer with 2t > n + c: then t sites cannot have signed one survivor set and t another,
        because an honest site signs one only (n - c of them) and a colluder both. On the complete graph the same holds
        for shares of one kind and of the other.

        Args:
            n: number of sites in the cohort.

        Returns:
            floor((n + c) / 2) + 1.

        Raises:
            PolicyError: if n is below min_cohort or above max_cohort, t exceeds n, or a sum could hold fewer than
                min_honest honest inputs.
        """
        _require(n >= self.min_cohort, f"a cohort of {n} is below the floor of {self.min_cohort} sites")
        _require(n <= self.max_cohort, f"a cohort of {n} is above the limit of {self.max_cohort} sites")
        t = (n + self.colluders) // 2 + 1
        _require(t <= n, f"{n} sites cannot tolerate {self.colluders} colluders: the threshold would be {t}")
        _require(
            t - self.colluders >= self.min_honest,
            f"{t} answers with {self.colluders} colluders leave fewer than {self.min_honest} honest inputs",
        )
        return t

    def survivor_floor(self, n: int) -> int:
        """Return the fewest sites that may remain after any phase of a cohort of n: max(t, min_cohort)."""
        return max(self.threshold(n), self.min_cohort)

    def graph(self, n: int) -> GraphParameters:
        """Return the graph of a cohort of n: complete up to COMPLETE_GRAPH_LIMIT_SITES or where no sparse one serves.

        Raises:
            PolicyError: as :meth:`threshold` does.
        """
        threshold, floor = self.threshold(n), self.survivor_floor(n)
        if n > COMPLETE_GRAPH_LIMIT_SITES:
            dropped = -(-n * self.dropout_permille // 1000)
            sparse = sparse_parameters(n, self.colluders, dropped)
            if sparse is not None:
                return replace(sparse, key_floor=max(sparse.key_floor, floor))
        return GraphParameters(False, n - 1, threshold, floor)


def _require(holds: object, reason: str) -> None:
    """Raise PolicyError unless a condition holds."""
    if not holds:
        raise PolicyError(reason, remedy="correct the policy and have it signed again")
