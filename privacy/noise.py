"""Gaussian noise from a cryptographic generator, in float64 on the CPU.

There is no seed to set: every call takes a fresh 256-bit key from the operating system, so forks, restarts and threads
can never repeat a draw.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

Randomness = Callable[[int], bytes]
"""Returns that many unpredictable bytes."""


def gaussian(
    shape: int | tuple[int, ...], standard_deviation: float, randomness: Randomness = os.urandom
) -> npt.NDArray[np.float64]:
    """Independent normal draws of mean zero.

    Box-Muller on 53-bit uniforms of an AES-256-CTR stream; the tails end at 8.57 standard deviations, beyond which a
    true Gaussian lies with probability 1e-17 a draw.

    Args:
        shape: of the result.
        standard_deviation: >= 0 and finite.
        randomness: source of the 32-byte key; tests alone replace it.

    Raises:
        ValueError: the standard deviation is negative or not finite.
    """
    if not (math.isfinite(standard_deviation) and standard_deviation >= 0):
        raise ValueError(f"standard_deviation must be finite and not negative, not {standard_deviation}")
    size = math.prod(shape) if isinstance(shape, tuple) else shape
    pairs = (size + 1) // 2
    uniform = _uniform(2 * pairs, randomness)
    radius = np.sqrt(-2.0 * np.log(uniform[:pairs]))
    angle = 2.0 * math.pi * uniform[pairs:]
    draws = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:size]
    draws *= standard_deviation
    return draws.reshape(shape)


def _uniform(size: int, randomness: Randomness) -> npt.NDArray[np.float64]:
    """Multiples of 2**-53 in (0, 1], each equally likely."""
    stream = Cipher(algorithms.AES256(randomness(32)), modes.CTR(bytes(16))).encryptor().update(bytes(8 * size))
    whole = np.frombuffer(stream, dtype="<u8") >> np.uint64(11)
    return (whole.astype(np.float64) + 1.0) * 2.0**-53
