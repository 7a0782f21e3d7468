"""Keys: Ed25519 for statements, X25519 for what two sites share, HKDF-SHA256 for everything derived.

Nothing here knows the protocol. The ``repr`` of a key never shows it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from secure_agg.encoding import canonical
from secure_agg.errors import KeyAgreementError, SignatureError
from secure_agg.parallel import over_slices, usable_cores

PRIVATE_KEY_BYTES = 32
PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64
CURVE25519_FIELD = 2**255 - 19
SEED_BYTES = 32  # a full AES-256 key: a mask seed is never folded to fewer bits
MIN_SIGNATURES_PER_THREAD = 2  # fewer are checked sooner than a thread is woken

Randomness = Callable[[int], bytes]

SignedClaim = tuple[bytes, bytes, str, tuple[bytes, ...]]
"""Verify key, signature, and the tag and fields of the statement."""


class SigningKey:
    """A site's Ed25519 key, with which it signs canonical statements."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.verify_key = private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> SigningKey:
        """Draw a new key from the operating system."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_bytes(cls, raw: bytes) -> SigningKey:
        """Load a key from its 32 raw bytes; ValueError otherwise."""
        return cls(Ed25519PrivateKey.from_private_bytes(raw))

    def to_bytes(self) -> bytes:
        """Return the 32 raw private bytes, for a key file."""
        return self._private.private_bytes_raw()

    def sign(self, tag: str, *fields: bytes) -> bytes:
        """Sign the canonical encoding of a statement (64 bytes)."""
        return self._private.sign(canonical(tag, *fields))

    def __repr__(self) -> str:
        return "SigningKey(<private>)"


def verify(verify_key: bytes, signature: bytes, tag: str, *fields: bytes) -> None:
    """Check a signature over the canonical encoding of a statement.

    Args:
        verify_key: Ed25519 public key (32 bytes).
        signature: 64 bytes.
        tag: domain of the statement.
        fields: content of the statement.

    Raises:
        SignatureError: if it does not verify, for whatever reason.
    """
    try:
        Ed25519PublicKey.from_public_bytes(verify_key).verify(signature, canonical(tag, *fields))
    except (InvalidSignature, ValueError):
        raise SignatureError(f"the signature over {tag} does not verify") from None


def first_unsigned(claims: Sequence[SignedClaim]) -> int | None:
    """Check many signatures, over all cores.

    Args:
        claims: verify key, signature, tag and fields of each statement.

    Returns:
        The position of the first signature that does not verify, or None if all do.
    """
    verifies = [True] * len(claims)

    def check(start: int, stop: int) -> None:
        for position in range(start, stop):
            verify_key, signature, tag, fields = claims[position]
            try:
                verify(verify_key, signature, tag, *fields)
            except SignatureError:
                verifies[position] = False

    over_slices(check, len(claims), min(usable_cores(), len(claims) // MIN_SIGNATURES_PER_THREAD))
    return None if all(verifies) else verifies.index(False)


class AgreementKey:
    """An X25519 key pair that lives for one attempt at one round."""

    def __init__(self, raw: bytes) -> None:
        if len(raw) != PRIVATE_KEY_BYTES:
            raise KeyAgreementError(f"an X25519 private key is {PRIVATE_KEY_BYTES} bytes long")
        self._private = X25519PrivateKey.from_private_bytes(raw)
        self.public = self._private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls, randomness: Randomness = os.urandom) -> AgreementKey:
        """Draw a new pair."""
        return cls(randomness(PRIVATE_KEY_BYTES))

    def to_bytes(self) -> bytes:
        """Return the 32 raw private bytes, for secret sharing."""
        return self._private.private_bytes_raw()

    def exchange(self, peer_public: bytes) -> bytes:
        """Return the Diffie-Hellman secret with a peer (32 bytes).

        Raises:
            KeyAgreementError: if the peer's key is malformed or of low order (RFC 7748, section 6.1).
        """
        try:
            return self._private.exchange(X25519PublicKey.from_public_bytes(peer_public))
        except ValueError:
            raise KeyAgreementError("the peer's X25519 key is malformed or of low order") from None

    def __repr__(self) -> str:
        return "AgreementKey(<private>)"


def is_canonical(public: bytes) -> bool:
    """Whether a public key is spelled in the one way that is let in: below 2^255 - 19, read as little-endian.

    X25519 drops the top bit and reduces the rest, so that one key has several spellings.
    """
    return int.from_bytes(public, "little") < CURVE25519_FIELD


def derive(secret: bytes, *, salt: bytes, info: bytes) -> bytes:
    """Derive 32 bytes by HKDF-SHA256 (RFC 5869)."""
    return HKDF(algorithm=SHA256(), length=SEED_BYTES, salt=salt, info=info).derive(secret)
