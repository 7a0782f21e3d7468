"""The discrete Gaussian on the integers, drawn exactly: P(x) proportional to exp(-x^2 / (2 sigma^2)).

Integer noise added before the secure sum must have the law that the accounting is about. A float sampler that is then
rounded has another one, and its tail leaks what it protects. Every random bit comes from AES-256-CTR under a key that
is fresh in each call; there is no seed. No floating-point number decides a draw.

Not constant-time: which table entries are read, how often a word must be looked up a second time, how many candidates
are rejected and how many are decided in arbitrary precision all depend on the draws. Draw a whole vector at once and
answer after a fixed time.
"""

from __future__ import annotations

import math
import os
from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from privacy.noise import KeyStream, Randomness

TABLE_LIMIT = 1024
"""Largest sigma drawn from a table; above, candidates are rejected."""

LARGEST_SIGMA = 2**48
"""Above, a draw would no longer fit into 64 bits with room to add."""

_WORD = 64
_BLOCK = 12288
"""Candidates made at a time: the arrays of one block stay in the cache of one core and are cheap to allocate."""


class DiscreteGaussian:
    """A sampler of independent draws.

    Up to :data:`TABLE_LIMIT` by inversion of the cumulative distribution: 64 random bits choose from a table, and where
    they come too near to an entry, further bits and a longer table decide. Above by rejection from a discrete Laplace
    law (Canonne, Kamath and Steinke 2020, arXiv 2004.00010, algorithm 3). Both are exact: no distance from the law has
    to be added to a delta, as it would with a table of 64-bit words alone (entries * 2**-64 for each draw).

    Args:
        sigma: the parameter of the law, in (0, 2**48]; a float stands for exactly its binary value. The standard
            deviation is slightly less, by under one part in a million from sigma = 1 on.

    Raises:
        ValueError: sigma is out of range.
    """

    def __init__(self, sigma: Fraction | float) -> None:
        if not (math.isfinite(sigma) and 0 < sigma <= LARGEST_SIGMA):
            raise ValueError(f"sigma must lie in (0, 2**48], not {sigma}")
        self._sigma = Fraction(sigma)
        self._law: _Law = _table(self._sigma) if self._sigma <= TABLE_LIMIT else _Rejection.of(self._sigma)

    @property
    def sigma(self) -> Fraction:
        """The parameter, exactly."""
        return self._sigma

    def sample(self, size: int, randomness: Randomness = os.urandom) -> npt.NDArray[np.int64]:
        """Independent draws.

        Args:
            size: how many, >= 0.
            randomness: source of the 32-byte key; tests and `privacy.seeded` alone replace it.

        Returns:
            Shape ``(size,)``.

        Raises:
            ValueError: size is negative.
        """
        if size < 0:
            raise ValueError(f"size must not be negative, not {size}")
        return self._law.sample(size, KeyStream(randomness, 2 * _BLOCK))


class _Law(Protocol):
    def sample(self, size: int, stream: KeyStream) -> npt.NDArray[np.int64]: ...


@dataclass(frozen=True, eq=False)
class _Table:
    """Inversion of the cumulative distribution.

    Args:
        sigma: exactly.
        thresholds: 2^64 P(X <= x) cut to integers, for x from -tail to tail - 1; the draw is the number of thresholds
            at or below a random word, less tail. A word within 2 of a threshold, or of either end, is left open.
        guide: the draw for each value of a word's upper 16 bits, or ``_UNDECIDED`` where the lower bits matter.
        tail: the largest magnitude in the table; less than 2^-65 of the law lies beyond.
    """

    sigma: Fraction
    thresholds: npt.NDArray[np.uint64]
    guide: npt.NDArray[np.int16]
    tail: int

    def sample(self, size: int, stream: KeyStream) -> npt.NDArray[np.int64]:
        draws = np.empty(size, dtype=np.int64)
        for start in range(0, size, 2 * _BLOCK):
            part = draws[start : start + 2 * _BLOCK]
            words = stream.words(len(part))
            part[:] = self.guide[_upper_16_bits(words)]
            undecided = np.flatnonzero(part == _UNDECIDED)
            chosen = words[undecided]
            low = np.searchsorted(self.thresholds, chosen - np.uint64(2), side="right")
            high = np.searchsorted(self.thresholds, chosen + np.uint64(1), side="right")
            part[undecided] = low - self.tail
            is_open = (low != high) | (chosen < 2) | (chosen >= 2**_WORD - 2)
            for i in undecided[is_open].tolist():
                part[i] = _settle_inversion(self.sigma, int(words[i]), stream)
        return draws


