"""How fast masks could be at best: the rate of AES-256-CTR alone, and the keystream that a round cannot do without."""

from __future__ import annotations

import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from secure_agg.masks import CHUNK_BYTES, add_masks

SAMPLE_BYTES = 64 * 2**20


def encrypt_zeros(size: int) -> None:
    """Produce at least ``size`` bytes of keystream into one small buffer and do nothing with them."""
    zeros, out = bytes(CHUNK_BYTES), bytearray(CHUNK_BYTES + 15)
    cipher = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor()
    for _ in range(-(-size // CHUNK_BYTES)):
        cipher.update_into(zeros, out)


def cipher_rate(threads: int = 1, repeats: int = 9) -> float:
    """Measure AES-256-CTR in bytes a second, the best of some runs; with threads, all of them together."""
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats):
            start = time.perf_counter()
            list(pool.map(encrypt_zeros, [SAMPLE_BYTES] * threads))
            best = min(best, time.perf_counter() - start)
    return threads * SAMPLE_BYTES / best


def round_keystream_bytes(clients: int, neighbours: int, vector_bytes: int) -> int:
    """Count the keystream of a round in which nobody drops.

    Each client generates its own mask and one for each neighbour, the server every client's own mask once more.
    """
    return (clients * (neighbours + 1) + clients) * vector_bytes


def masking_row(floats: int, masks: int, threads: int, runs: int) -> dict[str, float]:
    """Mask one vector some times and compare the median with the cipher's own time for the same bytes, in turns."""
    vector = np.zeros(floats, dtype=np.uint32)
    jobs = [(os.urandom(32), number % 2 == 0) for number in range(masks)]
    share = -(-vector.nbytes * masks // threads)
    masking, bound = [], []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(runs + 1):  # the first run touches the memory and is not counted
            start = time.perf_counter()
            add_masks(vector, jobs, threads=threads)
            middle = time.perf_counter()
            list(pool.map(encrypt_zeros, [share] * threads))
            masking.append(middle - start)
            bound.append(time.perf_counter() - middle)
    seconds, floor = statistics.median(masking[1:]), statistics.median(bound[1:])
    return {
        "floats": floats,
        "masks": masks,
        "threads": threads,
        "masking_s": seconds,
        "floor_s": floor,
        "ratio": seconds / floor,
        "gigabytes_per_s": masks * vector.nbytes / seconds / 1e9,
    }
