"""One site's side of one attempt at one round.

The session takes the server's messages in order, checks each of them as if the server were malicious, and answers. A
failed check kills it and erases its keys; a dead session never speaks again except to sign its complaint. What must
outlive it is its caller's: a register of released rounds, which the session asks before a masked vector is handed out,
and the number of the attempt, to be put on disk before :meth:`ClientSession.advertise_keys` leaves the machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from numpy.typing import NDArray

from secure_agg.checks import ClientChecks
from secure_agg.context import RoundContext, check_agreement
from secure_agg.dealing import AttemptSecrets
from secure_agg.encoding import DIGEST_BYTES, vector_digest
from secure_agg.errors import LocalProtocolError, RemoteProtocolError
from secure_agg.graph import Graph
from secure_agg.keys import Randomness, SigningKey
from secure_agg.masks import Masker, add_masks
from secure_agg.messages import (
    Abort,
    AbortCode,
    AdvertiseKeys,
    Confirmations,
    EncryptedShare,
    GraphNonce,
    InputDigest,
    MaskedInput,
    PeerKeys,
    PeerNonces,
    PeerShares,
    PublishedSum,
    ShareKeys,
    SurvivorConfirmation,
    Survivors,
    UnmaskShares,
)
from secure_agg.policy import SecureSumPolicy
from secure_agg.release import ReleaseRegister
from secure_agg.ring import DecodedSum, check_encoded
from secure_agg.roster import Roster
from secure_agg.transcript import (
    abort_statement,
    advertise_statement,
    graph_transcript,
    input_statement,
    keys_transcript,
    nonce_commitment,
    self_mask_commitment,
    share_statement,
    shares_transcript,
    survivors_statement,
)
from secure_agg.transitions import ClientEvent, ClientState, Step, next_state


class ClientSession:
    """The protocol of one site (Bonawitz et al. 2017, figure 4, client side; sparse graphs after Bell et al. 2020).

    Args:
        policy: the site's own secure-sum policy.
        roster: the site's own roster.
        site_id: this site.
        signing_key: the key whose public half the roster names for this site.
        context: the announced context, already accepted by :func:`secure_agg.context.validate_context`.
        ledger_head: head of the site's privacy ledger (32 bytes), so that peers can notice a rolled-back ledger.
        randomness: source of random bytes; replaced in tests only.
        masker: the mask generator; replaced in tests only.

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
        masker: Masker = add_masks,
    ) -> None:
        check_agreement(context, policy, roster)
        if site_id not in context.cohort:
            raise RemoteProtocolError(None, Step.ANNOUNCE, "this site is not in the cohort")
        if roster.entry(site_id).verify_key != signing_key.verify_key:
            raise LocalProtocolError(
                "the signing key is not the one the roster names for this site",
                remedy="use the key that was enrolled, or have the new one put on the roster",
            )
        if len(ledger_head) != DIGEST_BYTES:
            raise LocalProtocolError(
                f"a ledger head is {DIGEST_BYTES} bytes long", remedy="give the head of the site's ledger"
            )
        self._policy = policy
        self._roster = roster
        self._site_id = site_id
        self._signing_key = signing_key
        self._context = context
        self._ledger_head = ledger_head
        self._randomness = randomness
        self._masker = masker
        self._graph = policy.graph(len(context.cohort))
        self._checks = ClientChecks(policy, roster, context, site_id)
        self._state = ClientState.START_SPARSE if self._graph.sparse else ClientState.START
        self._step = Step.ADVERTISE_KEYS
        self._accused = 0
        self._secrets = AttemptSecrets(site_id, randomness)
        self._adverts: dict[int, AdvertiseKeys] = {}  # U1
        self._vertices: tuple[int, ...] = ()  # U1, or on a sparse graph those of it that revealed their nonce
        self._neighbours: frozenset[int] = frozenset()
        self._sharers: tuple[int, ...] = ()  # U2
        self._inputs: tuple[InputDigest, ...] = ()  # U3
        self._confirmations: tuple[SurvivorConfirmation, ...] = ()  # U4
        self._commitment = b""
        self._keys_hash = b""  # T1; G once there is a sparse graph
        self._shares_hash = b""  # T2
        self._own_input: InputDigest | None = None
        self._own_confirmation: SurvivorConfirmation | None = None

    @property
    def state(self) -> ClientState:
        """Where the session stands."""
        return self._state

    @property
    def survivors(self) -> tuple[int, ...]:
        """The sites whose inputs are in the sum (U3), ascending, once confirmed; empty before."""
        return tuple(sorted(item.sender for item in self._inputs))

    @property
    def neighbours(self) -> frozenset[int]:
        """The sites that share a mask with this one, once the graph is known; empty before."""
        return self._neighbours

    @property
    def peer_ledger_heads(self) -> Mapping[int, bytes]:
        """The signed ledger head of every site of U1, for comparison with the last one seen."""
        return {site_id: advert.ledger_head for site_id, advert in self._adverts.items()}

    def __repr__(self) -> str:
        return f"ClientSession(site_id={self._site_id}, state={self._state.value!r})"

    def advertise_keys(self) -> AdvertiseKeys:
        """Draw this attempt's two key pairs, on a sparse graph also a nonce, and sign what is public of them."""
        with self._moving(ClientEvent.ADVERTISE_KEYS, Step.ADVERTISE_KEYS):
            commitment = b""
            if self._graph.sparse:
                commitment = nonce_commitment(self._context, self._site_id, self._secrets.draw_nonce())
            content = (*self._secrets.draw_keys(), self._ledger_head, commitment)
            tag, fields = advertise_statement(self._context, self._site_id, content)
            advert = AdvertiseKeys(self._site_id, *content, signature=self._signing_key.sign(tag, *fields))
            self._adverts = {self._site_id: advert}
            return advert

    def receive_peer_keys(self, message: PeerKeys) -> ShareKeys:
        """Complete graph: check everybody's keys and share this site's two secrets among them.

        Args:
            message: the keys of U1.

        Returns:
            The commitment and a sealed pair of shares for every other site of U1.

        Raises:
            RemoteProtocolError: if a check of phase 1 fails; the session is dead.
        """
        with self._moving(ClientEvent.PEER_KEYS, Step.ADVERTISE_KEYS):
            self._take_keys(message)
            return self._share_secrets(tuple(sorted(self._adverts)))

    def reveal_nonce(self, message: PeerKeys) -> GraphNonce:
        """Sparse graph: check everybody's keys, after which nobody can change them, and reveal this site's nonce.

        Args:
            message: the keys of U1.

        Raises:
            RemoteProtocolError: if a check of phase 1 fails; the session is dead.
        """
        with self._moving(ClientEvent.REVEAL_NONCE, Step.ADVERTISE_KEYS):
            self._take_keys(message)
            return GraphNonce(self._site_id, self._secrets.nonce)

    def receive_peer_nonces(self, message: PeerNonces) -> ShareKeys:
        """Sparse graph: draw the graph and share this site's two secrets among its neighbours.

        Args:
            message: the nonces of the sites in the graph.

        Returns:
            The commitment and a sealed pair of shares for every neighbour.

        Raises:
            RemoteProtocolError: if a check of phase 1b fails; the session is dead.
        """
        with self._moving(ClientEvent.PEER_NONCES, Step.REVEAL_NONCES):
            self._checks.peer_nonces(message.nonces, self._adverts, self._secrets.nonce)
            self._keys_hash = graph_transcript(self._keys_hash, message.nonces)
            return self._share_secrets(tuple(sorted(item.sender for item in message.nonces)))

    def receive_peer_shares(self, message: PeerShares) -> None:
        """Check and open every share this site is to hold.

        Args:
            message: the sealed shares from the neighbours in U2, and the commitments of U2.

        Raises:
            RemoteProtocolError: if a check of phase 2 fails; the session is dead.
        """
        with self._moving(ClientEvent.PEER_SHARES, Step.SHARE_KEYS):
            commitments = self._checks.commitments(message, self._vertices, self._neighbours, self._commitment)
            self._checks.peer_shares(message.shares, commitments, self._keys_hash)
            for share in message.shares:
                self._secrets.open(share.sender, share.ciphertext, self._keys_hash)
            self._sharers = tuple(sorted(commitments))
            self._neighbours &= set(self._sharers)
            self._shares_hash = shares_transcript(self._keys_hash, commitments)
            self._secrets.forget_channels()

    def masked_input(self, vector: NDArray[Any], releases: ReleaseRegister, *, overwrite: bool = False) -> MaskedInput:
        """Mask and sign this site's input. Once per session, and once per round number ever.

        Args:
            vector: ring elements (policy.length,) as :func:`secure_agg.ring.encode` makes them.
            releases: marks the round on disk; asked when everything that may refuse has been done, and before the
                message is handed out. What it raises ends the attempt, unless it is a LocalProtocolError.
            overwrite: mask the vector in place, which saves one copy of it: it becomes the message's and read-only, and
                a register that refuses ends the attempt too. Otherwise the vector stays as it is.

        Returns:
            The message, whose vector is uniform to whoever lacks the seeds.

        Raises:
            LocalProtocolError: if the vector's type, length or range is wrong, or a vector of this round may have left
                before; nothing has changed, unless the vector was to be overwritten.
        """
        with self._moving(ClientEvent.MASKED_INPUT, Step.MASKED_INPUT):
            check_encoded(self._policy, vector)
            masked = vector if overwrite else vector.copy()
            try:
                message = self._mask(masked)
                releases.mark(self._context.run_id, self._context.round)
            except LocalProtocolError:
                if overwrite:  # the caller holds a masked vector now: these masks must never cover another
                    self._die()
                raise
            self._own_input = InputDigest(self._site_id, message.digest, message.signature)
            self._secrets.forget_masks()
            return message

    def receive_survivors(self, message: Survivors) -> SurvivorConfirmation:
        """Check and sign the one survivor set this session will ever accept.

        Args:
            message: the signed digests of U3.

        Raises:
            RemoteProtocolError: if a check of phase 4 fails; the session is dead.
        """
        with self._moving(ClientEvent.SURVIVORS, Step.CONFIRM_SURVIVORS):
            self._checks.survivors(
                message.inputs,
                self._sharers,
                self._neighbours,
                shares_hash=self._shares_hash,
                own=self._own_input,
            )
            self._inputs = message.inputs
            tag, fields = survivors_statement(self._shares_hash, self._inputs)
            self._own_confirmation = SurvivorConfirmation(self._site_id, self._signing_key.sign(tag, *fields))
            return self._own_confirmation

    def receive_confirmations(self, message: Confirmations) -> UnmaskShares:
        """Check that enough sites signed the same survivor set, and release one share for each secret held.

        Args:
            message: the confirmations of U4.

        Returns:
            For this site and each neighbour in U2 one share: of its self mask if it survived, of its mask key if not.

        Raises:
            RemoteProtocolError: if a check of phase 5 fails; the session is dead.
        """
        with self._moving(ClientEvent.CONFIRMATIONS, Step.UNMASK):
            survivors = frozenset(self.survivors)
            statement = survivors_statement(self._shares_hash, self._inputs)
            self._checks.confirmations(message.confirmations, survivors, statement, own=self._own_confirmation)
            self._confirmations = message.confirmations
            owners = sorted({self._site_id, *self._neighbours})
            shares = tuple(self._secrets.release(owner, survivors) for owner in owners)
            self._erase()
            return UnmaskShares(self._site_id, shares)

    def receive_result(self, message: PublishedSum) -> DecodedSum:
        """Check a published sum against what this site saw of the round, and decode it.

        Args:
            message: the sum, its survivors and the hash of the round.

        Raises:
            RemoteProtocolError: if the survivors are not those confirmed, the sum cannot be one of theirs, or the
                round is not the one this site saw.
        """
        with self._moving(ClientEvent.RESULT, Step.PUBLISH):
            return self._checks.result(
                message, shares_hash=self._shares_hash, inputs=self._inputs, confirmations=self._confirmations
            )

    def abort(self, code: AbortCode | str) -> Abort:
        """Leave the round for good: erase the keys and sign a notice, which names whose message failed a check.

        Args:
            code: one of :class:`AbortCode`; never depends on data.
        """
        target = next_state(self._state, ClientEvent.ABORT)
        try:
            code = AbortCode(code)
        except ValueError:
            raise LocalProtocolError(f"{code} is not an abort code", remedy="give one of AbortCode") from None
        self._erase()
        self._state = target
        tag, fields = abort_statement(self._context, self._site_id, self._step, code, self._accused)
        signature = self._signing_key.sign(tag, *fields)
        return Abort(self._site_id, self._step, code, signature, accused=self._accused)

    @contextmanager
    def _moving(self, event: ClientEvent, step: Step) -> Iterator[None]:
        """Run one transition: untouched on our caller's mistake, dead on anything else that fails."""
        target = next_state(self._state, event)
        previous, self._step = self._step, step
        try:
            yield
        except LocalProtocolError:
            self._step = previous
            raise
        except BaseException as failure:
            # Whatever went wrong, a half-finished attempt must never be completed.
            self._die()
            if isinstance(failure, RemoteProtocolError):
                self._accused = failure.peer or 0
                self._step = Step(failure.step)
            raise
        self._state = target

    def _die(self) -> None:
        """Erase the secrets and answer nothing more but an abort."""
        self._erase()
        self._state = ClientState.DEAD

    def _mask(self, vector: NDArray[Any]) -> MaskedInput:
        """Mask a vector in place and sign its hash."""
        jobs = self._secrets.mask_jobs(self._neighbours, self._shares_hash)
        self._masker(vector, jobs, cipher=self._policy.mask_cipher)
        vector.flags.writeable = False
        own_digest = vector_digest(vector)
        tag, fields = input_statement(self._shares_hash, self._site_id, own_digest)
        return MaskedInput(self._site_id, vector, own_digest, self._signing_key.sign(tag, *fields))

    def _erase(self) -> None:
        """Drop every secret of the attempt, so that it can never be completed."""
        self._secrets = AttemptSecrets(self._site_id, self._randomness)

    def _take_keys(self, message: PeerKeys) -> None:
        """Check the keys of U1 and fix them for this attempt."""
        self._checks.peer_keys(message.adverts, self._adverts[self._site_id])
        self._adverts = {advert.sender: advert for advert in message.adverts}
        self._keys_hash = keys_transcript(self._context, message.adverts)

    def _share_secrets(self, vertices: tuple[int, ...]) -> ShareKeys:
        """Agree with every neighbour on keys, commit to the self mask, and seal a share of both secrets for each."""
        self._vertices = vertices
        self._neighbours = Graph(self._graph, vertices, self._keys_hash).neighbours(self._site_id)
        self._secrets.agree(self._adverts, self._neighbours)
        self_mask = self._secrets.draw_self_mask()
        self._commitment = self_mask_commitment(self._keys_hash, self._site_id, self_mask)
        holders = {self._site_id, *self._neighbours}
        indices = {holder: self._roster.share_index(holder) for holder in holders}
        sealed = self._secrets.deal(indices, self._graph.share_threshold, self._keys_hash)
        return ShareKeys(self._site_id, self._commitment, tuple(self._sign_share(*item) for item in sealed.items()))

    def _sign_share(self, peer: int, ciphertext: bytes) -> EncryptedShare:
        """Sign one neighbour's sealed pair of shares."""
        tag, fields = share_statement(self._keys_hash, self._site_id, peer, self._commitment, ciphertext)
        return EncryptedShare(peer, ciphertext, self._signing_key.sign(tag, *fields))
