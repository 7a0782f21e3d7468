"""The gRPC face of the coordinator: who calls, is it well formed, which attempt takes it, what does the caller get.

Every refusal is a status code and one short line; what a site reads in it is about its own message only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn, TypeVar

import grpc
import structlog
from google.protobuf.message import Message

from fedmvp.rpc import codec
from fedmvp.rpc.errors import WireError
from fedmvp.rpc.fields import Identified, round_id, text
from fedmvp.rpc.identity import CallerTable, UnknownCallerError
from fedmvp.rpc.receipts import receipt_from_wire
from fedmvp.rpc.v1 import aggregation_pb2 as pb
from fedmvp.rpc.v1 import secure_sum_pb2 as sums
from fedmvp.rpc.v1.aggregation_pb2_grpc import AggregationServicer
from fedmvp.rpc.vectors import Assembler, ring_array
from fedmvp.server.attempt import Attempt
from fedmvp.server.coordinator import Coordinator, Published
from fedmvp.server.errors import AttemptOverError
from fedmvp.server.lobby import Lobby, Presence, RunOver
from fedmvp.server.tracker import PrivacyTracker
from fedmvp.study.policy import StudyPolicy
from secure_agg.errors import LocalProtocolError, RemoteProtocolError, SignatureError
from secure_agg.messages import AbortCode, MaskedInput
from secure_agg.roster import Roster
from secure_agg.server import ServerSession
from secure_agg.transitions import Step

log = structlog.get_logger("fedmvp.server")

KEEP_WAITING_SECONDS = 10.0
"""How often a waiting site hears that it still waits."""

Context = grpc.aio.ServicerContext[Any, Any]
Reply = TypeVar("Reply")


class RefusedError(Exception):
    """A call that ends with a status code and a line for the caller."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


