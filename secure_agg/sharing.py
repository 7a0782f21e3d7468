"""Seals two sites' shares for each other, and derives the seeds of their common masks.

Each derived key is bound to the transcript of its phase, the direction and a label of its own, and is used once: the
nonce of the sealing may therefore be zero.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from secure_agg.encoding import canonical, u32
from secure_agg.errors import ShareError
from secure_agg.keys import derive
from secure_agg.shamir import SHARE_BYTES, parse_share

_NONCE = bytes(12)


def seal_shares(
    channel_secret: bytes,
    keys_hash: bytes,
    *,
    sender: int,
    recipient: int,
    mask_key_share: bytes,
    self_mask_share: bytes,
) -> bytes:
    """Encrypt one recipient's two shares (82 bytes).

    Args:
        channel_secret: X25519 secret of the two sites' encryption keys.
        keys_hash: T1.
        sender: site whose secrets are shared.
        recipient: site that will hold these shares.
        mask_key_share: share of the sender's mask private key (33 bytes).
        self_mask_share: share of the sender's self mask seed (33 bytes).
    """
    cipher, associated = _channel(channel_secret, keys_hash, sender, recipient)
    return cipher.encrypt(_NONCE, mask_key_share + self_mask_share, associated)


def open_shares(
    channel_secret: bytes, keys_hash: bytes, *, sender: int, recipient: int, ciphertext: bytes
) -> tuple[bytes, bytes]:
    """Decrypt what :func:`seal_shares` made.

    Returns:
        The shares of the sender's mask private key and of its self mask seed.

    Raises:
        ShareError: if the seal is broken or a share is not an element of the field.
    """
    cipher, associated = _channel(channel_secret, keys_hash, sender, recipient)
    try:
        plain = cipher.decrypt(_NONCE, ciphertext, associated)
    except InvalidTag:
        raise ShareError("a sealed share does not open") from None
    if len(plain) != 2 * SHARE_BYTES:
        raise ShareError("a sealed share has the wrong length")
    mask_key_share, self_mask_share = plain[:SHARE_BYTES], plain[SHARE_BYTES:]
    parse_share(mask_key_share)
    parse_share(self_mask_share)
    return mask_key_share, self_mask_share


def pair_mask_seed(mask_secret: bytes, shares_hash: bytes, one: int, other: int) -> bytes:
    """Derive the seed of the mask that two sites share (32 bytes); the order of the two does not matter.

    Args:
        mask_secret: X25519 secret of the two sites' mask keys.
        shares_hash: T2.
        one: either site.
        other: the other site.
    """
    info = canonical("fedmvp/pair-mask/v1", u32(min(one, other)), u32(max(one, other)))
    return derive(mask_secret, salt=shares_hash, info=info)


def self_mask_seed(self_mask: bytes, shares_hash: bytes, owner: int) -> bytes:
    """Derive the seed of a site's self mask from its secret b and T2 (32 bytes)."""
    return derive(self_mask, salt=shares_hash, info=canonical("fedmvp/self-mask/v1", u32(owner)))


def _channel(channel_secret: bytes, keys_hash: bytes, sender: int, recipient: int) -> tuple[ChaCha20Poly1305, bytes]:
    """Return the one-use cipher of a direction and its associated data."""
    ends = (u32(sender), u32(recipient))
    key = derive(channel_secret, salt=keys_hash, info=canonical("fedmvp/share-key/v1", *ends))
    return ChaCha20Poly1305(key), canonical("fedmvp/sealed-share/v1", keys_hash, *ends)
