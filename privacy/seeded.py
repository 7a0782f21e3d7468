"""Randomness that can be repeated, for studies on public data; whoever knows the seed can take the noise away again.

An engine accepts it only beside a ledger whose dataset says that it is one of such a study. No site's ledger is.
"""

from __future__ import annotations

import hashlib
import os
import threading

from privacy.errors import PrivacyRefused
from privacy.ledger import Ledger
from privacy.noise import Randomness

SEEDED_DATASET = "UNSAFE-seeded-"
"""Start of the dataset name of a ledger beside which randomness may be seeded."""


class SeededRandomness:
    """Bytes that follow from a seed: SHAKE-256 of the seed and the number of the call.

    Args:
        seed: any bytes; equal seeds give equal bytes in equal calls.
    """

    def __init__(self, seed: bytes) -> None:
        self._key = hashlib.sha256(seed).digest()
        self._calls = 0
        self._lock = threading.Lock()

    def __call__(self, count: int) -> bytes:
        """Return the next bytes."""
        with self._lock:
            self._calls += 1
            call = self._calls
        return hashlib.shake_256(self._key + call.to_bytes(8, "little")).digest(count)


def require_unpredictable(randomness: Randomness, ledger: Ledger) -> None:
    """Refuse randomness that is not the operating system's beside a ledger of real records.

    Raises:
        PrivacyRefused: as the summary says.
    """
    if randomness is not os.urandom and not ledger.dataset_id.startswith(SEEDED_DATASET):
        raise PrivacyRefused(
            f"seeded randomness protects nobody and is for studies alone: the ledger of {ledger.dataset_id!r} is not "
            f"one of a dataset named {SEEDED_DATASET}..."
        )