class AggregationService(AggregationServicer):
    """Implements protos/fedmvp/v1/aggregation.proto.

    Args:
        policy: the signed study.
        roster: who may call.
        callers: finds the caller's site.
        coordinator: holds the present attempt.
        lobby: holds the waiting sites.
        tracker: takes receipts.
    """

    def __init__(
        self,
        *,
        policy: StudyPolicy,
        roster: Roster,
        callers: CallerTable,
        coordinator: Coordinator,
        lobby: Lobby,
        tracker: PrivacyTracker,
    ) -> None:
        self._policy = policy
        self._roster = roster
        self._callers = callers
        self._coordinator = coordinator
        self._lobby = lobby
        self._tracker = tracker

    async def Join(self, request: pb.JoinRequest, context: Context) -> pb.JoinReply:  # noqa: N802
        """Compare studies; refuse with the field that differs."""
        return await _answer(context, self._join(request, context))

    async def _join(self, request: pb.JoinRequest, context: Context) -> pb.JoinReply:
        site = self._caller(context)
        ours = {
            "run_id": self._policy.study.run_id,
            "policy_hash": self._policy.hash,
            "roster_hash": self._roster.hash,
        }
        for field, value in ours.items():
            if getattr(request, field) != value:
                raise RefusedError(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    f"{field} differs from the coordinator's: install the same study",
                )
        software = text(request.software, "software")
        name = self._roster.entry(site).name
        log.info("site joined", site=name, software=software)
        return pb.JoinReply(site_id=site, site_name=name, next_round=self._coordinator.state.next_attempt[0])

    async def AwaitRound(  # noqa: N802
        self, request: pb.AwaitRoundRequest, context: Context
    ) -> AsyncIterator[pb.RoundPart]:
        """Hold until there is a round for the caller, announce it, and stay open as long as it lasts."""
        try:
            site = self._caller(context)
            self._require_same_past(request)
        except (RefusedError, UnknownCallerError) as refusal:
            await _refuse(context, refusal)
        presence = self._lobby.enter(site)
        try:
            async for part in self._wait_for_round(presence):
                yield part
        finally:
            self._lobby.leave(presence)

    def _require_same_past(self, request: pb.AwaitRoundRequest) -> None:
        if request.run_id != self._policy.study.run_id:
            raise RefusedError(grpc.StatusCode.FAILED_PRECONDITION, "run_id differs from the coordinator's")
        next_round = self._coordinator.state.next_attempt[0]
        if request.after_round >= next_round and not self._coordinator.state.is_finished:
            raise RefusedError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"this site has already released round {request.after_round} of this run and the coordinator is at "
                f"round {next_round}: its state was lost or put back",
            )

    async def _wait_for_round(self, presence: Presence) -> AsyncIterator[pb.RoundPart]:
        while True:
            try:
                invitation = await asyncio.wait_for(asyncio.shield(presence.invitation), KEEP_WAITING_SECONDS)
                break
            except TimeoutError:
                waiting, needed = len(self._lobby.waiting), self._policy.aggregation.min_cohort
                yield pb.RoundPart(keep_waiting=pb.KeepWaiting(sites_waiting=waiting, sites_needed=needed))
            except asyncio.CancelledError:
                if not presence.invitation.cancelled():
                    raise
                return  # replaced by a newer call of the same site
        if isinstance(invitation, RunOver):
            yield pb.RoundPart(
                finished=pb.Finished(rounds_completed=invitation.rounds_completed, reason=invitation.reason)
            )
            return
        yield pb.RoundPart(announcement=invitation.announcement)
        for chunk in invitation.model:
            yield pb.RoundPart(model_chunk=chunk)
        await invitation.attempt.wait_until_over()

    async def AdvertiseKeys(  # noqa: N802
        self, request: sums.AdvertiseKeysRequest, context: Context
    ) -> sums.AdvertiseKeysReply:
        """Phase 1."""
        reply: sums.AdvertiseKeysReply = await self._exchange(
            request,
            context,
            Step.ADVERTISE_KEYS,
            lambda session: session.receive_advertise_keys(codec.advertise_keys_from_wire(request)),
        )
        return reply

    async def RevealNonce(  # noqa: N802
        self, request: sums.RevealNonceRequest, context: Context
    ) -> sums.RevealNonceReply:
        """Phase 1b, on a sparse graph."""
        reply: sums.RevealNonceReply = await self._exchange(
            request,
            context,
            Step.REVEAL_NONCES,
            lambda session: session.receive_nonce(codec.nonce_from_wire(request)),
        )
        return reply

    async def ShareKeys(self, request: sums.ShareKeysRequest, context: Context) -> sums.ShareKeysReply:  # noqa: N802
        """Phase 2."""
        reply: sums.ShareKeysReply = await self._exchange(
            request,
            context,
            Step.SHARE_KEYS,
            lambda session: session.receive_share_keys(codec.share_keys_from_wire(request)),
        )
        return reply

    async def SubmitMaskedInput(  # noqa: N802
        self, request_iterator: AsyncIterator[sums.MaskedInputPart], context: Context
    ) -> sums.SurvivorsReply:
        """Phase 3."""
        return await _answer(context, self._receive_masked_input(request_iterator, context))

    async def ConfirmSurvivors(  # noqa: N802
        self, request: sums.ConfirmSurvivorsRequest, context: Context
    ) -> sums.ConfirmSurvivorsReply:
        """Phase 4."""
        reply: sums.ConfirmSurvivorsReply = await self._exchange(
            request,
            context,
            Step.CONFIRM_SURVIVORS,
            lambda session: session.receive_confirmation(codec.confirmation_from_wire(request)),
        )
        return reply

    async def Unmask(  # noqa: N802
        self, request: sums.UnmaskRequest, context: Context
    ) -> AsyncIterator[sums.PublishedPart]:
        """Phase 5, and the published sum."""
        published: Published = await self._exchange(
            request,
            context,
            Step.UNMASK,
            lambda session: session.receive_unmask_shares(codec.unmask_from_wire(request)),
        )
        yield sums.PublishedPart(header=published.header)
        for chunk in published.chunks:
            yield sums.PublishedPart(chunk=chunk)

    async def SubmitReceipt(self, request: pb.SubmitReceiptRequest, context: Context) -> pb.Ack:  # noqa: N802
        """What a site has spent, for display."""
        return await _answer(context, self._receive_receipt(request, context))

    async def _receive_receipt(self, request: pb.SubmitReceiptRequest, context: Context) -> pb.Ack:
        self._require_sender(self._caller(context), request.site_id)
        try:
            self._tracker.receive(*receipt_from_wire(request))
        except (SignatureError, ValueError) as error:
            raise RefusedError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error
        return pb.Ack()

    async def AbortRound(self, request: sums.AbortRequest, context: Context) -> pb.Ack:  # noqa: N802
        """A site leaves the present attempt."""
        return await _answer(context, self._receive_abort(request, context))

    async def _receive_abort(self, request: sums.AbortRequest, context: Context) -> pb.Ack:
        site = self._caller(context)
        self._require_sender(site, request.sender)
        attempt = self._attempt_of(request)
        notice = codec.abort_from_wire(request)
        attempt.session.receive_abort(notice)
        log.warning("site left the round", site=self._roster.entry(site).name, step=notice.step, code=notice.code)
        attempt.drop(site)
        if notice.code != AbortCode.CHECK_FAILED:  # it has stopped for a reason of its own, which a person has to mend
            self._lobby.give_up(site)
        return pb.Ack()

    async def GetStatus(self, request: pb.StatusRequest, context: Context) -> pb.StatusReply:  # noqa: N802, ARG002
        """Where the run stands."""
        return await _answer(context, self._status(context))

    async def _status(self, context: Context) -> pb.StatusReply:
        self._caller(context)
        coordinator = self._coordinator
        round_number, attempt = coordinator.state.next_attempt
        if coordinator.attempt is not None:
            round_number, attempt = coordinator.attempt.context.round, coordinator.attempt.context.attempt
        return pb.StatusReply(
            run_id=self._policy.study.run_id,
            round=round_number,
            attempt=attempt,
            phase=coordinator.phase,
            rounds_planned=self._policy.study.rounds,
            rounds_completed=coordinator.state.rounds_completed,
            sites=[self._site_status(site) for site in self._roster.active_ids],
        )

    def _site_status(self, site: int) -> pb.SiteStatus:
        receipt = self._tracker.latest(site)
        return pb.SiteStatus(
            site_id=site,
            name=self._roster.entry(site).name,
            present=site in self._lobby.present,
            last_round=self._coordinator.last_round_of(site),
            has_receipt=receipt is not None,
            epsilon=receipt.epsilon if receipt else 0.0,
            delta=receipt.delta if receipt else 0.0,
            unit=receipt.unit if receipt else "",
            neighboring_relation=receipt.neighboring_relation if receipt else "",
            accountant=receipt.accountant if receipt else "",
        )

    async def _exchange(
        self,
        request: Any,
        context: Context,
        step: Step,
        deliver: Callable[[ServerSession], None],
    ) -> Any:
        """Hand one message of one exchange to the attempt it belongs to, and hold the call for the reply."""
        return await _answer(context, self._deliver(request, context, step, deliver))

    async def _deliver(
        self, request: Any, context: Context, step: Step, deliver: Callable[[ServerSession], None]
    ) -> Any:
        site = self._caller(context)
        self._require_sender(site, request.sender)
        attempt = self._attempt_of(request)
        attempt.require_open(step, site)
        _count(attempt, site, request)
        try:
            return await attempt.exchange(step, site, deliver)
        except (RemoteProtocolError, WireError):
            attempt.drop(site)
            raise

    async def _receive_masked_input(
        self, parts: AsyncIterator[sums.MaskedInputPart], context: Context
    ) -> sums.SurvivorsReply:
        site = self._caller(context)
        first = await anext(aiter(parts), None)
        if first is None or first.WhichOneof("part") != "header":
            raise WireError("a masked input starts with its header")
        header = first.header
        self._require_sender(site, header.sender)
        attempt = self._attempt_of(header)
        attempt.require_open(Step.MASKED_INPUT, site)
        try:
            message = await self._read_vector(attempt, header, parts)
            _count(attempt, site, first)
            reply: sums.SurvivorsReply = await attempt.exchange(
                Step.MASKED_INPUT, site, lambda session: session.receive_masked_input(message)
            )
        except (RemoteProtocolError, WireError, asyncio.CancelledError):
            attempt.drop(site)
            raise
        return reply

    async def _read_vector(
        self, attempt: Attempt, header: sums.MaskedInputHeader, parts: AsyncIterator[sums.MaskedInputPart]
    ) -> MaskedInput:
        """Read exactly the announced vector and its trailer."""
        policy = self._coordinator.state.secure_sum
        expected = policy.length * policy.ring_bits // 8
        if header.vector_bytes != expected:
            raise WireError(f"vector_bytes is {header.vector_bytes} where this study has {expected}")
        assembler = Assembler(expected)
        trailer: sums.MaskedInputTrailer | None = None
        async for part in parts:
            _count(attempt, header.sender, part)
            if trailer is not None:
                raise WireError("something follows the trailer of a masked input")
            kind = part.WhichOneof("part")
            if kind == "chunk":
                assembler.add(part.chunk)
            elif kind == "trailer":
                trailer = part.trailer
            else:
                raise WireError("a masked input is a header, chunks and a trailer")
        if trailer is None:
            raise WireError("the trailer of a masked input is missing")
        vector = ring_array(assembler, policy.ring_bits)
        return MaskedInput(header.sender, vector, trailer.digest, trailer.signature)

    def _caller(self, context: Context) -> int:
        return self._callers.identify(context.auth_context(), context.invocation_metadata())

    @staticmethod
    def _require_sender(site: int, claimed: int) -> None:
        if claimed != site:
            raise RefusedError(grpc.StatusCode.PERMISSION_DENIED, "the sender is not the site of this certificate")

    def _attempt_of(self, message: Identified) -> Attempt:
        named = round_id(message)
        attempt = self._coordinator.attempt
        if attempt is None or named != (attempt.context.round, attempt.context.attempt):
            raise AttemptOverError(f"round {named[0]} attempt {named[1]} is not open")
        return attempt


