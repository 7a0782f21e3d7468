"""What a server session ends in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from secure_agg.messages import InputDigest, PublishedSum, SurvivorConfirmation
from secure_agg.reconstruction import Complaint


@dataclass(frozen=True, eq=False)
class AggregationResult:
    """A finished round.

    Args:
        total: the sum of the survivors' inputs, ring elements (policy.length,).
        survivors: the sites whose inputs are in it (U3), ascending.
        dropped: the invited sites whose inputs are not, ascending.
        inputs: the survivors' signed digests, for the audit log.
        confirmations: the signatures over the survivor set, for the audit log.
        complaints: shares that did not fit their owner's commitment.
        transcript_hash: hash of the round for the audit log (32 bytes).
    """

    total: NDArray[Any]
    survivors: tuple[int, ...]
    dropped: tuple[int, ...]
    inputs: tuple[InputDigest, ...]
    confirmations: tuple[SurvivorConfirmation, ...]
    complaints: tuple[Complaint, ...]
    transcript_hash: bytes

    def __repr__(self) -> str:
        return (
            f"AggregationResult(survivors={self.survivors}, dropped={self.dropped}, total=<{self.total.size} elements>)"
        )

    @property
    def message(self) -> PublishedSum:
        """What every site is to be sent."""
        return PublishedSum(self.total, self.survivors, self.transcript_hash)
