"""Masks: 32-byte seeds stretched to uniform vectors of the ring and added in place, at the speed of the cipher.

The keystream is produced into one cache-sized buffer and added from there, so that a mask never exists as a whole;
every mask is added to one piece of the vector before the next piece is touched, so that the vector too is read from
memory once. With b a machine width the wrap-around of the ring is that of the type: no modulo, no rejection, exactly
uniform.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from secure_agg.errors import LocalProtocolError
from secure_agg.keys import SEED_BYTES
from secure_agg.parallel import over_slices, threads_for

CHUNK_BYTES = 256 * 1024  # fits the second-level cache together with the slice of the vector it is added to
AES_BLOCK_BYTES = 16
CHACHA20_BLOCK_BYTES = 64
SLACK_BYTES = CHACHA20_BLOCK_BYTES - 1  # update_into wants room for one block less a byte beyond the data
_ZEROS = bytes(CHUNK_BYTES)

CipherName = Literal["aes-256-ctr", "chacha20"]
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

    The result does not depend on the order of the jobs or the number of threads: each thread works on a slice of the
    vector of its own, at the position in every keystream that belongs to it.

    Args:
        vector: ring elements (d,), unsigned, contiguous and writable.
        jobs: the seeds, each with whether its mask is subtracted.
        cipher: AES-256 in counter mode from counter zero (NIST SP 800-38A), or ChaCha20 (RFC 8439) from counter and
            nonce zero for machines without AES instructions.
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
    if cipher not in ("aes-256-ctr", "chacha20"):
        raise LocalProtocolError(f"unknown cipher {cipher}", remedy="choose aes-256-ctr or chacha20")
    pieces = -(-vector.nbytes // CHUNK_BYTES)

    def mask_pieces(start: int, stop: int) -> None:
        _mask_pieces(vector, jobs, cipher, start, stop)

    over_slices(mask_pieces, pieces, threads_for(vector.nbytes * len(jobs), threads))


def _mask_pieces(vector: NDArray[Any], jobs: tuple[MaskJob, ...], cipher: CipherName, first: int, stop: int) -> None:
    """Mask the pieces ``first`` to ``stop`` of a vector, each with every job."""
    streams = [
        (_keystream(seed, cipher, first * CHUNK_BYTES), np.subtract if subtract else np.add) for seed, subtract in jobs
    ]
    buffer = bytearray(CHUNK_BYTES + SLACK_BYTES)
    zeros = memoryview(_ZEROS)
    per_piece = CHUNK_BYTES // vector.dtype.itemsize
    mask = np.frombuffer(buffer, dtype=vector.dtype.newbyteorder("<"), count=per_piece)
    for piece in range(first, stop):
        part = vector[piece * per_piece : (piece + 1) * per_piece]
        fill, keystream = zeros[: part.nbytes], mask[: part.size]
        for stream, combine in streams:
            stream.update_into(fill, buffer)
            combine(part, keystream, out=part)


def _keystream(seed: bytes, cipher: CipherName, offset: int) -> CipherContext:
    """Start a cipher whose output over zeros is the keystream from a byte offset, a multiple of every block size."""
    if cipher == "aes-256-ctr":
        counter = (offset // AES_BLOCK_BYTES).to_bytes(AES_BLOCK_BYTES, "big")
        return Cipher(algorithms.AES(seed), modes.CTR(counter)).encryptor()
    counter = (offset // CHACHA20_BLOCK_BYTES).to_bytes(AES_BLOCK_BYTES, "little")
    return Cipher(algorithms.ChaCha20(seed, counter), mode=None).encryptor()
