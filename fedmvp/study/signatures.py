"""The consortium's root key and the signatures it puts under documents.

A signature covers ``canonical(tag, exact bytes)``: the tag keeps a signed roster from passing as a signed policy. Sites
pin the root by its fingerprint, which they learn by another way than the file (a telephone call, a contract).
"""

from __future__ import annotations

import hashlib
import hmac
import re
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from fedmvp.errors import ExitCode, UserError
from fedmvp.study.documents import read_document
from fedmvp.study.storage import read_private, write_private
from secure_agg import signed
from secure_agg.errors import SignatureError
from secure_agg.keys import SigningKey

FINGERPRINT_PREFIX = "sha256:"


def save_signing_key(path: Path, key: SigningKey) -> None:
    """Write an Ed25519 private key as PEM with mode 0600; refuses to replace a file."""
    private = Ed25519PrivateKey.from_private_bytes(key.to_bytes())
    write_private(path, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def load_signing_key(path: Path, *, what: str) -> SigningKey:
    """Read an Ed25519 private key: a site's identity, or the consortium's root.

    Args:
        path: a PEM file with mode 0600.
        what: what the key is, for messages.

    Raises:
        UserError: missing, readable by others, or not such a key.
    """
    try:
        key = load_pem_private_key(read_private(path, what=what), password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(
            f"{what} {path} is not an unencrypted Ed25519 key in PEM",
            remedy="restore the file from your backup",
            exit_code=ExitCode.IDENTITY,
        )
    return SigningKey.from_bytes(key.private_bytes_raw())


def sign_document(key: SigningKey, tag: str, document: bytes) -> bytes:
    """Return the content of the signature file for ``document``."""
    return signed.sign_document(key, tag, document).hex().encode() + b"\n"


def public_pem(public: bytes) -> bytes:
    """A 32-byte Ed25519 public key as PEM."""
    key = Ed25519PublicKey.from_public_bytes(public)
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def parse_public_pem(content: bytes, *, source: str) -> bytes:
    """Return the 32 bytes of an Ed25519 public key in PEM."""
    try:
        key = load_pem_public_key(content)
    except ValueError:
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise UserError(
            f"{source} is not an Ed25519 public key in PEM",
            remedy="restore root.pub from the study package",
            exit_code=ExitCode.IDENTITY,
        )
    return key.public_bytes_raw()


def load_root_key(path: Path) -> bytes:
    """Return the consortium's public key, 32 bytes, from ``root.pub``."""
    content = read_document(
        path, what="consortium root key", remedy="install the study package: fedmvp-client join PACKAGE --root ..."
    )
    return parse_public_pem(content, source=str(path))


def fingerprint(public: bytes) -> str:
    """Fingerprint of an Ed25519 public key: SHA-256 of its DER form.

    The same as ``openssl pkey -pubin -in root.pub -outform DER | sha256sum``.
    """
    key = Ed25519PublicKey.from_public_bytes(public)
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return FINGERPRINT_PREFIX + hashlib.sha256(der).hexdigest()


def check_fingerprint(public: bytes, expected: str) -> None:
    """Raise unless ``expected``, as a person typed it, is the fingerprint of ``public``."""
    wanted = re.sub(r"[\s:]", "", expected.lower().removeprefix(FINGERPRINT_PREFIX))
    if re.fullmatch(r"[0-9a-f]{64}", wanted) is None:
        raise UserError(
            f"{expected!r} is not a root fingerprint",
            remedy="give all 64 hexadecimal digits that the consortium told you, with or without sha256:",
            exit_code=ExitCode.USAGE,
        )
    actual = fingerprint(public)
    if not hmac.compare_digest(actual.removeprefix(FINGERPRINT_PREFIX), wanted):
        raise UserError(
            f"the root key has fingerprint {actual}, not the one you gave",
            remedy="do not use this package: ask the consortium for its fingerprint by telephone, and for a new one",
            exit_code=ExitCode.IDENTITY,
        )


def verify_signature(tag: str, document: bytes, signature: bytes, public: bytes, *, source: str) -> None:
    """Check the text of a signature file.

    Args:
        tag: the domain of the document.
        document: the exact bytes that were signed.
        signature: the signature file's bytes: 128 hexadecimal digits.
        public: the signer's Ed25519 public key, 32 bytes.
        source: the document's name in messages.

    Raises:
        UserError: not this key's signature over these bytes under this tag.
    """
    try:
        given = bytes.fromhex(signature.decode("ascii").strip())
    except ValueError:
        given = b""  # no signature at all
    try:
        signed.verify_document(public, tag, document, given, name=source)
    except SignatureError as refused:
        raise UserError(refused.args[0], remedy=refused.remedy, exit_code=ExitCode.IDENTITY) from None


def verify_document(tag: str, document: bytes, signature_file: Path, public: bytes, *, source: str) -> None:
    """Check ``document`` against the signature in a file beside it."""
    signature = read_document(
        signature_file, what="signature", remedy="install the study package again: every document comes with its .sig"
    )
    verify_signature(tag, document, signature, public, source=source)
