"""How fast masks could be at best: the rate of AES-256-CTR alone, and the keystream that a round cannot do without.

The library has two ways to the same keystream, plain counter mode and the ciphertext of GCM. Masks take the second; the
bounds are given for both.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from secure_agg.masks import CHUNK_BYTES, add_masks

SAMPLE_BYTES = 64 * 2**20
COUNTER_MODE: modes.Mode = modes.CTR(bytes(16))
GCM: modes.Mode = modes.GCM(bytes(12))


def encrypt_zeros(size: int, mode: modes.Mode) -> None:
    """Produce some bytes of keystream into one small buffer and do nothing with them."""
    zeros, out = memoryview(bytes(CHUNK_BYTES)), bytearray(CHUNK_BYTES + 15)
    cipher = Cipher(algorithms.AES(os.urandom(32)), mode).encryptor()
    for start in range(0, size, CHUNK_BYTES):
        cipher.update_into(zeros[: size - start], out)


def cipher_rate(threads: int = 1, mode: modes.Mode = COUNTER_MODE, repeats: int = 9) -> float:
    """Measure AES-256-CTR in bytes a second, the best of some runs; with threads, all of them together."""
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats):
            start = time.perf_counter()
            list(pool.map(encrypt_zeros, [SAMPLE_BYTES] * threads, [mode] * threads))
            best = min(best, time.perf_counter() - start)
    return threads * SAMPLE_BYTES / best


def round_keystream_bytes(clients: int, neighbours: int, vector_bytes: int) -> int:
    """Count the keystream of a round in which nobody drops.

    Each client generates its own mask and one for each neighbour, the server every client's own mask once more.
    """
    return (clients * (neighbours + 1) + clients) * vector_bytes


def masking_row(floats: int, masks: int, threads: int, runs: int) -> dict[str, float]:
    """Mask one vector some times and compare the medians with the cipher's own for the same bytes, in turns.

    The bound is plain counter mode; that of the faster way to the same bytes stands beside it.

    The ratio of wall times is the one that counts; that of processor times tells about the same on a busy machine.
    """
    vector = np.zeros(floats, dtype=np.uint32)
    jobs = [(os.urandom(32), number % 2 == 0) for number in range(masks)]
    share = -(-vector.nbytes * masks // threads)
    masking, bound, fastest = Timings(), Timings(), Timings()
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(runs + 1):  # the first run touches the memory and is not counted
            masking.take(lambda: add_masks(vector, jobs, threads=threads))
            bound.take(lambda: list(pool.map(encrypt_zeros, [share] * threads, [COUNTER_MODE] * threads)))
            fastest.take(lambda: list(pool.map(encrypt_zeros, [share] * threads, [GCM] * threads)))
    return {
        "floats": floats,
        "masks": masks,
        "threads": threads,
        "masking_s": masking.wall,
        "floor_s": bound.wall,
        "ratio": masking.wall / bound.wall,
        "ratio_to_gcm": masking.wall / fastest.wall,
        "processor_ratio": masking.processor / bound.processor,
        "gigabytes_per_s": masks * vector.nbytes / masking.wall / 1e9,
    }


class Timings:
    """Wall and processor seconds of some runs of the same thing, all but the first."""

    def __init__(self) -> None:
        self._taken: list[tuple[float, float]] = []

    def take(self, call: Callable[[], object]) -> None:
        """Run it once."""
        wall, processor = time.perf_counter(), time.process_time()
        call()
        self._taken.append((time.perf_counter() - wall, time.process_time() - processor))

    @property
    def wall(self) -> float:
        """The median of the wall seconds."""
        return statistics.median(wall for wall, _ in self._taken[1:])

    @property
    def processor(self) -> float:
        """The median of the processor seconds."""
        return statistics.median(processor for _, processor in self._taken[1:])