_UNDECIDED = -(2**15)


@lru_cache(maxsize=32)
def _table(sigma: Fraction) -> _Table:
    thresholds = np.array(_cumulative(sigma, _WORD), dtype=np.uint64)
    tail = len(thresholds) // 2
    first = np.arange(2**16, dtype=np.uint64) << np.uint64(_WORD - 16)
    last = first + np.uint64(2 ** (_WORD - 16) - 1)
    low = np.searchsorted(thresholds, first - np.uint64(2), side="right") - tail
    high = np.searchsorted(thresholds, last + np.uint64(1), side="right") - tail
    guide = np.where(low == high, low, _UNDECIDED).astype(np.int16)
    guide[[0, -1]] = _UNDECIDED
    return _Table(sigma, thresholds, guide, tail)


def _settle_inversion(sigma: Fraction, prefix: int, stream: KeyStream) -> int:
    """The draw that belongs to a uniform real whose first 64 bits are ``prefix``: with as many bits as it takes."""
    bits = _WORD
    while True:
        prefix, bits = prefix << _WORD | int(stream.words(1)[0]), bits + _WORD
        thresholds = _cumulative(sigma, bits)
        low, high = bisect_right(thresholds, prefix - 2), bisect_right(thresholds, prefix + 1)
        if low == high and 2 <= prefix < 2**bits - 2:
            return low - len(thresholds) // 2


