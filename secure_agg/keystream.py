"""The keystream of a mask: one cipher for each mebibyte of it, so that a stream can be started in the middle.

AES-256 in counter mode is spelled as the ciphertext of zeros under GCM, which encrypts in counter mode (NIST SP
800-38D, section 7.1): processors with vector instructions for AES run it more than twice as fast as the library's plain
counter mode, although a tag is computed on the way and thrown away. No property of GCM is relied on.
"""

from __future__ import annotations

from typing import Literal

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

SEGMENT_BYTES = 2**20  # a segment is one mebibyte of a mask
SLACK_BYTES = 63  # update_into wants room for one block less a byte beyond the data

CIPHER_NAMES = ("aes-256-ctr", "chacha20")
CipherName = Literal["aes-256-ctr", "chacha20"]

_NONCE_BYTES = 12
_ZERO_COUNTER = bytes(4)


def keystream(seed: bytes, cipher: CipherName, segment: int) -> CipherContext:
    """Start a cipher whose output over zeros is one segment of a mask.

    Args:
        seed: 32 bytes, the cipher's key for this one mask and for nothing else.
        cipher: AES-256 in counter mode, whose first counter block is the segment's number in twelve bytes and 2 in four
            (NIST SP 800-38A); or ChaCha20 from counter 0 with the segment's number as nonce (RFC 8439).
        segment: its number, counted from 0; written big-endian.
    """
    nonce = segment.to_bytes(_NONCE_BYTES, "big")
    if cipher == "aes-256-ctr":
        return Cipher(algorithms.AES256(seed), modes.GCM(nonce)).encryptor()  # its ciphertext starts at counter 2
    return Cipher(algorithms.ChaCha20(seed, _ZERO_COUNTER + nonce), mode=None).encryptor()
