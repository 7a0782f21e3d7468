"""Checks the consortium's signature under a roster, a policy or any other document, over its exact bytes."""

from __future__ import annotations

from secure_agg.errors import SignatureError
from secure_agg.keys import SigningKey, verify


def sign_document(key: SigningKey, tag: str, document: bytes) -> bytes:
    """Sign a document's exact bytes under a tag that says what it is (64 bytes)."""
    return key.sign(tag, document)


def verify_document(root_key: bytes, tag: str, document: bytes, signature: bytes, *, name: str) -> None:
    """Check a document before anything of it is believed.

    Args:
        root_key: the consortium's Ed25519 public key (32 bytes), which the site pinned.
        tag: what the document is; keeps a signed roster from passing as a signed policy.
        document: the exact bytes that were signed.
        signature: 64 bytes.
        name: the document's name, for the error.

    Raises:
        SignatureError: if it is not this key's signature over these bytes under this tag.
    """
    try:
        verify(root_key, signature, tag, document)
    except SignatureError:
        raise SignatureError(
            f"{name} does not carry a valid signature of the consortium's root",
            remedy="it was changed after signing, or belongs to another study: install the study package again",
        ) from None