def _cumulative(sigma: Fraction, bits: int) -> list[int]:
    """2^bits P(X <= x) to within one unit, for x from -tail to tail - 1; less than 2^-(bits+1) lies beyond the tail.

    Weights follow w(x+1) = w(x) r(x) and r(x+1) = r(x) exp(-1/sigma^2), in integers with 192 guard bits. Each product
    is off by at most a unit in the last place, so w(x) by at most (x+1)^2 and all sums together by less than 2^60.
    """
    places = bits + 192
    ratio, _ = _exp_bounds(1 / (2 * sigma**2), places)
    step = ratio * ratio >> places
    weights = [1 << places]
    while weights[-1] >> 128:  # what follows is below 2^-(bits+40) of the whole
        weights.append(weights[-1] * ratio >> places)
        ratio = ratio * step >> places
    whole = 2 * sum(weights) - weights[0]
    beyond, tail = 0, len(weights) - 1
    while tail and (beyond + weights[tail]) << (bits + 2) <= whole:
        beyond += weights[tail]
        tail -= 1
    thresholds, below = [], beyond
    for x in range(-tail, tail):
        below += weights[abs(x)]
        thresholds.append((below << bits) // whole)
    return thresholds


@dataclass(frozen=True)
class _Rejection:
    """Candidates of a discrete Laplace law, accepted with an exact probability.

    With t = 2^shift near sigma, a candidate is a sign and Y = U + tV, U uniform below t and V geometric with ratio 1/e.
    The algorithm of the paper keeps it with probability exp(-U/t) and then exp(-(Y - sigma^2/t)^2 / (2 sigma^2)), and
    drops a negative zero. Both trials are one here, with probability exp(-exponent(U, V)); about 45 % are kept.

    Args:
        sigma_squared: exactly.
        shift: log2 of t, at least 1.
        curvature: floor of 2^32 t^2 / (2 sigma^2), at most 2^32.
        offset: floor of 2^24 sigma^2 / (2 t^2).
    """

    sigma_squared: Fraction
    shift: int
    curvature: int
    offset: int

    @classmethod
    def of(cls, sigma: Fraction) -> _Rejection:
        """The sampler for sigma of at least 2."""
        squared = sigma**2
        shift = 1
        while squared >= 2 * 4**shift:
            shift += 1
        ratio = squared / 4**shift  # from 1/2 to 2
        if ratio < Fraction(1, 2):
            raise ValueError(f"rejection needs a sigma of at least 2, not {float(sigma)}")
        return cls(squared, shift, int(2**32 / (2 * ratio)), int(2**24 * ratio / 2))

    def exponent(self, remainder: int, block: int) -> Fraction:
        """Minus the logarithm of the probability with which U = remainder and V = block are kept; never negative."""
        candidate = remainder + (block << self.shift)
        scale = 2 << 2 * self.shift
        return Fraction(candidate * candidate) / (2 * self.sigma_squared) + self.sigma_squared / scale - block

    def sample(self, size: int, stream: KeyStream) -> npt.NDArray[np.int64]:
        draws, filled = np.empty(size, dtype=np.int64), 0
        while filled < size:
            kept = self._try(min(_BLOCK, 3 * (size - filled) + 64), stream)[: size - filled]
            draws[filled : filled + len(kept)] = kept
            filled += len(kept)
        return draws

    def _try(self, candidates: int, stream: KeyStream) -> npt.NDArray[np.int64]:
        """The kept ones among that many candidates, in order.

        A candidate takes two words: 16 bits begin the uniform that decides V and 32 bits the one that decides whether
        it is kept; the other word holds U and the sign. Whatever these bits leave open, one in several thousand, is
        settled by :meth:`_settle` with further bits.
        """
        words = stream.words(2 * candidates)
        first, second = words[:candidates], words[candidates:]
        block = _BLOCKS[_upper_16_bits(first)]
        remainder = second >> np.uint64(_WORD - self.shift)
        excess = (first & np.uint64(2**32 - 1)).view(np.int64) - self._keep_probability(block, remainder)
        negative = (second & np.uint64(1)).astype(bool)

        undecided = np.flatnonzero((block == _OPEN) | (np.abs(excess) <= _MARGIN))
        kept = excess < 0
        magnitude = (block.astype(np.int64) << self.shift) + remainder.view(np.int64)
        for i in undecided.tolist():
            settled = self._settle(int(first[i]), int(remainder[i]), stream)
            kept[i] = settled is not None
            magnitude[i] = 0 if settled is None else settled
        kept &= ~(negative & (magnitude == 0))
        return np.where(negative, -magnitude, magnitude)[kept]

    def _keep_probability(
        self, block: npt.NDArray[np.uint8], remainder: npt.NDArray[np.uint64]
    ) -> npt.NDArray[np.int64]:
        """2^32 exp(-exponent) to within ``_MARGIN``, for blocks below 16.

        Y/t is cut to 28 binary places (error 2^-28, below 16), its square to 24, and so are the product with the
        curvature and the offset: the exponent is too small by at most 6 units of 2^-24, which is 1536 units of 2^-32
        in the probability. Tables and products of the exponential add at most 8.
        """
        whole = block.astype(np.uint64)
        scaled = remainder << np.uint64(max(28 - self.shift, 0)) >> np.uint64(max(self.shift - 28, 0))
        scaled += whole << np.uint64(28)
        scaled *= scaled
        scaled >>= np.uint64(32)
        scaled *= np.uint64(self.curvature)
        scaled >>= np.uint64(32)
        exponent = scaled.view(np.int64)
        exponent += self.offset
        exponent -= (whole << np.uint64(24)).view(np.int64)
        np.clip(exponent, 0, (_EXPONENTS << 14) - 1, out=exponent)
        low = exponent & (2**14 - 1)
        factor = 2**32 - (low << 8) + (low * low >> 17)  # exp(-low/2^24) to second order
        factor *= _EXPONENTIAL[exponent >> 14]
        factor >>= 30
        return factor

    def _settle(self, word: int, remainder: int, stream: KeyStream) -> int | None:
        """Decide one candidate exactly: its magnitude, or None if it is not kept."""
        uniform, block = _LazyUniform(word >> 48, 16, stream), 0
        while uniform.is_below_exp(Fraction(block + 1)):
            block += 1
        if not _LazyUniform(word & (2**32 - 1), 32, stream).is_below_exp(self.exponent(remainder, block)):
            return None
        return remainder + (block << self.shift)


class _LazyUniform:
    """A uniform real in [0, 1) of which as many bits are known as were needed so far."""

    def __init__(self, prefix: int, bits: int, stream: KeyStream) -> None:
        self._prefix, self._bits, self._stream = prefix, bits, stream

    def is_below_exp(self, exponent: Fraction) -> bool:
        """Whether it lies below exp(-exponent), drawing further bits until that is certain."""
        while True:
            low, high = _exp_bounds(exponent, self._bits)
            if self._prefix < low:
                return True
            if self._prefix >= high:
                return False
            self._prefix = self._prefix << _WORD | int(self._stream.words(1)[0])
            self._bits += _WORD


@lru_cache(maxsize=256)
def _exp_bounds(exponent: Fraction, bits: int) -> tuple[int, int]:
    """Integers low <= 2^bits exp(-exponent) <= high, at most 2 apart, for an exponent >= 0.

    Taylor's series of the exponent over 2^halvings, at most 1/2, in integers with 64 guard bits. The cut exponent is
    off by one unit, each term by at most two, and what is left out by at most four; then squared, bounds kept.
    """
    if exponent > bits:
        return 0, 1
    places = bits + 64
    halvings = max(0, math.ceil(exponent).bit_length() + 1)
    argument = (exponent.numerator << places) // (exponent.denominator << halvings)
    total, term, terms = 0, 1 << places, 0
    while term:
        total += -term if terms % 2 else term
        terms += 1
        term = term * argument // (terms << places)
    slack = 4 * terms + 8
    low, high = total - slack, total + slack
    for _ in range(halvings):
        low, high = low * low >> places, (high * high >> places) + 1
    return low >> 64, min((high >> 64) + 1, 1 << bits)


def _upper_16_bits(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint16]:
    return words.view("<u2")[3::4]


_MARGIN = 2048
"""Units of 2^-32 within which :meth:`_Rejection._keep_probability` leaves a candidate open."""

_EXPONENTS = 24 * 1024
_OPEN = 255


def _exponential_table() -> npt.NDArray[np.int64]:
    """2^30 exp(-i/1024) cut to integers; beyond an exponent of 24 the probability is less than a unit of 2^-32."""
    ratio, _ = _exp_bounds(Fraction(1, 1024), 128)
    values = [1 << 128]
    for _ in range(_EXPONENTS - 1):
        values.append(values[-1] * ratio >> 128)
    return np.array([value >> (128 - 30) for value in values], dtype=np.int64)


def _block_table() -> npt.NDArray[np.uint8]:
    """V for each value of the upper 16 bits of its uniform, or ``_OPEN``: V >= k where the uniform is below exp(-k)."""
    blocks = np.zeros(2**16, dtype=np.uint8)
    for k in range(12, 0, -1):
        low, high = _exp_bounds(Fraction(k), 16)
        blocks[:low] = np.maximum(blocks[:low], k)
        blocks[low:high] = _OPEN
    return blocks


_EXPONENTIAL, _BLOCKS = _exponential_table(), _block_table()
