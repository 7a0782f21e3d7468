"""The round loop: gather a cohort, carry one attempt through its exchanges, publish, and again.

The order of effects is fixed here: an attempt is in the audit log before it is announced, a round number is marked as
used before any site may send a vector, and a sum is in log and snapshot before it is published.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedmvp.errors import ExitCode, UserError
from fedmvp.rpc import codec
from fedmvp.rpc.v1 import aggregation_pb2 as pb
from fedmvp.rpc.v1 import secure_sum_pb2 as sums
from fedmvp.rpc.vectors import StateLayout, chunks
from fedmvp.server.attempt import Attempt
from fedmvp.server.events import EventLog
from fedmvp.server.lobby import Invitation, Lobby, RunOver
from fedmvp.server.phases import PUBLISHED, TRAINING, PhaseClock
from fedmvp.server.reporter import Reporter, RoundRecord
from fedmvp.server.run_state import RunState
from fedmvp.study.policy import StudyPolicy
from secure_agg.context import RoundContext
from secure_agg.encoding import vector_digest
from secure_agg.errors import AggregationAborted
from secure_agg.masks import Masker, add_masks
from secure_agg.roster import Roster
from secure_agg.server import ServerSession
from secure_agg.transitions import ServerState, Step

MAX_FAILED_ATTEMPTS = 20
"""Attempts in a row without a sum after which an operator should look instead of the sites training on for nothing."""

_RANDOM = secrets.SystemRandom()
"""Chooses the cohort when more sites wait than a round takes: every one is as likely, and nobody can foresee it."""


@dataclass(frozen=True, eq=False)
class Published:
    """A sum as every site of the last step is sent it."""

    header: sums.PublishedHeader
    chunks: tuple[bytes, ...]


class Coordinator:
    """Runs a study from where its state stands to its last round.

    Args:
        policy: the signed study.
        roster: who may take part.
        state: model, log and snapshot.
        lobby: the sites that wait.
        events: where progress is written.
        reporter: measures and reports finished rounds.
        roster_grace_seconds: how long a missing site is waited for when enough others are here.
        masker: the mask generator; replaced in tests only.
    """

    def __init__(
        self,
        *,
        policy: StudyPolicy,
        roster: Roster,
        state: RunState,
        lobby: Lobby,
        events: EventLog,
        reporter: Reporter,
        roster_grace_seconds: float,
        masker: Masker = add_masks,
    ) -> None:
        self._policy = policy
        self._roster = roster
        self._state = state
        self._lobby = lobby
        self._events = events
        self._reporter = reporter
        self._grace = roster_grace_seconds
        self._masker = masker
        self._clock: PhaseClock | None = None
        self.attempt: Attempt | None = None

    @property
    def state(self) -> RunState:
        """Model, log and snapshot."""
        return self._state

    @property
    def phase(self) -> str:
        """The phase of the present attempt; "waiting" between two."""
        return self._clock.phase if self._clock is not None else "waiting"

    def last_round_of(self, site: int) -> int:
        """The last published round with this site among its survivors; 0 for none since this process started."""
        return self._reporter.last_round_by_site.get(site, 0)

    async def run(self) -> RunOver:
        """Carry out the rounds that are left.

        Raises:
            UserError: too few sites came, or attempt after attempt failed.
        """
        failures = 0
        while not self._state.is_finished:
            cohort = await self._gather()
            round_number = self._state.next_attempt[0]
            if self._state.skip_worn_out_round(len(cohort)):
                self._events.emit("round-given-up", round=round_number, reason="no site would join one more attempt")
                continue
            if await self._try_once(self._state.context(cohort)):
                failures = 0
            elif (failures := failures + 1) >= MAX_FAILED_ATTEMPTS:
                raise UserError(
                    f"{failures} attempts in a row ended without a sum",
                    remedy="look for round-aborted in events.jsonl: it says at which step and why",
                    exit_code=ExitCode.PROTOCOL,
                )
        self._state.finish()
        return RunOver(self._state.rounds_completed, "every round of the study is done")

    async def _gather(self) -> tuple[int, ...]:
        needed, limit = self._policy.aggregation.min_cohort, self._policy.aggregation.max_cohort
        seconds = self._policy.deadlines.join_seconds
        waiting = await self._lobby.gather(needed, timeout_seconds=seconds, grace_seconds=self._grace)
        if len(waiting) < needed:
            names = [entry.name for entry in self._roster.entries if entry.site_id in waiting]
            raise UserError(
                f"round {self._state.next_attempt[0]} needs {needed} sites; after {seconds:g} s there are "
                f"{len(waiting)}" + (f" ({', '.join(names)})" if names else ""),
                remedy="start the missing sites, then this server again: it goes on from the last published round",
                exit_code=ExitCode.NETWORK,
            )
        return waiting if len(waiting) <= limit else tuple(sorted(_RANDOM.sample(waiting, limit)))

    async def _try_once(self, context: RoundContext) -> bool:
        """Carry out one attempt; whether it gave a sum."""
        session = ServerSession(
            policy=self._state.secure_sum, roster=self._roster, context=context, masker=self._masker
        )
        clock = PhaseClock(self._events, context)
        attempt = Attempt(
            context,
            self._state.secure_sum,
            session,
            on_first_keys=lambda: clock.begin(Step.ADVERTISE_KEYS, context.cohort),
        )
        self._state.audit.announced(context)
        self.attempt, self._clock = attempt, clock
        clock.begin(TRAINING, context.cohort)
        self._lobby.invite(Invitation(attempt, self._announcement(context), self._model_chunks()))
        reason = "the coordinator is shutting down"
        try:
            record = await self._exchange(attempt, clock)
        except AggregationAborted as aborted:
            reason = str(aborted)
            self._state.audit.aborted(context, reason, released=attempt.may_have_released)
            self._events.emit(
                "round-aborted",
                round=context.round,
                attempt=context.attempt,
                step=aborted.step,
                reason=aborted.reason,
                missing=sorted(attempt.gone),
                seconds=clock.seconds,
            )
            return False
        finally:
            self.attempt = self._clock = None
            if not attempt.is_over:
                attempt.abort(reason)
        await self._reporter.put(record)
        return True

    async def _exchange(self, attempt: Attempt, clock: PhaseClock) -> RoundRecord:
        """The exchanges of an attempt, up to the release of the sum."""
        session, context = attempt.session, attempt.context
        seconds = self._policy.deadlines.phase_seconds

        await attempt.collect(Step.ADVERTISE_KEYS, self._policy.deadlines.training_seconds + seconds)
        peer_keys = session.close_advertise_keys()
        sparse = session.state is ServerState.REVEAL_NONCES
        clock.begin(Step.REVEAL_NONCES if sparse else Step.SHARE_KEYS, session.expected)
        attempt.release(Step.ADVERTISE_KEYS, codec.peer_keys_to_wire(peer_keys))
        if sparse:
            await attempt.collect(Step.REVEAL_NONCES, seconds)
            peer_nonces = session.close_nonces()
            clock.begin(Step.SHARE_KEYS, session.expected)
            attempt.release(Step.REVEAL_NONCES, codec.peer_nonces_to_wire(peer_nonces))

        # Marked while the shares come in: the disk is waited for beside them. If they are too few, it is undone.
        marked = asyncio.create_task(asyncio.to_thread(self._state.audit.release_opened, context))
        try:
            await attempt.collect(Step.SHARE_KEYS, seconds)
        finally:
            await marked
        peer_shares = session.close_share_keys()
        clock.begin(Step.MASKED_INPUT, session.expected)
        attempt.release(
            Step.SHARE_KEYS, {site: codec.peer_shares_to_wire(shares) for site, shares in peer_shares.items()}
        )

        await attempt.collect(Step.MASKED_INPUT, seconds)
        survivors = session.close_masked_inputs()
        clock.begin(Step.CONFIRM_SURVIVORS, session.expected)
        attempt.release(Step.MASKED_INPUT, codec.survivors_to_wire(survivors))

        await attempt.collect(Step.CONFIRM_SURVIVORS, seconds)
        confirmations = session.close_confirmations()
        clock.begin(Step.UNMASK, session.expected)
        attempt.release(Step.CONFIRM_SURVIVORS, codec.confirmations_to_wire(confirmations))

        await attempt.collect(Step.UNMASK, seconds)
        published, survivors_ids, dropped = await asyncio.to_thread(self._publish, attempt)
        clock.begin(PUBLISHED, survivors_ids)
        attempt.release(Step.UNMASK, published)
        clock.end()
        return RoundRecord(
            round=context.round,
            attempt=context.attempt,
            survivors=survivors_ids,
            dropped=dropped,
            seconds=clock.seconds,
            seconds_by_phase=dict(clock.seconds_by_phase),
            bytes_up_by_site=dict(attempt.bytes_up),
            parameters=self._state.parameters,
        )

    def _publish(self, attempt: Attempt) -> tuple[Published, tuple[int, ...], tuple[int, ...]]:
        """Take the masks out, apply the sum, make it durable."""
        result = attempt.session.close_unmask()
        sum_hash = vector_digest(result.total)
        next_hash = self._state.publish(attempt.context, result, sum_hash)
        header = sums.PublishedHeader(
            id=codec.round_id_to_wire(attempt.context.round, attempt.context.attempt),
            survivors=result.survivors,
            vector_bytes=result.total.nbytes,
            sum_hash=sum_hash,
            next_model_hash=next_hash,
            transcript_hash=result.transcript_hash,
        )
        return Published(header, tuple(chunks(result.total))), result.survivors, result.dropped

    def _announcement(self, context: RoundContext) -> pb.Announcement:
        return pb.Announcement(
            id=codec.round_id_to_wire(context.round, context.attempt),
            policy_hash=context.policy_hash,
            roster_hash=context.roster_hash,
            model_hash=context.model_hash,
            cohort=context.cohort,
            threshold=context.threshold,
            colluders=context.colluders,
            ring_bits=context.ring_bits,
            length=context.length,
            graph=context.graph,
            degree=context.degree,
            share_threshold=context.share_threshold,
            tensors=StateLayout.of(self._state.state.tensors).to_wire(),
            model_round=self._state.model_round,
            run_id=context.run_id,
        )

    def _model_chunks(self) -> tuple[bytes, ...]:
        """The state's tensors one after the other, cut into chunks."""
        whole = b"".join(_bytes_of(array) for _, array in self._state.state.tensors)
        return tuple(chunks(np.frombuffer(whole, dtype=np.uint8)))


def _bytes_of(array: np.ndarray[Any, Any]) -> bytes:
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()
