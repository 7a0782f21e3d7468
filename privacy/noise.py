"""Gaussian noise from a cryptographic generator, in float64 on the CPU.

There is no seed to set: every call takes a fresh 256-bit key from the operating system, so forks, restarts and threads
can never repeat a draw. (`privacy.seeded` repeats them, for studies of public data, beside ledgers that say so.)
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

_BLOCK = 8192
"""Pairs of draws made at a time: the half dozen arrays of one block stay in the cache of one core."""

_SINE = tuple((-1.0) ** k / math.factorial(2 * k + 1) for k in range(8))
"""Taylor's polynomial of sin(x)/x in x^2; on |x| <= pi/4 the part of the sine left out is below (pi/4)^17 / 17!, or
5e-17: less than half a unit in the last place of 1."""


class KeyStream:
    """The AES-256-CTR stream of one fresh key, as 64-bit words; never share one between two calls or two threads.

    Args:
        randomness: source of the 32-byte key; tests and `privacy.seeded` alone replace it.
        capacity: largest number of words asked for at once.
    """

    def __init__(self, randomness: Randomness, capacity: int) -> None:
        self._cipher = Cipher(algorithms.AES256(randomness(32)), modes.CTR(bytes(16))).encryptor()
        self._capacity = capacity
        self._zeros = bytes(8 * capacity)

    def words(self, count: int) -> npt.NDArray[np.uint64]:
        """The next ``count`` uniform words, read-only.

        Raises:
            ValueError: ``count`` is above the capacity.
        """
        if count > self._capacity:
            raise ValueError(f"a stream of {self._capacity} words at a time was asked for {count}")
        return np.frombuffer(self._cipher.update(memoryview(self._zeros)[: 8 * count]), dtype="<u8")


def gaussian(
    shape: int | tuple[int, ...], standard_deviation: float, randomness: Randomness = os.urandom
) -> npt.NDArray[np.float64]:
    """Independent normal draws of mean zero.

    Box-Muller on 53-bit uniforms of an AES-256-CTR stream; the tails end at 8.57 standard deviations, beyond which a
    true Gaussian lies with probability 1e-17 a draw.

    Args:
        shape: of the result.
        standard_deviation: >= 0 and finite.
        randomness: source of the 32-byte key; tests and `privacy.seeded` alone replace it.

    Raises:
        ValueError: the standard deviation is negative or not finite, or the shape has a negative size.
    """
    if not (math.isfinite(standard_deviation) and standard_deviation >= 0):
        raise ValueError(f"standard_deviation must be finite and not negative, not {standard_deviation}")
    size = math.prod(shape) if isinstance(shape, tuple) else shape
    if size < 0:
        raise ValueError(f"shape must not be negative, not {shape}")
    draws = np.empty(size + size % 2)
    block = min(_BLOCK, len(draws) // 2)
    stream, work = KeyStream(randomness, 2 * block), np.empty((4, block))
    for start in range(0, len(draws), 2 * _BLOCK):
        _box_muller(stream, draws[start : start + 2 * _BLOCK], standard_deviation, work)
    return draws[:size].reshape(shape)


def _box_muller(
    stream: KeyStream, out: npt.NDArray[np.float64], standard_deviation: float, work: npt.NDArray[np.float64]
) -> None:
    """Fill ``out``, of even length, with the cosines of its pairs and then their sines, each times the radius.

    A quarter x of the angle lies in [-pi/4, pi/4). Its sine s is a polynomial, its cosine sqrt(1 - s^2), and the angle
    is doubled twice: numpy's own sine and cosine take three times as long on processors without AVX-512.
    """
    pairs = len(out) // 2
    words = stream.words(2 * pairs)
    radius, angle, square, sine = work[:, :pairs]
    cosines, sines = out[:pairs], out[pairs:]

    radius[:] = words[:pairs] >> np.uint64(11)
    radius += 1.0
    radius *= 2.0**-53  # in (0, 1]
    np.log(radius, out=radius)
    radius *= -2.0
    np.sqrt(radius, out=radius)
    radius *= standard_deviation

    angle[:] = words[pairs:].view("<i8") >> np.int64(11)
    angle *= math.pi / 4 * 2.0**-52
    np.multiply(angle, angle, out=square)
    np.multiply(square, _SINE[-1], out=sine)
    for coefficient in _SINE[-2:0:-1]:
        sine += coefficient
        sine *= square
    sine += _SINE[0]
    sine *= angle

    np.multiply(sine, sine, out=square)
    np.subtract(1.0, square, out=angle)
    np.sqrt(angle, out=angle)
    sine *= angle
    sine *= 2.0  # of half the angle
    square *= -2.0
    square += 1.0  # cosine of half the angle
    np.multiply(sine, square, out=sines)
    sines *= 2.0
    sines *= radius
    np.multiply(sine, sine, out=cosines)
    cosines *= -2.0
    cosines += 1.0
    cosines *= radius
