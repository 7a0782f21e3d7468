"""The server's side of one attempt at one round.

The session collects each phase's messages, refuses those that fail a check without harming the round, and closes the
phase when its caller says so: deadlines are the caller's. It holds sums only: an input is added to the accumulator as
it arrives and kept nowhere else. Driven with honest messages it ends in the exact sum or in AggregationAborted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_agg.context import RoundContext, check_agreement
from secure_agg.encoding import vector_digest
from secure_agg.errors import (
    AggregationAborted,
    KeyAgreementError,
    LocalProtocolError,
    RemoteProtocolError,
    SignatureError,
)
from secure_agg.graph import Graph
from secure_agg.keys import PRIVATE_KEY_BYTES, AgreementKey, first_unsigned, is_canonical, verify
from secure_agg.masks import Masker, MaskJob, add_masks
from secure_agg.messages import (
    Abort,
    AdvertiseKeys,
    Confirmations,
    GraphNonce,
    InputDigest,
    MaskedInput,
    PeerKeys,
    PeerNonces,
    PeerShare,
    PeerShares,
    ShareKeys,
    ShareKind,
    SurvivorConfirmation,
    Survivors,
    UnmaskShares,
)
from secure_agg.policy import SecureSumPolicy
from secure_agg.reconstruction import Complaint, Reconstruction
from secure_agg.result import AggregationResult
from secure_agg.ring import check_sum
from secure_agg.roster import Roster
from secure_agg.sharing import pair_mask_seed, self_mask_seed
from secure_agg.transcript import (
    Statement,
    abort_statement,
    advertise_statement,
    graph_transcript,
    input_statement,
    keys_transcript,
    nonce_commitment,
    round_transcript,
    share_statement,
    shares_transcript,
    survivors_statement,
)
from secure_agg.transitions import ServerEvent, ServerState, Step, next_state

MASKS_AT_A_TIME = 4096  # a cipher's state takes a kilobyte for each

_STEP_OF = {
    ServerState.ADVERTISE_KEYS: Step.ADVERTISE_KEYS,
    ServerState.ADVERTISE_KEYS_SPARSE: Step.ADVERTISE_KEYS,
    ServerState.REVEAL_NONCES: Step.REVEAL_NONCES,
    ServerState.SHARE_KEYS: Step.SHARE_KEYS,
    ServerState.MASKED_INPUT: Step.MASKED_INPUT,
    ServerState.CONFIRM_SURVIVORS: Step.CONFIRM_SURVIVORS,
    ServerState.UNMASK: Step.UNMASK,
}


class ServerSession:
    """The protocol of the server (Bonawitz et al. 2017, figure 4, server side; sparse graphs after Bell et al. 2020).

    Args:
        policy: the secure-sum policy of the study.
        roster: the study's roster.
        context: the context that was announced.
        masker: the mask generator; replaced in tests only.

    Raises:
        RemoteProtocolError: if the context is not one that policy and roster allow: every site would refuse it.
    """

    def __init__(
        self,
        *,
        policy: SecureSumPolicy,
        roster: Roster,
        context: RoundContext,
        masker: Masker = add_masks,
    ) -> None:
        check_agreement(context, policy, roster)
        self._policy = policy
        self._roster = roster
        self._context = context
        self._masker = masker
        self._graph_parameters = policy.graph(len(context.cohort))
        self._floor = policy.survivor_floor(len(context.cohort))
        sparse = self._graph_parameters.sparse
        self._state = ServerState.ADVERTISE_KEYS_SPARSE if sparse else ServerState.ADVERTISE_KEYS
        self._members: set[int] = set(context.cohort)  # who may send in this phase
        self._gone: dict[int, Abort] = {}
        self._adverts: dict[int, AdvertiseKeys] = {}  # U1
        self._nonces: dict[int, GraphNonce] = {}
        self._graph = Graph(self._graph_parameters, (), b"")  # of nobody, until the phases before it are closed
        self._shares: dict[int, ShareKeys] = {}  # U2
        self._inputs: dict[int, InputDigest] = {}  # U3
        self._confirmations: dict[int, SurvivorConfirmation] = {}  # U4
        self._unmask: dict[int, UnmaskShares] = {}
        self._public_keys: set[bytes] = set()
        self._keys_hash = b""  # T1; G once there is a sparse graph
        self._shares_hash = b""  # T2
        self._confirmed: Statement = ("", ())
        self._total: NDArray[Any] = np.zeros(0, dtype=policy.dtype)

    @property
    def state(self) -> ServerState:
        """What the session is collecting."""
        return self._state

    @property
    def expected(self) -> tuple[int, ...]:
        """Sites that may still send in this phase and have not, ascending; sites that aborted are not waited for."""
        arrived: dict[ServerState, dict[int, Any]] = {
            ServerState.ADVERTISE_KEYS: self._adverts,
            ServerState.ADVERTISE_KEYS_SPARSE: self._adverts,
            ServerState.REVEAL_NONCES: self._nonces,
            ServerState.SHARE_KEYS: self._shares,
            ServerState.MASKED_INPUT: self._inputs,
            ServerState.CONFIRM_SURVIVORS: self._confirmations,
            ServerState.UNMASK: self._unmask,
        }
        if self._state not in arrived:
            return ()
        return tuple(sorted(self._members - set(arrived[self._state]) - set(self._gone)))

    @property
    def aborts(self) -> tuple[Abort, ...]:
        """The signed notices of the sites that left the round."""
        return tuple(self._gone[site_id] for site_id in sorted(self._gone))

    def __repr__(self) -> str:
        return f"ServerSession(state={self._state.value!r}, cohort={self._context.cohort})"

    def receive_advertise_keys(self, message: AdvertiseKeys) -> None:
        """Take a site's keys; RemoteProtocolError names the site if a check fails."""
        self._check_sender(message.sender, ServerEvent.RECEIVE_ADVERTISE_KEYS, Step.ADVERTISE_KEYS, self._adverts)
        statement = advertise_statement(self._context, message.sender, message.content)
        self._verify(message.sender, message.signature, statement, Step.ADVERTISE_KEYS)
        if bool(message.nonce_commitment) != self._graph_parameters.sparse:
            raise RemoteProtocolError(
                message.sender, Step.ADVERTISE_KEYS, "a nonce commitment is not what the graph asks for"
            )
        public = {message.encryption_key, message.mask_key}
        if not all(map(is_canonical, public)):
            raise RemoteProtocolError(message.sender, Step.ADVERTISE_KEYS, "a public key is not in its canonical form")
        if len(public) < 2 or public & self._public_keys:
            raise RemoteProtocolError(message.sender, Step.ADVERTISE_KEYS, "a public key occurs twice")
        self._refuse_low_order(message)
        self._public_keys |= public
        self._adverts[message.sender] = message

    def close_advertise_keys(self) -> PeerKeys:
        """End phase 1 and return what every site of U1 is to be sent; AggregationAborted below the floor."""
        floor = self._graph_parameters.key_floor
        with self._closing(ServerEvent.CLOSE_ADVERTISE_KEYS, len(self._adverts), floor):
            self._members = set(self._adverts)
            self._keys_hash = keys_transcript(self._context, self._adverts.values())
            if not self._graph_parameters.sparse:
                self._graph = Graph(self._graph_parameters, self._adverts, self._keys_hash)
        return PeerKeys(tuple(self._adverts[site_id] for site_id in sorted(self._adverts)))

    def receive_nonce(self, message: GraphNonce) -> None:
        """Sparse graph: take a site's nonce; RemoteProtocolError names the site if it does not open its commitment."""
        self._check_sender(message.sender, ServerEvent.RECEIVE_NONCE, Step.REVEAL_NONCES, self._nonces)
        commitment = nonce_commitment(self._context, message.sender, message.nonce)
        if commitment != self._adverts[message.sender].nonce_commitment:
            raise RemoteProtocolError(message.sender, Step.REVEAL_NONCES, "the nonce does not open its commitment")
        self._nonces[message.sender] = message

    def close_nonces(self) -> PeerNonces:
        """Sparse graph: end phase 1b, draw the graph and return the nonces; AggregationAborted if too many are missing.

        Whoever has not revealed its nonce is out of the attempt.
        """
        floor = max(self._graph_parameters.key_floor, len(self._adverts) - self._graph_parameters.max_withheld)
        with self._closing(ServerEvent.CLOSE_NONCES, len(self._nonces), floor):
            self._members = set(self._nonces)
            nonces = tuple(self._nonces[site_id] for site_id in sorted(self._nonces))
            self._keys_hash = graph_transcript(self._keys_hash, nonces)
            self._graph = Graph(self._graph_parameters, self._nonces, self._keys_hash)
        return PeerNonces(nonces)

    def receive_share_keys(self, message: ShareKeys) -> None:
        """Take a site's commitment and sealed shares; RemoteProtocolError names the site if a check fails."""
        self._check_sender(message.sender, ServerEvent.RECEIVE_SHARE_KEYS, Step.SHARE_KEYS, self._shares)
        recipients = sorted(share.recipient for share in message.shares)
        if recipients != sorted(self._graph.neighbours(message.sender)):
            raise RemoteProtocolError(message.sender, Step.SHARE_KEYS, "the shares are not one for each neighbour")
        verify_key = self._roster.entry(message.sender).verify_key
        statements = (
            share_statement(self._keys_hash, message.sender, share.recipient, message.commitment, share.ciphertext)
            for share in message.shares
        )
        claims = [
            (verify_key, share.signature, *statement)
            for share, statement in zip(message.shares, statements, strict=True)
        ]
        if first_unsigned(claims) is not None:
            raise _unsigned(message.sender, Step.SHARE_KEYS)
        self._shares[message.sender] = message

    def close_share_keys(self) -> dict[int, PeerShares]:
        """End phase 2 and return what each site of U2 is to be sent; AggregationAborted below the floor."""
        with self._closing(ServerEvent.CLOSE_SHARE_KEYS, len(self._shares), self._floor):
            self._members = set(self._shares)
            commitments = {site_id: message.commitment for site_id, message in self._shares.items()}
            self._shares_hash = shares_transcript(self._keys_hash, commitments)
            self._total = np.zeros(self._policy.length, dtype=self._policy.dtype)
        inboxes: dict[int, list[PeerShare]] = {site_id: [] for site_id in sorted(self._shares)}
        for sender in sorted(self._shares):
            for share in self._shares[sender].shares:
                if share.recipient in inboxes:
                    item = PeerShare(sender, self._shares[sender].commitment, share.ciphertext, share.signature)
                    inboxes[share.recipient].append(item)
        listed = tuple(sorted(commitments.items()))
        return {site_id: PeerShares(tuple(items), listed) for site_id, items in inboxes.items()}

    def receive_masked_input(self, message: MaskedInput) -> None:
        """Check a masked vector and add it to the sum; RemoteProtocolError names the site if a check fails.

        One that comes after :meth:`close_masked_inputs` is refused: the survivors are fixed, and its sender's mask key
        may be about to be revealed.
        """
        self._check_sender(message.sender, ServerEvent.RECEIVE_MASKED_INPUT, Step.MASKED_INPUT, self._inputs)
        vector = message.vector
        if vector.dtype != self._policy.dtype or vector.shape != (self._policy.length,):
            raise RemoteProtocolError(message.sender, Step.MASKED_INPUT, "the vector has the wrong type or length")
        if vector_digest(vector) != message.digest:
            raise RemoteProtocolError(message.sender, Step.MASKED_INPUT, "the vector is not the one that was hashed")
        statement = input_statement(self._shares_hash, message.sender, message.digest)
        self._verify(message.sender, message.signature, statement, Step.MASKED_INPUT)
        self._inputs[message.sender] = InputDigest(message.sender, message.digest, message.signature)
        np.add(self._total, vector, out=self._total)  # last: an input must not be added a second time

    def close_masked_inputs(self) -> Survivors:
        """End phase 3: fix the survivors (U3) for good; AggregationAborted below the floor."""
        with self._closing(ServerEvent.CLOSE_MASKED_INPUTS, len(self._inputs), self._floor):
            self._members = set(self._inputs)
            self._confirmed = survivors_statement(self._shares_hash, tuple(self._inputs.values()))
        return Survivors(tuple(self._inputs[site_id] for site_id in sorted(self._inputs)))

    def receive_confirmation(self, message: SurvivorConfirmation) -> None:
        """Take a site's signature over the survivors; RemoteProtocolError names the site if it is not over them."""
        self._check_sender(
            message.sender, ServerEvent.RECEIVE_CONFIRMATION, Step.CONFIRM_SURVIVORS, self._confirmations
        )
        self._verify(message.sender, message.signature, self._confirmed, Step.CONFIRM_SURVIVORS)
        self._confirmations[message.sender] = message

    def close_confirmations(self) -> Confirmations:
        """End phase 4 and return the signatures (U4); AggregationAborted with fewer than the threshold."""
        with self._closing(ServerEvent.CLOSE_CONFIRMATIONS, len(self._confirmations), self._context.threshold):
            self._members = set(self._confirmations)
        return Confirmations(tuple(self._confirmations[site_id] for site_id in sorted(self._confirmations)))

    def receive_unmask_shares(self, message: UnmaskShares) -> None:
        """Take a site's shares; RemoteProtocolError names the site if they are not one of the right kind for each."""
        self._check_sender(message.sender, ServerEvent.RECEIVE_UNMASK_SHARES, Step.UNMASK, self._unmask)
        kinds = sorted((share.owner, share.kind) for share in message.shares)
        owners = sorted({message.sender, *self._graph.neighbours(message.sender)} & set(self._shares))
        wanted = [(owner, ShareKind.SELF_MASK if owner in self._inputs else ShareKind.MASK_KEY) for owner in owners]
        if kinds != wanted:
            raise RemoteProtocolError(message.sender, Step.UNMASK, "not one share of the right kind for each site held")
        Reconstruction.check_shares(message)
        self._unmask[message.sender] = message

    def close_unmask(self) -> AggregationResult:
        """End the round: recover every seed, take the masks out, check the range of the sum.

        Returns:
            The exact sum of the survivors' inputs with its transcript.

        Raises:
            AggregationAborted: with fewer than the threshold, if an owner's shares do not open its commitment, or if
                the sum is out of range.
        """
        with self._closing(ServerEvent.CLOSE_UNMASK, len(self._unmask), self._context.threshold):
            complaints = self._take_masks_out()
            check_sum(self._policy, self._total, len(self._inputs))
        survivors = tuple(sorted(self._inputs))
        inputs = tuple(self._inputs[site_id] for site_id in survivors)
        confirmations = tuple(self._confirmations[site_id] for site_id in sorted(self._confirmations))
        total = self._total
        total.flags.writeable = False
        return AggregationResult(
            total=total,
            survivors=survivors,
            dropped=tuple(sorted(set(self._context.cohort) - set(survivors))),
            inputs=inputs,
            confirmations=confirmations,
            complaints=complaints,
            transcript_hash=round_transcript(self._shares_hash, inputs, confirmations, total),
        )

    def receive_abort(self, message: Abort) -> None:
        """Take a site's signed notice that it has left; it is no longer waited for, what it sent stays.

        Raises:
            RemoteProtocolError: if the notice is not signed by a site of the cohort for this attempt.
        """
        if message.sender not in self._context.cohort:
            raise RemoteProtocolError(message.sender, message.step, "a site outside the cohort cannot leave it")
        statement = abort_statement(self._context, message.sender, message.step, message.code, message.accused)
        self._verify(message.sender, message.signature, statement, Step(message.step))
        self._gone.setdefault(message.sender, message)  # the first notice stands

    def _check_sender(self, sender: int, event: ServerEvent, step: Step, arrived: dict[int, Any]) -> None:
        """Refuse a message that is out of phase, from somebody who has no part in the phase, or a second one."""
        try:
            next_state(self._state, event)
        except LocalProtocolError:
            raise RemoteProtocolError(sender, step, "the message is not of the phase that is open") from None
        if sender in arrived:
            raise RemoteProtocolError(sender, step, "the site has sent this message already")
        if sender not in self._members or sender in self._gone:
            raise RemoteProtocolError(sender, step, "the site has no part in this phase")

    def _verify(self, signer: int, signature: bytes, statement: Statement, step: Step) -> None:
        """Check a site's signature over a statement of this attempt."""
        tag, fields = statement
        try:
            verify(self._roster.entry(signer).verify_key, signature, tag, *fields)
        except SignatureError:
            raise _unsigned(signer, step) from None

    @staticmethod
    def _refuse_low_order(message: AdvertiseKeys) -> None:
        """Refuse keys with which no site could agree on a secret, before they make every site abort."""
        probe = AgreementKey(bytes(range(PRIVATE_KEY_BYTES)))  # any key finds a point of low order
        try:
            probe.exchange(message.encryption_key)
            probe.exchange(message.mask_key)
        except KeyAgreementError:
            raise RemoteProtocolError(message.sender, Step.ADVERTISE_KEYS, "a public key is of low order") from None

    @contextmanager
    def _closing(self, event: ServerEvent, count: int, floor: int) -> Iterator[None]:
        """Run one phase's end: aborted below the floor or if its work fails, in the next phase otherwise."""
        target = next_state(self._state, event)
        if count < floor:
            step = _STEP_OF[self._state]
            self._state = ServerState.ABORTED
            raise AggregationAborted(step, f"{count} sites answered where {floor} are needed")
        try:
            yield
        except BaseException:
            self._state = ServerState.ABORTED
            raise
        self._state = target

    def _take_masks_out(self) -> tuple[Complaint, ...]:
        """Subtract the survivors' self masks and what the dropped sites' masks left behind."""
        reconstruction = Reconstruction(
            context=self._context,
            roster=self._roster,
            keys_hash=self._keys_hash,
            mask_keys={site_id: advert.mask_key for site_id, advert in self._adverts.items()},
            commitments={site_id: message.commitment for site_id, message in self._shares.items()},
            messages=self._unmask,
        )
        masks = self._leftover_masks(reconstruction)
        while some := tuple(islice(masks, MASKS_AT_A_TIME)):
            self._masker(self._total, some, cipher=self._policy.mask_cipher)
        return tuple(reconstruction.complaints)

    def _leftover_masks(self, reconstruction: Reconstruction) -> Iterator[MaskJob]:
        """Yield every mask that is still in the sum, as what takes it out."""
        for owner in sorted(self._inputs):
            yield self_mask_seed(reconstruction.self_mask(owner), self._shares_hash, owner), True
        for dropped in sorted(set(self._shares) - set(self._inputs)):
            mask_key = reconstruction.mask_key(dropped)
            for survivor in sorted(self._graph.neighbours(dropped) & set(self._inputs)):
                secret = mask_key.exchange(self._adverts[survivor].mask_key)
                # The survivor added this mask if the dropped site's id is below its own, and subtracted it otherwise.
                yield pair_mask_seed(secret, self._shares_hash, dropped, survivor), dropped < survivor


def _unsigned(signer: int, step: Step) -> RemoteProtocolError:
    """Blame a site for a signature that is not over what this attempt is about."""
    return RemoteProtocolError(signer, step, "the signature does not verify for this attempt")
