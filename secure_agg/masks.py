"""Masks: 32-byte seeds stretched to uniform vectors of the ring and added in place, at the speed of the cipher.

The keystream is produced into one cache-sized buffer and added from there, so that a mask never exists as a whole;
every mask is added to one piece of the vector before the next piece is touched, so that the vector too is read from
memory once. With b a machine width the wrap-around of the ring is that of the type: no modulo, no rejection, exactly
uniform.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from secure_agg.errors import LocalProtocolError
from secure_agg.keys import SEED_BYTES
from secure_agg.keystream import CIPHER_NAMES, SEGMENT_BYTES, SLACK_BYTES, CipherName, keystream
from secure_agg.parallel import over_slices, threads_for

CHUNK_BYTES = 256 * 1024  # fits the second-level cache together with the slice of the vector it is added to
_ZEROS = bytes(CHUNK_BYTES)

MaskJob = tuple[bytes, bool]
"""A seed (32 bytes, the cipher's key for this one stream and for nothing else), and whether its mask is subtracted."""


class Masker(Protocol):
    """The type of :func:`add_masks`; sessions take one so that tests can inject a broken one."""

    def __call__(self, vector: NDArray[Any], jobs: Iterable[MaskJob], *, cipher: CipherName) -> None:
        """Add or subtract the mask of every seed to a vector of ring elements, in place."""


def add_masks(
    vector: NDArray[Any],
    jobs: Iterable[MaskJob],
    *,
    cipher: CipherName = "aes-256-ctr",
    threads: int | None = None,
) -> None:
    """Add or subtract the masks of some seeds to a vector in place.

    The result does not depend on the order of the jobs or the number of threads: each thread works on segments of the
    vector of its own, and every segment has its own place in every keystream.

    Args:
        vector: ring elements (d,), unsigned, contiguous and writable.
        jobs: the seeds, each with whether its mask is subtracted.
        cipher: what :func:`secure_agg.keystream.keystream` makes of the seeds; ChaCha20 is for machines without AES
            instructions.
        threads: most threads, at least 1; None for one a core where the work is large.

    Raises:
        LocalProtocolError: if a seed, the vector or the cipher cannot be used; the vector is unchanged.
    """
    jobs = tuple(jobs)
    if any(len(seed) != SEED_BYTES for seed, _ in jobs):
        raise LocalProtocolError(f"a mask seed is {SEED_BYTES} bytes long", remedy="derive it with secure_agg.sharing")
    if vector.ndim != 1 or vector.dtype.kind != "u" or not vector.flags.c_contiguous or not vector.flags.writeable:
        raise LocalProtocolError(
            "masks are added to a contiguous, writable vector of unsigned integers",
            remedy="encode the values with secure_agg.ring.encode and copy the result",
        )
    if cipher not in CIPHER_NAMES:
        raise LocalProtocolError(f"unknown cipher {cipher}", remedy="choose aes-256-ctr or chacha20")
    segments = -(-vector.nbytes // SEGMENT_BYTES)

    def mask_segments(start: int, stop: int) -> None:
        _mask_segments(vector, jobs, cipher, start, stop)

    over_slices(mask_segments, segments, threads_for(vector.nbytes * len(jobs), threads))


def _mask_segments(vector: NDArray[Any], jobs: tuple[MaskJob, ...], cipher: CipherName, first: int, stop: int) -> None:
    """Mask the segments ``first`` to ``stop`` of a vector, each with every job."""
    buffer = bytearray(CHUNK_BYTES + SLACK_BYTES)
    zeros = memoryview(_ZEROS)
    mask = np.frombuffer(buffer, dtype=vector.dtype.newbyteorder("<"), count=CHUNK_BYTES // vector.itemsize)
    for segment in range(first, stop):
        streams = [(keystream(seed, cipher, segment), np.subtract if subtract else np.add) for seed, subtract in jobs]
        for part in _chunks(vector, segment):
            fill, values = zeros[: part.nbytes], mask[: part.size]
            for stream, combine in streams:
                stream.update_into(fill, buffer)
                combine(part, values, out=part)


def _chunks(vector: NDArray[Any], segment: int) -> Iterator[NDArray[Any]]:
    """Cut one segment of a vector into pieces that stay in the cache while every mask is added to them."""
    per_segment, per_chunk = SEGMENT_BYTES // vector.itemsize, CHUNK_BYTES // vector.itemsize
    part = vector[segment * per_segment : (segment + 1) * per_segment]
    for start in range(0, part.size, per_chunk):
        yield part[start : start + per_chunk]
