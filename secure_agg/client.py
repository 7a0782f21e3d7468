"""One site's side of one attempt at one round.

The session takes the server's messages in order, checks each of them as if the server were malicious, and answers. A
failed check kills it and erases its keys; a dead session never speaks again except to sign its complaint. The caller
keeps what must outlive it: a round number goes on disk *before* :meth:`ClientSession.masked_input` leaves the machine,
and an attempt number before :meth:`ClientSession.advertise_keys` does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from secure_agg.checks import ClientChecks
from secure_agg.context import RoundContext, check_agreement
from secure_agg.encoding import DIGEST_BYTES, vector_digest
from secure_agg.errors import (
    AggregationAborted,
    KeyAgreementError,
    LocalProtocolError,
    RemoteProtocolError,
    ShareError,
)
from secure_agg.keys import AgreementKey, Randomness, SigningKey
from secure_agg.masks import MaskStream, add_mask
from secure_agg.messages import (
    Abort,
    AbortCode,
    AdvertiseKeys,
    Confirmations,
    EncryptedShare,
    MaskedInput,
    PeerKeys,
    PeerShares,
    ShareKeys,
    ShareKind,
    SurvivorConfirmation,
    Survivors,
    UnmaskShare,
    UnmaskShares,
)
from secure_agg.policy import SecureSumPolicy
from secure_agg.ring import check_encoded, decode_sum
from secure_agg.roster import Roster
from secure_agg.shamir import split
from secure_agg.sharing import open_shares, pair_mask_seed, seal_shares, self_mask_seed
from secure_agg.transcript import (
    Statement,
    abort_statement,
    advertise_statement,
    input_statement,
    keys_transcript,
    self_mask_commitment,
    share_statement,
    shares_transcript,
    survivors_statement,
)
from secure_agg.transitions import ClientEvent, ClientState, Step, next_client_state

SELF_MASK_BYTES = 32

T = TypeVar("T")


class _Secrets:
    """Everything of a session that must not outlive it; in memory only, dropped as soon as it is used."""

    def __init__(self) -> None:
        self.encryption_key: AgreementKey | None = None
        self.mask_key: AgreementKey | None = None
        self.self_mask = b""
        self.channels: dict[int, bytes] = {}  # X25519 secret of the encryption keys, by peer
        self.mask_secrets: dict[int, bytes] = {}  # X25519 secret of the mask keys, by peer
        self.held: dict[int, tuple[bytes, bytes]] = {}  # (mask key share, self mask share), by owner

    def __repr__(self) -> str:
        return "_Secrets(<private>)"


def _held(value: T | None) -> T:
    """Return what the state promises is there."""
    if value is None:
        raise LocalProtocolError("the session has erased what this step needs")
    return value


class ClientSession:
    """The protocol of one site (Bonawitz et al. 2017, figure 4, client side).

    Args:
        policy: the site's own secure-sum policy.
        roster: the site's own roster.
        site_id: this site.
        signing_key: the key whose public half the roster names for this site.
        context: the announced context, already accepted by :func:`secure_agg.context.validate_context`.
        ledger_head: head of the site's privacy ledger (32 bytes), so that peers can notice a rolled-back ledger.
        randomness: source of random bytes; replaced in tests only.
        mask_stream: the mask generator; replaced in tests only.

    Raises:
        LocalProtocolError: if the key or the ledger head is not what it should be.
        RemoteProtocolError: if the context is not one that policy and roster allow.
    """

    def __init__(
        self,
        *,
        policy: SecureSumPolicy,
        roster: Roster,
        site_id: int,
        signing_key: SigningKey,
        context: RoundContext,
        ledger_head: bytes,
        randomness: Randomness = os.urandom,
        mask_stream: MaskStream = add_mask,
    ) -> None:
        check_agreement(context, policy, roster)
        if site_id not in context.cohort:
            raise RemoteProtocolError(None, Step.ANNOUNCE, "this site is not in the cohort")
        if roster.entry(site_id).verify_key != signing_key.verify_key:
            raise LocalProtocolError("the signing key is not the one the roster names for this site")
        if len(ledger_head) != DIGEST_BYTES:
            raise LocalProtocolError(f"a ledger head is {DIGEST_BYTES} bytes long")
        self._policy = policy
        self._roster = roster
        self._site_id = site_id
        self._signing_key = signing_key
        self._context = context
        self._ledger_head = ledger_head
        self._randomness = randomness
        self._mask_stream = mask_stream
        self._checks = ClientChecks(policy, roster, context, site_id)
        self._state = ClientState.START
        self._step = Step.ADVERTISE_KEYS
        self._accused = 0
        self._secrets = _Secrets()
        self._adverts: dict[int, AdvertiseKeys] = {}  # U1
        self._sharers: tuple[int, ...] = ()  # U2
        self._survivors: tuple[int, ...] = ()  # U3
        self._commitment = b""
        self._keys_hash = b""  # T1
        self._shares_hash = b""  # T2
        self._own_digest = b""
        self._confirmed: Statement | None = None

    @property
    def state(self) -> ClientState:
        """Where the session stands."""
        return self._state

    @property
    def survivors(self) -> tuple[int, ...]:
        """The sites whose inputs are in the sum (U3), once confirmed; empty before."""
        return self._survivors

    @property
    def peer_ledger_heads(self) -> Mapping[int, bytes]:
        """The signed ledger head of every site of U1, for comparison with the last one seen."""
        return {site_id: advert.ledger_head for site_id, advert in self._adverts.items()}

    def __repr__(self) -> str:
        return f"ClientSession(site_id={self._site_id}, state={self._state.value!r})"

    def advertise_keys(self) -> AdvertiseKeys:
        """Draw this attempt's two key pairs and sign their public halves for this context."""
        with self._moving(ClientEvent.ADVERTISE_KEYS, Step.ADVERTISE_KEYS):
            encryption, mask = AgreementKey.generate(self._randomness), AgreementKey.generate(self._randomness)
            self._secrets.encryption_key, self._secrets.mask_key = encryption, mask
            keys = (encryption.public, mask.public, self._ledger_head)
            tag, fields = advertise_statement(self._context, self._site_id, *keys)
            advert = AdvertiseKeys(self._site_id, *keys, signature=self._signing_key.sign(tag, *fields))
            self._adverts = {self._site_id: advert}
            return advert

    def receive_peer_keys(self, message: PeerKeys) -> ShareKeys:
        """Check everybody's keys and share this site's two secrets among them.

        Args:
            message: the keys of U1.

        Returns:
            The commitment and a sealed pair of shares for every other site of U1.

        Raises:
            RemoteProtocolError: if a check of phase 1 fails; the session is dead.
        """
        with self._moving(ClientEvent.PEER_KEYS, Step.ADVERTISE_KEYS):
            self._checks.peer_keys(message.adverts, self._adverts[self._site_id])
            self._adverts = {advert.sender: advert for advert in message.adverts}
            self._keys_hash = keys_transcript(self._context, message.adverts)
            self._agree_with_peers()
            return self._share_secrets()

    def receive_peer_shares(self, message: PeerShares) -> None:
        """Check and open every share this site is to hold.

        Args:
            message: the sealed shares and commitments of U2.

        Raises:
            RemoteProtocolError: if a check of phase 2 fails; the session is dead.
        """
        with self._moving(ClientEvent.PEER_SHARES, Step.SHARE_KEYS):
            commitments = self._checks.commitments(message, self._adverts, self._commitment)
            for share in message.shares:
                self._checks.peer_share(share, commitments[share.sender], self._keys_hash)
                self._secrets.held[share.sender] = self._open(share.sender, share.ciphertext)
            self._sharers = tuple(sorted(commitments))
            self._shares_hash = shares_transcript(self._keys_hash, commitments)
            self._secrets.channels.clear()
            self._secrets.encryption_key = None

    def masked_input(self, vector: NDArray[Any]) -> MaskedInput:
        """Mask and sign this site's input. Once per session; the caller has already put the release on disk.

        The masks are added in a fixed order: the self mask first, then the pair masks ascending by peer.

        Args:
            vector: ring elements (d,) as :func:`secure_agg.ring.encode` makes them; not modified.

        Returns:
            The message, whose vector is uniform to whoever lacks the seeds.

        Raises:
            LocalProtocolError: if the vector's type, length or range is wrong; nothing has changed.
        """
        with self._moving(ClientEvent.MASKED_INPUT, Step.MASKED_INPUT):
            check_encoded(self._policy, vector)
            masked = vector.copy()
            self._mask_stream(masked, self_mask_seed(self._secrets.self_mask, self._shares_hash, self._site_id))
            for peer in self._sharers:
                if peer != self._site_id:
                    seed = pair_mask_seed(self._secrets.mask_secrets[peer], self._shares_hash, self._site_id, peer)
                    self._mask_stream(masked, seed, subtract=peer > self._site_id)
            masked.flags.writeable = False
            self._own_digest = vector_digest(masked)
            tag, fields = input_statement(self._shares_hash, self._site_id, self._own_digest)
            signature = self._signing_key.sign(tag, *fields)
            self._secrets.self_mask, self._secrets.mask_key = b"", None
            self._secrets.mask_secrets.clear()
            return MaskedInput(self._site_id, masked, self._own_digest, signature)

    def receive_survivors(self, message: Survivors) -> SurvivorConfirmation:
        """Check and sign the one survivor set this session will ever accept.

        Args:
            message: the signed digests of U3.

        Raises:
            RemoteProtocolError: if a check of phase 4 fails; the session is dead.
        """
        with self._moving(ClientEvent.SURVIVORS, Step.CONFIRM_SURVIVORS):
            self._checks.survivors(message.inputs, self._sharers, self._shares_hash, self._own_digest)
            self._survivors = tuple(sorted(item.sender for item in message.inputs))
            self._confirmed = survivors_statement(self._shares_hash, message.inputs)
            tag, fields = self._confirmed
            return SurvivorConfirmation(self._site_id, self._signing_key.sign(tag, *fields))

    def receive_confirmations(self, message: Confirmations) -> UnmaskShares:
        """Check that enough sites signed the same survivor set, and release one share for each site.

        Args:
            message: the confirmations of U4.

        Returns:
            For each site of U2 one share: of its self mask if it survived, of its mask key if it did not.

        Raises:
            RemoteProtocolError: if a check of phase 5 fails; the session is dead.
        """
        with self._moving(ClientEvent.CONFIRMATIONS, Step.UNMASK):
            self._checks.confirmations(message.confirmations, self._survivors, _held(self._confirmed))
            shares = tuple(self._release(owner) for owner in self._sharers)
            self._secrets = _Secrets()
            return UnmaskShares(self._site_id, shares)

    def receive_result(self, total: NDArray[Any], survivors: Sequence[int]) -> NDArray[np.float64]:
        """Check a published sum against what this site confirmed, and decode it.

        Args:
            total: ring elements (d,).
            survivors: the sites the server says are in it.

        Returns:
            The real sum (d,).

        Raises:
            RemoteProtocolError: if the survivors are not those confirmed or the sum cannot be one of theirs.
        """
        with self._moving(ClientEvent.RESULT, Step.PUBLISH):
            if tuple(survivors) != self._survivors:
                raise RemoteProtocolError(
                    None, Step.PUBLISH, "the published survivors are not those this site confirmed"
                )
            try:
                return decode_sum(self._policy, total, len(self._survivors))
            except AggregationAborted as refused:
                raise RemoteProtocolError(None, Step.PUBLISH, refused.reason) from refused

    def abort(self, code: AbortCode | str) -> Abort:
        """Leave the round for good: erase the keys and sign a notice, which names whose message failed a check.

        Args:
            code: one of :class:`AbortCode`; never depends on data.
        """
        target = next_client_state(self._state, ClientEvent.ABORT)
        try:
            code = AbortCode(code)
        except ValueError:
            raise LocalProtocolError(f"{code} is not an abort code") from None
        self._erase()
        self._state = target
        tag, fields = abort_statement(self._context, self._site_id, self._step, code, self._accused)
        signature = self._signing_key.sign(tag, *fields)
        return Abort(self._site_id, self._step, code, signature, accused=self._accused)

    @contextmanager
    def _moving(self, event: ClientEvent, step: Step) -> Iterator[None]:
        """Run one transition: untouched on our caller's mistake, dead on anything else that fails."""
        target = next_client_state(self._state, event)
        previous, self._step = self._step, step
        try:
            yield
        except LocalProtocolError:
            self._step = previous
            raise
        except BaseException as failure:
            # Whatever went wrong, a half-finished attempt must never be completed.
            self._erase()
            self._state = ClientState.DEAD
            if isinstance(failure, RemoteProtocolError):
                self._accused = failure.peer or 0
            raise
        self._state = target

    def _erase(self) -> None:
        """Drop every secret of the attempt, so that it can never be completed."""
        self._secrets = _Secrets()

    def _agree_with_peers(self) -> None:
        """Compute both Diffie-Hellman secrets with every peer now, so that a bad key is found early."""
        encryption, mask = _held(self._secrets.encryption_key), _held(self._secrets.mask_key)
        for peer, advert in self._adverts.items():
            if peer == self._site_id:
                continue
            try:
                self._secrets.channels[peer] = encryption.exchange(advert.encryption_key)
                self._secrets.mask_secrets[peer] = mask.exchange(advert.mask_key)
            except KeyAgreementError:
                raise RemoteProtocolError(peer, Step.ADVERTISE_KEYS, "a public key is of low order") from None

    def _share_secrets(self) -> ShareKeys:
        """Draw the self mask seed, commit to it, and seal a share of both secrets for every peer of U1."""
        mask_key = _held(self._secrets.mask_key)
        self._secrets.self_mask = self._randomness(SELF_MASK_BYTES)
        self._commitment = self_mask_commitment(self._keys_hash, self._site_id, self._secrets.self_mask)
        index_of = {site_id: self._roster.share_index(site_id) for site_id in self._adverts}
        indices, t = sorted(index_of.values()), self._context.threshold
        mask_key_shares = split(mask_key.to_bytes(), t, indices, self._randomness)
        self_mask_shares = split(self._secrets.self_mask, t, indices, self._randomness)
        sealed = []
        for peer in sorted(self._adverts):
            pair = mask_key_shares[index_of[peer]], self_mask_shares[index_of[peer]]
            if peer == self._site_id:
                self._secrets.held[peer] = pair
            else:
                sealed.append(self._seal(peer, pair))
        return ShareKeys(self._site_id, self._commitment, tuple(sealed))

    def _seal(self, peer: int, pair: tuple[bytes, bytes]) -> EncryptedShare:
        """Encrypt and sign one peer's pair of shares."""
        ciphertext = seal_shares(
            self._secrets.channels[peer],
            self._keys_hash,
            sender=self._site_id,
            recipient=peer,
            mask_key_share=pair[0],
            self_mask_share=pair[1],
        )
        tag, fields = share_statement(self._keys_hash, self._site_id, peer, self._commitment, ciphertext)
        return EncryptedShare(peer, ciphertext, self._signing_key.sign(tag, *fields))

    def _open(self, sender: int, ciphertext: bytes) -> tuple[bytes, bytes]:
        """Open the pair of shares a peer sealed for this site; its signature was checked, so it alone is to blame."""
        try:
            return open_shares(
                self._secrets.channels[sender],
                self._keys_hash,
                sender=sender,
                recipient=self._site_id,
                ciphertext=ciphertext,
            )
        except ShareError:
            raise RemoteProtocolError(sender, Step.SHARE_KEYS, "a sealed share does not open") from None

    def _release(self, owner: int) -> UnmaskShare:
        """Choose the one share of an owner that may leave: the survivor set alone decides its kind."""
        mask_key_share, self_mask_share = self._secrets.held[owner]
        if owner in self._survivors:
            return UnmaskShare(owner, ShareKind.SELF_MASK, self_mask_share)
        return UnmaskShare(owner, ShareKind.MASK_KEY, mask_key_share)
