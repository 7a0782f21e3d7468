"""Masks: a 32-byte seed stretched to a uniform vector of the ring and added in place, at the speed of the cipher.

The keystream is produced into one cache-sized buffer and added from there, so that a mask never exists as a whole. With
b a machine width the ring's wrap-around is that of the type: no modulo, no rejection, exactly uniform.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from secure_agg.errors import LocalProtocolError
from secure_agg.keys import SEED_BYTES

CHUNK_BYTES = 256 * 1024  # fits the second-level cache together with the slice of the vector it is added to
BLOCK_BYTES = 16  # update_into wants one block less a byte of slack
_ZEROS = bytes(CHUNK_BYTES)

CipherName = Literal["aes-256-ctr", "chacha20"]


class MaskStream(Protocol):
    """The type of :func:`add_mask`; sessions take one so that tests can inject a broken one."""

    def __call__(self, vector: NDArray[Any], seed: bytes, *, subtract: bool = False) -> None:
        """Add (or subtract) the mask of a seed to a vector of ring elements, in place."""


def add_mask(vector: NDArray[Any], seed: bytes, *, subtract: bool = False, cipher: CipherName = "aes-256-ctr") -> None:
    """Add the mask of a seed to a vector in place.

    Args:
        vector: ring elements (d,), unsigned, contiguous and writable.
        seed: 32 bytes used as the cipher's key for this one stream and for nothing else.
        subtract: subtract instead of adding.
        cipher: AES-256 in counter mode from counter zero (NIST SP 800-38A), or ChaCha20 (RFC 8439) from counter and
            nonce zero for machines without AES instructions.

    Raises:
        LocalProtocolError: if the seed or the vector cannot be used.
    """
    if len(seed) != SEED_BYTES:
        raise LocalProtocolError(f"a mask seed is {SEED_BYTES} bytes long")
    if vector.ndim != 1 or vector.dtype.kind != "u" or not vector.flags.c_contiguous:
        raise LocalProtocolError("a mask is added to a contiguous vector of unsigned integers")
    keystream = _keystream(seed, cipher)
    buffer = bytearray(min(CHUNK_BYTES, vector.nbytes) + BLOCK_BYTES - 1)
    mask = np.frombuffer(buffer, dtype=np.uint8)
    width = vector.dtype.itemsize
    little_endian = vector.dtype.newbyteorder("<")
    combine = np.subtract if subtract else np.add
    for start in range(0, vector.size, CHUNK_BYTES // width):
        part = vector[start : start + CHUNK_BYTES // width]
        keystream.update_into(memoryview(_ZEROS)[: part.nbytes], buffer)
        combine(part, mask[: part.nbytes].view(little_endian), out=part)


def _keystream(seed: bytes, cipher: CipherName, counter: bytes = bytes(BLOCK_BYTES)) -> CipherContext:
    """Start a cipher whose output over zeros is the keystream; a seed is used once, so its counter starts at zero."""
    if cipher == "aes-256-ctr":
        return Cipher(algorithms.AES(seed), modes.CTR(counter)).encryptor()
    if cipher == "chacha20":
        return Cipher(algorithms.ChaCha20(seed, counter), mode=None).encryptor()
    raise LocalProtocolError(f"unknown cipher {cipher}")
