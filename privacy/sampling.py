"""Poisson sampling: every unit (a record, or a patient with all its records) enters every step independently.

The probability is the same public one for all.

The amplification that the accountant counts holds for this sampling alone; shuffled or fixed batches are not offered.
"""

from __future__ import annotations

import os
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from privacy.noise import Randomness

_BYTES_PER_DRAW = 8


class PoissonSampler:
    """Draws batches of positions of units.

    Args:
        n_records: how many units there are, >= 0.
        sample_rate: inclusion probability in (0, 1], rounded down to a multiple of 2**-64.
        randomness: source of bytes; tests and `privacy.seeded` alone replace it.

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(self, n_records: int, sample_rate: float, randomness: Randomness = os.urandom) -> None:
        if n_records < 0:
            raise ValueError(f"n_records must not be negative, not {n_records}")
        if not 0 < sample_rate <= 1:
            raise ValueError(f"sample_rate must lie in (0, 1], not {sample_rate}")
        self._n_records = n_records
        self._threshold = int(Fraction(sample_rate) * 2**64)  # exact: a float product could exceed the declared rate
        self._randomness = randomness

    def sample(self) -> npt.NDArray[np.int64]:
        """Positions of one batch, ascending; of any size, zero included."""
        if self._threshold == 2**64:
            return np.arange(self._n_records, dtype=np.int64)
        draws = np.frombuffer(self._randomness(_BYTES_PER_DRAW * self._n_records), dtype="<u8")
        return np.flatnonzero(draws < np.uint64(self._threshold)).astype(np.int64)
