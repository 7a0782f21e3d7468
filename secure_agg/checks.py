"""What a site checks in each of the server's messages, as if the server were malicious.

The checks hold no secret and change nothing: they compare a message with what the site knows, and raise
RemoteProtocolError. Their numbers are those of docs/secure-aggregation.md.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from secure_agg.context import RoundContext
from secure_agg.errors import AggregationAborted, RemoteProtocolError
from secure_agg.keys import first_unsigned, is_canonical
from secure_agg.messages import (
    AdvertiseKeys,
    GraphNonce,
    InputDigest,
    PeerShare,
    PeerShares,
    PublishedSum,
    SurvivorConfirmation,
)
from secure_agg.policy import SecureSumPolicy
from secure_agg.ring import DecodedSum, decode_sum
from secure_agg.roster import Roster
from secure_agg.transcript import (
    Statement,
    advertise_statement,
    input_statement,
    nonce_commitment,
    round_transcript,
    share_statement,
)
from secure_agg.transitions import Step

Signed = AdvertiseKeys | PeerShare | InputDigest | SurvivorConfirmation


class ClientChecks:
    """The checks of one site in one attempt.

    Args:
        policy: the site's own policy.
        roster: the site's own roster.
        context: the attempt.
        site_id: the site.
    """

    def __init__(self, policy: SecureSumPolicy, roster: Roster, context: RoundContext, site_id: int) -> None:
        self._policy = policy
        self._roster = roster
        self._context = context
        self._site_id = site_id
        self._graph = policy.graph(len(context.cohort))
        self._floor = policy.survivor_floor(len(context.cohort))

    def peer_keys(self, adverts: Sequence[AdvertiseKeys], own: AdvertiseKeys) -> None:
        """Checks K1 to K4 and K6: U1 is within the cohort, own keys are unchanged, all are distinct and signed."""
        step = Step.ADVERTISE_KEYS
        self._members(step, [advert.sender for advert in adverts], self._context.cohort, self._graph.key_floor)
        others = [advert for advert in adverts if advert.sender != self._site_id]
        if own not in adverts:
            raise RemoteProtocolError(None, step, "this site's own keys were changed")
        self._signed(
            step,
            ((advert, advertise_statement(self._context, advert.sender, advert.content)) for advert in others),
        )
        for advert in others:
            if bool(advert.nonce_commitment) != self._graph.sparse:
                raise RemoteProtocolError(advert.sender, step, "a nonce commitment is not what the graph asks for")
            if not (is_canonical(advert.encryption_key) and is_canonical(advert.mask_key)):
                raise RemoteProtocolError(advert.sender, step, "a public key is not in its canonical form")
        public = [key for advert in adverts for key in (advert.encryption_key, advert.mask_key)]
        if len(set(public)) != len(public):
            raise RemoteProtocolError(None, step, "a public key occurs twice")

    def peer_nonces(self, nonces: Sequence[GraphNonce], adverts: Mapping[int, AdvertiseKeys], own: bytes) -> None:
        """Checks G1 to G3: all of U1 but a few are here, own nonce is unchanged, each opens its commitment."""
        step = Step.REVEAL_NONCES
        self._members(step, [item.sender for item in nonces], adverts, self._graph.key_floor)
        if len(adverts) - len(nonces) > self._graph.max_withheld:
            raise RemoteProtocolError(None, step, f"more than {self._graph.max_withheld} nonces are missing")
        for item in nonces:
            if item.sender == self._site_id and item.nonce != own:
                raise RemoteProtocolError(None, step, "this site's own nonce was changed")
            commitment = nonce_commitment(self._context, item.sender, item.nonce)
            if commitment != adverts[item.sender].nonce_commitment:
                raise RemoteProtocolError(None, step, f"site {item.sender}'s nonce does not open its commitment")

    def commitments(
        self, message: PeerShares, key_holders: Collection[int], neighbours: Collection[int], own_commitment: bytes
    ) -> dict[int, bytes]:
        """Checks S1 to S3 and S6: U2 is within U1, own commitment is unchanged, one share from each neighbour, holders.

        Returns:
            The commitment of every site of U2.
        """
        step = Step.SHARE_KEYS
        members = [site_id for site_id, _ in message.commitments]
        self._members(step, members, key_holders, self._floor)
        commitments = dict(message.commitments)
        if commitments[self._site_id] != own_commitment:
            raise RemoteProtocolError(None, step, "this site's own commitment was changed")
        self._enough_holders(step, neighbours, members)
        if sorted(share.sender for share in message.shares) != sorted(set(members) & set(neighbours)):
            raise RemoteProtocolError(None, step, "the shares are not one from each neighbour that shared its keys")
        return commitments

    def peer_shares(self, shares: Sequence[PeerShare], commitments: Mapping[int, bytes], keys_hash: bytes) -> None:
        """Checks S3 and S4: every sealed pair comes with the listed commitment and is signed for this site and T1."""
        step = Step.SHARE_KEYS
        if any(share.commitment != commitments[share.sender] for share in shares):
            raise RemoteProtocolError(None, step, "a site's commitment is not the one in the list")
        self._signed(
            step,
            (
                (share, share_statement(keys_hash, share.sender, self._site_id, share.commitment, share.ciphertext))
                for share in shares
            ),
        )

    def survivors(
        self,
        inputs: Sequence[InputDigest],
        sharers: Collection[int],
        neighbours: Collection[int],
        *,
        shares_hash: bytes,
        own: InputDigest | None,
    ) -> None:
        """Checks V1 to V4: U3 is within U2, own vector is unchanged, digests are signed for this T2, holders remain."""
        step = Step.CONFIRM_SURVIVORS
        survivors = [item.sender for item in inputs]
        self._members(step, survivors, sharers, self._floor)
        self._enough_holders(step, neighbours, survivors)
        if own not in inputs:
            raise RemoteProtocolError(None, step, "this site's own vector was changed")
        others = (item for item in inputs if item != own)
        self._signed(step, ((item, input_statement(shares_hash, item.sender, item.digest)) for item in others))

    def confirmations(
        self,
        confirmations: Sequence[SurvivorConfirmation],
        survivors: Collection[int],
        statement: Statement,
        *,
        own: SurvivorConfirmation | None,
    ) -> None:
        """Checks C1 and C2: at least t distinct survivors signed exactly the statement this site signed."""
        step = Step.UNMASK
        signers = [item.sender for item in confirmations]
        self._distinct(step, signers)
        self._within(step, signers, survivors)
        if len(signers) < self._context.threshold:
            needed = self._context.threshold
            raise RemoteProtocolError(None, step, f"{len(signers)} confirmations where {needed} are needed")
        self._signed(step, ((item, statement) for item in confirmations if item != own))

    def result(
        self,
        message: PublishedSum,
        *,
        shares_hash: bytes,
        inputs: Sequence[InputDigest],
        confirmations: Sequence[SurvivorConfirmation],
    ) -> DecodedSum:
        """Checks R1 to R3: the survivors are those confirmed, the sum can be theirs, and the round is the one seen.

        Returns:
            The real sum.
        """
        step = Step.PUBLISH
        survivors = tuple(sorted(item.sender for item in inputs))
        if tuple(message.survivors) != survivors:
            raise RemoteProtocolError(None, step, "the published survivors are not those this site confirmed")
        try:
            decoded = decode_sum(self._policy, message.total, len(survivors))
        except AggregationAborted as refused:
            raise RemoteProtocolError(None, step, refused.reason) from refused
        if round_transcript(shares_hash, inputs, confirmations, message.total) != message.transcript_hash:
            raise RemoteProtocolError(None, step, "the transcript hash is not that of the round this site saw")
        return decoded

    def _members(self, step: Step, senders: Sequence[int], allowed: Collection[int], floor: int) -> None:
        """Check that a set the server announces is one: distinct, within the earlier set, large enough, with us."""
        self._distinct(step, senders)
        self._within(step, senders, allowed)
        if len(senders) < floor:
            raise RemoteProtocolError(None, step, f"{len(senders)} sites where at least {floor} are needed")
        if self._site_id not in senders:
            raise RemoteProtocolError(None, step, "this site is not among those the server lists")

    def _enough_holders(self, step: Step, neighbours: Collection[int], remaining: Collection[int]) -> None:
        """Check that this site and its neighbours that remain could recover its secrets."""
        holders = len(set(neighbours) & set(remaining)) + 1
        if holders < self._graph.share_threshold:
            needed = self._graph.share_threshold
            raise RemoteProtocolError(None, step, f"{holders} holders of this site's shares where {needed} are needed")

    @staticmethod
    def _distinct(step: Step, senders: Sequence[int]) -> None:
        """Refuse a list that counts a site twice."""
        if len(set(senders)) != len(senders):
            raise RemoteProtocolError(None, step, "a site is listed twice")

    @staticmethod
    def _within(step: Step, senders: Sequence[int], allowed: Collection[int]) -> None:
        """Refuse a site that was not in the phase before."""
        if not set(senders) <= set(allowed):
            raise RemoteProtocolError(None, step, "a site is listed that was not in the phase before")

    def _signed(self, step: Step, claims: Iterable[tuple[Signed, Statement]]) -> None:
        """Check peers' signatures over statements of this attempt.

        The server is blamed: the signer may have been shown another round, or its message changed on the way.
        """
        items = list(claims)
        unsigned = first_unsigned(
            [(self._roster.entry(item.sender).verify_key, item.signature, *statement) for item, statement in items]
        )
        if unsigned is not None:
            signer = items[unsigned][0].sender
            raise RemoteProtocolError(None, step, f"site {signer}'s signature is not over what this site sees")
