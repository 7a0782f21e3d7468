"""A site's secrets in one attempt: drawn, shared with its neighbours, used for its masks, and dropped.

Everything that must not outlive an attempt is in one object of this module, in memory only; dropping the object is how
a session erases its keys.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeVar

from secure_agg.errors import KeyAgreementError, LocalProtocolError, RemoteProtocolError, ShareError
from secure_agg.keys import AgreementKey, Randomness
from secure_agg.masks import MaskJob
from secure_agg.messages import NONCE_BYTES, AdvertiseKeys, ShareKind, UnmaskShare
from secure_agg.shamir import split
from secure_agg.sharing import open_shares, pair_mask_seed, seal_shares, self_mask_seed
from secure_agg.transitions import Step

SELF_MASK_BYTES = 32

T = TypeVar("T")


class AttemptSecrets:
    """The secrets of one site in one attempt.

    Args:
        site_id: the site.
        randomness: source of random bytes.
    """

    def __init__(self, site_id: int, randomness: Randomness) -> None:
        self._site_id = site_id
        self._randomness = randomness
        self._nonce = b""
        self._encryption_key: AgreementKey | None = None
        self._mask_key: AgreementKey | None = None
        self._self_mask = b""
        self._channels: dict[int, bytes] = {}  # X25519 secret of the encryption keys, by neighbour
        self._mask_secrets: dict[int, bytes] = {}  # X25519 secret of the mask keys, by neighbour
        self._held: dict[int, tuple[bytes, bytes]] = {}  # (mask key share, self mask share), by owner

    def __repr__(self) -> str:
        return "AttemptSecrets(<private>)"

    def draw_keys(self) -> tuple[bytes, bytes]:
        """Draw both key pairs; return the public halves for encryption and for masks."""
        self._encryption_key = AgreementKey.generate(self._randomness)
        self._mask_key = AgreementKey.generate(self._randomness)
        return self._encryption_key.public, self._mask_key.public

    def draw_nonce(self) -> bytes:
        """Draw this site's part in the seed of a sparse graph (32 bytes)."""
        self._nonce = self._randomness(NONCE_BYTES)
        return self._nonce

    @property
    def nonce(self) -> bytes:
        """What :meth:`draw_nonce` drew."""
        return self._nonce

    def agree(self, adverts: Mapping[int, AdvertiseKeys], neighbours: Collection[int]) -> None:
        """Compute both Diffie-Hellman secrets with every neighbour now, so that a bad key is found early."""
        encryption, mask = _present(self._encryption_key), _present(self._mask_key)
        for peer in sorted(neighbours):
            try:
                self._channels[peer] = encryption.exchange(adverts[peer].encryption_key)
                self._mask_secrets[peer] = mask.exchange(adverts[peer].mask_key)
            except KeyAgreementError:
                raise RemoteProtocolError(peer, Step.ADVERTISE_KEYS, "a public key is of low order") from None

    def draw_self_mask(self) -> bytes:
        """Draw the seed of the self mask (32 bytes)."""
        self._self_mask = self._randomness(SELF_MASK_BYTES)
        return self._self_mask

    def deal(self, indices: Mapping[int, int], threshold: int, keys_hash: bytes) -> dict[int, bytes]:
        """Share the mask key and the self mask, keep the own pair and seal the others.

        Args:
            indices: x coordinate of this site and of each neighbour, by site.
            threshold: shares that recover a secret.
            keys_hash: T1, or G on a sparse graph.

        Returns:
            The sealed pair for each neighbour.
        """
        points = sorted(indices.values())
        mask_key_shares = split(_present(self._mask_key).to_bytes(), threshold, points, self._randomness)
        self_mask_shares = split(self._self_mask, threshold, points, self._randomness)
        sealed = {}
        for peer in sorted(indices):
            mask_key_share, self_mask_share = mask_key_shares[indices[peer]], self_mask_shares[indices[peer]]
            if peer == self._site_id:
                self._held[peer] = mask_key_share, self_mask_share
            else:
                sealed[peer] = seal_shares(
                    self._channels[peer],
                    keys_hash,
                    sender=self._site_id,
                    recipient=peer,
                    mask_key_share=mask_key_share,
                    self_mask_share=self_mask_share,
                )
        return sealed

    def open(self, sender: int, ciphertext: bytes, keys_hash: bytes) -> None:
        """Open the pair of shares a neighbour sealed; its signature was checked, so it alone is to blame."""
        try:
            self._held[sender] = open_shares(
                self._channels[sender], keys_hash, sender=sender, recipient=self._site_id, ciphertext=ciphertext
            )
        except ShareError:
            raise RemoteProtocolError(sender, Step.SHARE_KEYS, "a sealed share does not open") from None

    def forget_channels(self) -> None:
        """Drop what sealing and opening needed."""
        self._channels.clear()
        self._encryption_key = None

    def mask_jobs(self, peers: Collection[int], shares_hash: bytes) -> tuple[MaskJob, ...]:
        """Derive the seeds of this site's masks: its own first, then those with its neighbours, ascending.

        Args:
            peers: the neighbours in U2.
            shares_hash: T2.
        """
        own: MaskJob = (self_mask_seed(self._self_mask, shares_hash, self._site_id), False)
        pairs = (
            (pair_mask_seed(self._mask_secrets[peer], shares_hash, self._site_id, peer), peer > self._site_id)
            for peer in sorted(peers)
        )
        return own, *pairs

    def forget_masks(self) -> None:
        """Drop what the masks were derived from."""
        self._self_mask, self._mask_key = b"", None
        self._mask_secrets.clear()

    def release(self, owner: int, survivors: Collection[int]) -> UnmaskShare:
        """Choose the one share of an owner that may leave: the survivor set alone decides its kind."""
        mask_key_share, self_mask_share = self._held[owner]
        if owner in survivors:
            return UnmaskShare(owner, ShareKind.SELF_MASK, self_mask_share)
        return UnmaskShare(owner, ShareKind.MASK_KEY, mask_key_share)


def _present(value: T | None) -> T:
    """Return what the state promises is there."""
    if value is None:
        raise LocalProtocolError("the session has erased what this step needs", remedy="start a new attempt")
    return value
