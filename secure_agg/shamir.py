"""Shamir secret sharing of 32-byte secrets over the field of p = 2^256 + 297 elements.

Every 32-byte string is an element of the field, so no secret is reduced; a share is an element of up to 257 bits in 33
bytes. Any ``threshold`` shares recover the secret and fewer say nothing about it (Shamir 1979).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import combinations, islice

from secure_agg.decoding import decode
from secure_agg.errors import ShareError
from secure_agg.keys import Randomness

FIELD = 2**256 + 297  # the smallest prime above 2^256
SECRET_BYTES = 32
SHARE_BYTES = 33
_DRAW_MASK = (1 << 257) - 1


def split(secret: bytes, threshold: int, indices: Sequence[int], randomness: Randomness) -> dict[int, bytes]:
    """Split a secret into shares.

    Args:
        secret: 32 bytes.
        threshold: how many shares recover it, at least 1.
        indices: x coordinate of each share, distinct and above 0.
        randomness: source of random bytes, called with a count.

    Returns:
        The share (33 bytes) for each index.

    Raises:
        ShareError: if the secret, the threshold or an index cannot be used.
    """
    if len(secret) != SECRET_BYTES:
        raise ShareError(f"a secret is {SECRET_BYTES} bytes long")
    if not 1 <= threshold <= len(indices):
        raise ShareError(f"a threshold of {threshold} does not fit {len(indices)} shares")
    if len(set(indices)) != len(indices) or any(not 0 < index < FIELD for index in indices):
        raise ShareError("the indices of shares are distinct and above 0")
    coefficients = [int.from_bytes(secret, "big"), *(_draw(randomness) for _ in range(threshold - 1))]
    return {index: _evaluate(coefficients, index).to_bytes(SHARE_BYTES, "big") for index in indices}


def recover(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Recover a secret from the ``threshold`` shares of lowest index.

    Args:
        shares: share (33 bytes) by index; more than the threshold may be given.
        threshold: as it was when the secret was split.

    Returns:
        The secret (32 bytes). It is the right one only if the shares are: check it against a commitment.

    Raises:
        ShareError: if there are too few shares, one is malformed, or the result is not a 32-byte value.
    """
    points = parse_shares(shares)
    if not 1 <= threshold <= len(points):
        raise ShareError(f"{len(points)} shares where {threshold} are needed")
    chosen = tuple(sorted(points))[:threshold]
    return secret_bytes(interpolate(points, chosen, at=0))


def parse_shares(shares: Mapping[int, bytes]) -> dict[int, int]:
    """Read shares as field elements by index; ShareError if one is malformed."""
    return {_checked_index(index): parse_share(share) for index, share in shares.items()}


def parse_share(share: bytes) -> int:
    """Read one share as a field element; ShareError unless it is 33 bytes and below p."""
    if len(share) != SHARE_BYTES:
        raise ShareError(f"a share is {SHARE_BYTES} bytes long")
    value = int.from_bytes(share, "big")
    if value >= FIELD:
        raise ShareError("a share is not an element of the field")
    return value


def interpolate(points: Mapping[int, int], chosen: tuple[int, ...], *, at: int) -> int:
    """Evaluate at ``at`` the polynomial of lowest degree through the chosen points."""
    coefficients = _lagrange(chosen, at)
    return sum(points[index] * coefficient for index, coefficient in zip(chosen, coefficients, strict=True)) % FIELD


def secret_bytes(value: int) -> bytes:
    """Return a recovered field element as a secret; ShareError if no 32-byte secret has this value."""
    if value >= 2 ** (8 * SECRET_BYTES):
        raise ShareError("the shares do not recombine to a 32-byte secret")
    return value.to_bytes(SECRET_BYTES, "big")


