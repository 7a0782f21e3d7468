"""Recovers the secrets that unmask a sum, checks each against its commitment, and names whose share was wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from secure_agg.context import RoundContext
from secure_agg.errors import AggregationAborted, RemoteProtocolError, ShareError
from secure_agg.keys import AgreementKey
from secure_agg.messages import UnmaskShares
from secure_agg.roster import Roster
from secure_agg.shamir import parse_share, recover_verified
from secure_agg.transcript import self_mask_commitment
from secure_agg.transitions import Step

MAX_ATTEMPTS = 4096  # sets of shares tried for one owner beyond what decoding finds: any number of liars among 14


@dataclass(frozen=True)
class Complaint:
    """A share that does not lie on its owner's polynomial.

    The holder released something else than it was dealt, or the owner dealt it something else than the others; the
    owner's signature over the sealed share lets an auditor tell which.

    Args:
        holder: the site that released the share.
        owner: the site whose secret was shared.
    """

    holder: int
    owner: int


@dataclass
class Reconstruction:
    """The unmask shares of one round, and what they recombine to.

    Args:
        context: the attempt.
        roster: the study's roster, for the indices of shares.
        keys_hash: T1, or G on a sparse graph.
        mask_keys: every site's advertised mask key, which commits to the private half.
        commitments: commitment to the self mask seed of every site of U2.
        messages: what the sites released, by holder.
    """

    context: RoundContext
    roster: Roster
    keys_hash: bytes
    mask_keys: Mapping[int, bytes]
    commitments: Mapping[int, bytes]
    messages: Mapping[int, UnmaskShares]
    complaints: list[Complaint] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._holder_of = {self.roster.share_index(holder): holder for holder in self.messages}
        self._distrusted: set[int] = set()  # who lied about one owner's share will about the next
        self._shares: dict[int, dict[int, bytes]] = {}
        for holder, message in self.messages.items():
            for share in message.shares:
                self._shares.setdefault(share.owner, {})[self.roster.share_index(holder)] = share.share

    @staticmethod
    def check_shares(message: UnmaskShares) -> None:
        """Refuse a message that holds something that is no share at all; RemoteProtocolError names its sender."""
        try:
            for share in message.shares:
                parse_share(share.share)
        except ShareError as refused:
            raise RemoteProtocolError(message.sender, Step.UNMASK, str(refused)) from None

    def self_mask(self, owner: int) -> bytes:
        """Recover a survivor's self mask seed; AggregationAborted if no shares open its commitment."""

        def opens(candidate: bytes) -> bool:
            return self_mask_commitment(self.keys_hash, owner, candidate) == self.commitments[owner]

        return self._recover(owner, opens)

    def mask_key(self, owner: int) -> AgreementKey:
        """Recover a dropped site's mask key; AggregationAborted if no shares open its public half."""

        def opens(candidate: bytes) -> bool:
            return AgreementKey(candidate).public == self.mask_keys[owner]

        return AgreementKey(self._recover(owner, opens))

    def _recover(self, owner: int, opens: Callable[[bytes], bool]) -> bytes:
        """Recover one secret and note whose shares were wrong."""
        try:
            secret, wrong = recover_verified(
                self._shares.get(owner, {}),
                self.context.share_threshold,
                opens,
                max_attempts=MAX_ATTEMPTS,
                distrusted=self._distrusted,
            )
        except ShareError as refused:
            raise AggregationAborted(
                Step.UNMASK, f"the secret of site {owner} cannot be recovered: {refused}"
            ) from None
        self.complaints += [Complaint(self._holder_of[index], owner) for index in wrong]
        self._distrusted |= set(wrong)
        return secret
