"""What a site adds to the ring in the distributed modes: a share of the noise, exact and discrete.

The values are brought to a grid of integers first, and noise of a discrete Gaussian distribution is added there, so
that what is proved of the sum holds of the bits that leave (Kairouz, Liu and Steinke 2021). The guarantee exists only
in the sum over enough honest sites: see :class:`privacy.mechanism.Mode`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from privacy.discrete_gaussian import DiscreteGaussian
from privacy.errors import PrivacyRefused
from privacy.mechanism import Mode, NoiseShares, PrivacyParameters, rounded_square_bound
from privacy.noise import Randomness

Integers = npt.NDArray[np.int64]
DiscreteNoise = Callable[[int, Fraction, Randomness], Integers]
"""Maps a length, a parameter and a source of bytes to independent integer draws."""

ROUNDING_ATTEMPTS = 256
"""Conditional rounding accepts a draw with a probability above 0.39; so many refusals mean a broken generator."""


_SIGMA_DENOMINATOR = 2**20


def discrete_noise(size: int, sigma: Fraction, randomness: Randomness) -> Integers:
    """Independent draws of the discrete Gaussian distribution of this parameter."""
    return DiscreteGaussian(sigma).sample(size, randomness)


def share_sigma(params: PrivacyParameters, honest_survivors: int) -> Fraction:
    """Parameter of the noise that one site adds, in steps of the grid: a fraction, rounded up.

    Args:
        params: of a distributed mode.
        honest_survivors: t - c of the cohort at hand: as many honest sites, at least, add such a share.

    Raises:
        PrivacyRefused: the mode is another, or the cohort is larger than the one the mechanism is charged for.
    """
    shares = _noise_shares(params)
    if not 1 <= honest_survivors <= shares.shares:
        raise PrivacyRefused(
            f"the noise is accounted for up to {shares.shares} shares, not {honest_survivors}: the cohort is larger "
            "than the study allows"
        )
    variance = (Fraction(params.noise_multiplier) * Fraction(shares.grid)) ** 2 / honest_survivors
    return Fraction(math.isqrt(math.floor(variance * _SIGMA_DENOMINATOR**2)) + 1, _SIGMA_DENOMINATOR)


def noisy_sum(
    clipped_sum: npt.NDArray[np.float64],
    params: PrivacyParameters,
    honest_survivors: int,
    *,
    randomness: Randomness = os.urandom,
    noise: DiscreteNoise = discrete_noise,
) -> Integers:
    """Bring a site's sum of clipped gradients to the grid and add the site's share of the noise.

    Every coordinate is rounded down after a uniform dither, drawn for the sum and not for its terms: whether one unit
    is in the sum then moves the rounded vector by its gradient and less than one step in each coordinate.

    Args:
        clipped_sum: sum of gradients of norm at most ``max_grad_norm`` (d,), float64.
        params: of mode ``RECORD_DISTRIBUTED``.
        honest_survivors: t - c of the cohort.
        randomness: source of bytes; tests and `privacy.seeded` alone replace it.
        noise: the generator; tests alone replace it.

    Returns:
        Integers (d,) in steps of the grid.

    Raises:
        PrivacyRefused: the parameters do not fit.
    """
    shares = _require(params, Mode.RECORD_DISTRIBUTED, clipped_sum)
    sigma = share_sigma(params, honest_survivors)
    scaled = clipped_sum * (shares.grid / params.max_grad_norm)
    rounded = np.floor(scaled + _uniform(len(scaled), randomness))
    return _clamped(rounded, shares) + noise(len(scaled), sigma, randomness)


def noisy_update(
    update: npt.NDArray[np.float64],
    params: PrivacyParameters,
    honest_survivors: int,
    *,
    randomness: Randomness = os.urandom,
    noise: DiscreteNoise = discrete_noise,
) -> Integers:
    """Clip a site's whole update, bring it to the grid and add the site's share of the noise.

    Each coordinate is rounded up with the probability of its fraction, and the whole draw is repeated while the norm of
    the result exceeds the bound that the accounting uses.

    Args:
        update: what a round of training changed (d,), float64.
        params: of mode ``SILO_DISTRIBUTED``.
        honest_survivors: t - c of the cohort.
        randomness: source of bytes; tests and `privacy.seeded` alone replace it.
        noise: the generator; tests alone replace it.

    Returns:
        Integers (d,) in steps of the grid.

    Raises:
        PrivacyRefused: the parameters do not fit, or the generator is broken.
    """
    shares = _require(params, Mode.SILO_DISTRIBUTED, update)
    sigma = share_sigma(params, honest_survivors)
    norm = float(np.linalg.norm(update))
    factor = min(1.0, params.max_grad_norm / norm) if math.isfinite(norm) and norm > 0 else 0.0
    scaled = np.where(np.isfinite(update), update, 0.0) * (factor * shares.grid / params.max_grad_norm)
    bound = rounded_square_bound(shares.grid, shares.dimension)
    for _ in range(ROUNDING_ATTEMPTS):
        rounded = np.floor(scaled + _uniform(len(scaled), randomness))
        if float(np.square(rounded).sum()) <= bound:
            return _clamped(rounded, shares) + noise(len(scaled), sigma, randomness)
    raise PrivacyRefused("rounding never met its bound: the generator of randomness is broken")


def _clamped(rounded: npt.NDArray[np.float64], shares: NoiseShares) -> Integers:
    """Cut to the range that the ring has room for; of a sum of two, only one may have been cut, which shortens it."""
    return np.clip(rounded, -shares.clamp, shares.clamp).astype(np.int64)


def _require(params: PrivacyParameters, mode: Mode, vector: npt.NDArray[np.float64]) -> NoiseShares:
    shares = _noise_shares(params)
    if params.mode is not mode:
        raise PrivacyRefused(f"this noise belongs to {mode.value}, not to {params.mode.value}")
    if vector.shape != (shares.dimension,):
        raise PrivacyRefused(f"a vector of shape {vector.shape} where {shares.dimension} coordinates are accounted for")
    return shares


def _noise_shares(params: PrivacyParameters) -> NoiseShares:
    if params.noise_shares is None:
        raise PrivacyRefused(f"mode {params.mode.value} has no shares of noise")
    return params.noise_shares


def _uniform(size: int, randomness: Randomness) -> npt.NDArray[np.float64]:
    """Multiples of 2**-53 in [0, 1)."""
    stream = Cipher(algorithms.AES256(randomness(32)), modes.CTR(bytes(16))).encryptor().update(bytes(8 * size))
    return (np.frombuffer(stream, dtype="<u8") >> np.uint64(11)).astype(np.float64) * 2.0**-53