def recover_verified(
    shares: Mapping[int, bytes],
    threshold: int,
    opens: Callable[[bytes], bool],
    *,
    max_attempts: int,
    distrusted: Collection[int] = (),
) -> tuple[bytes, tuple[int, ...]]:
    """Recover a secret that a commitment confirms, and say whose shares do not lie on its polynomial.

    The shares of lowest index are tried first. If they fail, up to (shares - threshold) / 2 wrong ones are found by
    decoding, whichever they are; if there are more, sets of shares are tried with the fewest left out first.

    Args:
        shares: share by index, at least ``threshold`` of them.
        threshold: as it was when the secret was split.
        opens: whether a candidate secret opens the owner's commitment.
        max_attempts: sets to try before giving up.
        distrusted: indices whose shares were wrong elsewhere, used last.

    Returns:
        The secret, and the indices whose shares are wrong, ascending.

    Raises:
        ShareError: if there are too few shares, one is malformed, or no set tried opens the commitment.
    """
    points = parse_shares(shares)
    if not 1 <= threshold <= len(points):
        raise ShareError(f"{len(points)} shares where {threshold} are needed")
    ordered = tuple(sorted(points, key=lambda index: (index in distrusted, index)))
    for chosen in islice(_candidates(points, ordered, threshold), max_attempts):
        value = interpolate(points, chosen, at=0)
        if value < 2 ** (8 * SECRET_BYTES) and opens(secret_bytes(value)):
            rest = (index for index in sorted(points) if index not in chosen)
            return secret_bytes(value), tuple(i for i in rest if interpolate(points, chosen, at=i) != points[i])
    raise ShareError("no set of shares opens the owner's commitment")


def _candidates(points: Mapping[int, int], ordered: tuple[int, ...], threshold: int) -> Iterator[tuple[int, ...]]:
    """Yield sets of indices to recover from: the first, what decoding finds, then one set after the other."""
    sets = _candidate_sets(ordered, threshold)
    yield next(sets)
    polynomial = decode(points, threshold, FIELD)
    if polynomial is not None:
        yield tuple(index for index in ordered if _evaluate(polynomial, index) == points[index])[:threshold]
    yield from sets


def _evaluate(polynomial: Sequence[int], x: int) -> int:
    """Evaluate a polynomial, whose constant comes first, at a point of the field."""
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * x + coefficient) % FIELD
    return value


def _candidate_sets(indices: tuple[int, ...], threshold: int) -> Iterator[tuple[int, ...]]:
    """Yield distinct sets of ``threshold`` indices, leaving out as few of the lowest as possible."""
    seen: set[tuple[int, ...]] = set()
    for left_out in range(len(indices) - threshold + 1):
        for excluded in combinations(indices, left_out):
            chosen = tuple(index for index in indices if index not in excluded)[:threshold]
            if chosen not in seen:
                seen.add(chosen)
                yield chosen


def _checked_index(index: int) -> int:
    """Refuse the index at which the secret itself lies, and anything outside the field."""
    if not 0 < index < FIELD:
        raise ShareError("the index of a share is above 0 and below p")
    return index


def _draw(randomness: Randomness) -> int:
    """Draw a uniform field element by rejection; about two draws of 33 bytes on average."""
    while True:
        value = int.from_bytes(randomness(SHARE_BYTES), "big") & _DRAW_MASK
        if value < FIELD:
            return value


@lru_cache(maxsize=512)
def _lagrange(indices: tuple[int, ...], at: int) -> tuple[int, ...]:
    """Return the weight of each index when interpolating at a point; public values only, so they may be kept."""
    before = [1]  # products of (at - index) over the indices before each
    for index in indices[:-1]:
        before.append(before[-1] * (at - index) % FIELD)
    weights, after = [], 1
    for index, product, inverse in zip(reversed(indices), reversed(before), reversed(_inverses(indices)), strict=True):
        weights.append(product * after % FIELD * inverse % FIELD)
        after = after * (at - index) % FIELD
    return tuple(reversed(weights))


@lru_cache(maxsize=512)
def _inverses(indices: tuple[int, ...]) -> tuple[int, ...]:
    """Return for each index the inverse of the product of its differences from the others, whatever the point."""
    inverses = []
    for own in indices:
        product = 1
        for other in indices:
            if other != own:
                product = product * (own - other) % FIELD
        inverses.append(pow(product, -1, FIELD))
    return tuple(inverses)