def _count(attempt: Attempt, site: int, message: Message) -> None:
    """Add the size of a message to what the site has sent in this attempt."""
    attempt.bytes_up[site] = attempt.bytes_up.get(site, 0) + message.ByteSize()


_CODES: dict[type[Exception], grpc.StatusCode] = {
    UnknownCallerError: grpc.StatusCode.UNAUTHENTICATED,
    AttemptOverError: grpc.StatusCode.ABORTED,
    WireError: grpc.StatusCode.INVALID_ARGUMENT,
    RemoteProtocolError: grpc.StatusCode.INVALID_ARGUMENT,
    LocalProtocolError: grpc.StatusCode.ABORTED,
}
_REFUSALS: tuple[type[Exception], ...] = (RefusedError, *_CODES)


async def _answer(context: Context, work: Awaitable[Reply]) -> Reply:
    """Await the reply of a call; turn a refusal into its status code."""
    try:
        return await work
    except _REFUSALS as refusal:
        await _refuse(context, refusal)


async def _refuse(context: Context, refusal: Exception) -> NoReturn:
    code = refusal.code if isinstance(refusal, RefusedError) else _CODES[type(refusal)]
    if code is not grpc.StatusCode.ABORTED:
        log.warning("call refused", peer=context.peer(), code=code.name, reason=str(refusal))
    await context.abort(code, str(refusal))
    raise AssertionError("context.abort raises")
