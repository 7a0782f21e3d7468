"""The audit log: what was announced, from when on vectors could leave sites, and what was published, in a hash chain.

It is written ahead: a round number is marked as used, on disk, before any site can send a masked vector for it, and a
sum is on disk before it is published. Attempts are noted without waiting for the disk; a coordinator that starts again
skips far enough ahead to be past any attempt whose note a power cut took. Its first start, which is on disk before any
attempt, skips nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedmvp.journal import Journal
from secure_agg.context import RoundContext
from secure_agg.result import AggregationResult

FILE_NAME = "audit.jsonl"

ATTEMPTS_SKIPPED = 1000
"""Attempt numbers left out at each later start: more than can lose their notes at once, of four thousand million."""


class AuditLog:
    """The coordinator's journal, and the next round and attempt that follow from it.

    Args:
        state_dir: folder that holds the log.

    Raises:
        UserError: the log was tampered with.
    """

    def __init__(self, state_dir: Path) -> None:
        self._round, self._attempt = 1, 1
        self.last_published = 0
        self._is_new = True
        self._journal = Journal(state_dir / FILE_NAME, on_record=self._follow)

    @property
    def next_attempt(self) -> tuple[int, int]:
        """(round, attempt) that no site can have seen."""
        return self._round, self._attempt

    @property
    def head(self) -> bytes:
        """Hash over the log so far (32 bytes)."""
        return self._journal.head

    def started(
        self, *, run_id: str, policy_hash: bytes, roster_hash: bytes, model_hash: bytes, model_round: int
    ) -> None:
        """The coordinator was started, with this state."""
        self._add(
            "started",
            run_id=run_id,
            policy_hash=policy_hash.hex(),
            roster_hash=roster_hash.hex(),
            model_hash=model_hash.hex(),
            model_round=model_round,
        )

    def announced(self, context: RoundContext) -> None:
        """An attempt is about to be announced."""
        self._add(
            "announced",
            durable=False,
            round=context.round,
            attempt=context.attempt,
            cohort=context.cohort,
            threshold=context.threshold,
            graph=context.graph,
            degree=context.degree,
            share_threshold=context.share_threshold,
            model_hash=context.model_hash.hex(),
            context_hash=context.hash.hex(),
        )

    def release_opened(self, context: RoundContext) -> None:
        """From here on masked vectors may leave sites: the round number is used up, whatever comes of it."""
        self._add("release-opened", round=context.round, attempt=context.attempt)

    def aborted(self, context: RoundContext, reason: str, *, released: bool) -> None:
        """An attempt ended without a sum.

        Args:
            context: the attempt.
            reason: why.
            released: whether a masked vector may have left a site; if not, the round number may be tried again.
        """
        self._add("aborted", round=context.round, attempt=context.attempt, reason=reason, released=released)

    def given_up(self, round_number: int) -> None:
        """A round number is left out without a sum: no further attempt at it would be joined."""
        self._add("given-up", round=round_number)

    def published(self, context: RoundContext, result: AggregationResult, *, sum_hash: bytes, next_hash: bytes) -> None:
        """A sum is about to be published."""
        self._add(
            "published",
            round=context.round,
            attempt=context.attempt,
            survivors=result.survivors,
            dropped=result.dropped,
            inputs=[
                {"site": item.sender, "digest": item.digest.hex(), "signature": item.signature.hex()}
                for item in result.inputs
            ],
            confirmations=[{"site": item.sender, "signature": item.signature.hex()} for item in result.confirmations],
            complaints=[str(complaint) for complaint in result.complaints],
            sum_hash=sum_hash.hex(),
            next_model_hash=next_hash.hex(),
            transcript_hash=result.transcript_hash.hex(),
        )

    def finished(self, *, rounds_completed: int, model_hash: bytes) -> None:
        """The run is over."""
        self._add("finished", rounds_completed=rounds_completed, model_hash=model_hash.hex())

    def close(self) -> None:
        """Close the file."""
        self._journal.close()

    def _add(self, kind: str, *, durable: bool = True, **fields: Any) -> None:
        record = {"kind": kind, **fields}
        self._journal.append(record, durable=durable)
        self._follow(record)

    def _follow(self, record: dict[str, Any]) -> None:
        """Move the counters past a record, whether just written or read back."""
        if record["kind"] == "announced":
            self._round, self._attempt = record["round"], record["attempt"] + 1
        elif record["kind"] in {"release-opened", "given-up"}:
            self._round, self._attempt = record["round"] + 1, 1
        elif record["kind"] == "aborted" and not record["released"]:
            self._round, self._attempt = record["round"], record["attempt"] + 1
        elif record["kind"] == "published":
            self.last_published = record["round"]
        elif record["kind"] == "started" and not self._is_new:
            self._attempt += ATTEMPTS_SKIPPED
        self._is_new = False
