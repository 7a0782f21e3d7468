"""The calls of a site, with their deadlines, and what their failures mean.

Nothing here retries: whether a message may be sent again is a question of the protocol, and the answer is no.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast

import grpc

from fedmvp.client.errors import CoordinatorAwayError, RoundLostError
from fedmvp.errors import ExitCode, UserError
from fedmvp.rpc import codec
from fedmvp.rpc.channel import insecure_metadata, open_channel
from fedmvp.rpc.errors import WireError
from fedmvp.rpc.in_process import InProcessServer
from fedmvp.rpc.receipts import RECEIPT_TAG, receipt_to_wire
from fedmvp.rpc.strict import StrictReplies
from fedmvp.rpc.v1 import aggregation_pb2 as pb
from fedmvp.rpc.v1 import secure_sum_pb2 as sums
from fedmvp.rpc.v1.aggregation_pb2_grpc import AggregationStub
from fedmvp.rpc.vectors import Assembler, chunks, ring_array
from fedmvp.study.credentials import SiteCredentials
from privacy.receipt import PrivacyReceipt
from secure_agg import messages as sa
from secure_agg.policy import SecureSumPolicy

SHORT_CALL_SECONDS = 30.0
"""Calls that are answered at once: join, receipt, abort."""

DEADLINE_SLACK_SECONDS = 30.0
"""A held reply may come as late as the coordinator's own deadline, plus the time to send it."""

_AWAY = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
}
_LOST = {grpc.StatusCode.ABORTED, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED}
_STRANGER = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}


@dataclass(frozen=True, eq=False)
class Publication:
    """What the coordinator published for an attempt.

    Args:
        message: the sum, its survivors and the hash of the round, for the session to check.
        sum_hash: hash the coordinator gave for the total (32 bytes).
        next_model_hash: hash of the state that follows (32 bytes).
    """

    message: sa.PublishedSum
    sum_hash: bytes
    next_model_hash: bytes


class Connection:
    """One channel to the coordinator.

    Args:
        endpoint: host:port.
        credentials: this site's.
        insecure: no TLS; loopback only.
        server: the coordinator of this very process, instead of one at the endpoint.
    """

    def __init__(
        self,
        endpoint: str,
        credentials: SiteCredentials,
        *,
        insecure: bool = False,
        server: InProcessServer | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._credentials = credentials
        self._channel = (
            open_channel(endpoint, None if insecure else credentials.tls)
            if server is None
            else cast("grpc.Channel", server.channel(credentials.tls.certificate))
        )
        self._stub = AggregationStub(cast("grpc.Channel", StrictReplies(self._channel)))
        self._metadata = insecure_metadata(credentials.entry.site_id if insecure else None)

    def close(self) -> None:
        """Close the channel and every call on it."""
        self._channel.close()

    def join(self) -> pb.JoinReply:
        """Compare studies with the coordinator."""
        study = self._credentials.study
        request = pb.JoinRequest(
            run_id=study.policy.study.run_id,
            policy_hash=study.policy.hash,
            roster_hash=study.roster.hash,
            software=_software(),
        )
        with self._meaning():
            return self._stub.Join(request, timeout=SHORT_CALL_SECONDS, metadata=self._metadata)

    def await_round(self, after_round: int) -> RoundCall:
        """Ask for the next round."""
        request = pb.AwaitRoundRequest(run_id=self._credentials.study.policy.study.run_id, after_round=after_round)
        with self._meaning():
            return RoundCall(self, self._stub.AwaitRound(request, metadata=self._metadata))

    def exchanges(self, round_number: int, attempt: int, *, training_seconds: float, phase_seconds: float) -> Exchanges:
        """The exchanges of one attempt."""
        return Exchanges(
            self,
            codec.round_id_to_wire(round_number, attempt),
            keys_seconds=training_seconds + phase_seconds + DEADLINE_SLACK_SECONDS,
            phase_seconds=phase_seconds + DEADLINE_SLACK_SECONDS,
        )

    def submit_receipt(self, receipt: PrivacyReceipt) -> None:
        """Sign a receipt and send it."""
        signature = self._credentials.signing_key.sign(RECEIPT_TAG, *receipt.signed_fields())
        with self._meaning():
            self._stub.SubmitReceipt(
                receipt_to_wire(receipt, signature), timeout=SHORT_CALL_SECONDS, metadata=self._metadata
            )

    @property
    def stub(self) -> Any:
        """The generated calls."""
        return self._stub

    @property
    def metadata(self) -> Any:
        """What goes with each call."""
        return self._metadata

    @contextmanager
    def _meaning(self) -> Iterator[None]:
        with failures_explained(self._endpoint):
            yield

    @property
    def endpoint(self) -> str:
        """host:port of the coordinator."""
        return self._endpoint


class RoundCall:
    """An open AwaitRound call: the announcement, the model, and the sign that this site is there."""

    def __init__(self, connection: Connection, call: Any) -> None:
        self._endpoint = connection.endpoint
        self._call = call

    def __iter__(self) -> Iterator[pb.RoundPart]:
        """Parts as they come; ends with the call."""
        with failures_explained(self._endpoint):
            yield from self._call

    def read_model(self, n_bytes: int) -> bytearray:
        """The bytes of the announced state.

        Raises:
            WireError: something else came.
        """
        assembler = Assembler(n_bytes)
        with failures_explained(self._endpoint):
            while not assembler.complete:
                part = next(self._call, None)
                if part is None or part.WhichOneof("part") != "model_chunk":
                    raise WireError("the model ends before its announced length")
                assembler.add(part.model_chunk)
        return assembler.finish()

    def leave(self) -> None:
        """End the call: this site is no longer in the round."""
        self._call.cancel()


class Exchanges:
    """The exchanges of one attempt, each once."""

    def __init__(
        self, connection: Connection, round_id: sums.RoundId, *, keys_seconds: float, phase_seconds: float
    ) -> None:
        self._stub = connection.stub
        self._metadata = connection.metadata
        self._endpoint = connection.endpoint
        self._id = round_id
        self._keys_seconds = keys_seconds
        self._phase_seconds = phase_seconds

    def advertise_keys(self, message: sa.AdvertiseKeys) -> sa.PeerKeys:
        """Phase 1."""
        request = codec.advertise_keys_to_wire(message, self._id)
        with failures_explained(self._endpoint):
            reply = self._stub.AdvertiseKeys(request, timeout=self._keys_seconds, metadata=self._metadata)
        return codec.peer_keys_from_wire(reply)

    def reveal_nonce(self, message: sa.GraphNonce) -> sa.PeerNonces:
        """Phase 1b, on a sparse graph."""
        request = codec.nonce_to_wire(message, self._id)
        with failures_explained(self._endpoint):
            reply = self._stub.RevealNonce(request, timeout=self._phase_seconds, metadata=self._metadata)
        return codec.peer_nonces_from_wire(reply)

    def share_keys(self, message: sa.ShareKeys) -> sa.PeerShares:
        """Phase 2."""
        request = codec.share_keys_to_wire(message, self._id)
        with failures_explained(self._endpoint):
            reply = self._stub.ShareKeys(request, timeout=self._phase_seconds, metadata=self._metadata)
        return codec.peer_shares_from_wire(reply)

    def submit_masked_input(self, message: sa.MaskedInput) -> sa.Survivors:
        """Phase 3. The caller has charged and marked the release."""
        with failures_explained(self._endpoint):
            reply = self._stub.SubmitMaskedInput(
                self._masked_parts(message), timeout=self._phase_seconds, metadata=self._metadata
            )
        return codec.survivors_from_wire(reply)

    def _masked_parts(self, message: sa.MaskedInput) -> Iterator[sums.MaskedInputPart]:
        header = sums.MaskedInputHeader(id=self._id, sender=message.sender, vector_bytes=message.vector.nbytes)
        yield sums.MaskedInputPart(header=header)
        for chunk in chunks(message.vector):
            yield sums.MaskedInputPart(chunk=chunk)
        trailer = sums.MaskedInputTrailer(digest=message.digest, signature=message.signature)
        yield sums.MaskedInputPart(trailer=trailer)

    def confirm_survivors(self, message: sa.SurvivorConfirmation) -> sa.Confirmations:
        """Phase 4."""
        request = codec.confirmation_to_wire(message, self._id)
        with failures_explained(self._endpoint):
            reply = self._stub.ConfirmSurvivors(request, timeout=self._phase_seconds, metadata=self._metadata)
        return codec.confirmations_from_wire(reply)

    def unmask(self, message: sa.UnmaskShares, policy: SecureSumPolicy) -> Publication:
        """Phase 5, and the published sum.

        Raises:
            WireError: what is published is not a vector of this study.
            RemoteProtocolError: its header is malformed.
        """
        request = codec.unmask_to_wire(message, self._id)
        assembler = Assembler(policy.length * policy.ring_bits // 8)
        with failures_explained(self._endpoint):
            parts = self._stub.Unmask(request, timeout=self._phase_seconds, metadata=self._metadata)
            first = next(parts, None)
            if first is None or first.WhichOneof("part") != "header" or first.header.id != self._id:
                raise WireError("a published sum starts with the header of its round")
            for part in parts:
                assembler.add(part.chunk)
        header = first.header
        return Publication(
            message=sa.PublishedSum(
                total=ring_array(assembler, policy.ring_bits),
                survivors=tuple(header.survivors),
                transcript_hash=header.transcript_hash,
            ),
            sum_hash=header.sum_hash,
            next_model_hash=header.next_model_hash,
        )

    def abort(self, message: sa.Abort) -> None:
        """Tell the coordinator that this site has left; nobody waits for the answer to matter."""
        with failures_explained(self._endpoint):
            self._stub.AbortRound(
                codec.abort_to_wire(message, self._id), timeout=SHORT_CALL_SECONDS, metadata=self._metadata
            )


@contextmanager
def failures_explained(endpoint: str) -> Iterator[None]:
    """Turn gRPC's errors into what the runner does about them."""
    try:
        yield
    except grpc.RpcError as error:
        code, details = error.code(), error.details() or ""
        if code in _AWAY:
            raise CoordinatorAwayError(details) from None
        if code in _LOST:
            raise RoundLostError(details) from None
        if code in _STRANGER:
            raise UserError(
                f"{endpoint} does not accept this site: {details}",
                remedy="ask the consortium whether this site is enrolled and active, and join with its last package",
                exit_code=ExitCode.IDENTITY,
            ) from None
        raise UserError(
            f"{endpoint} refused: {details}",
            remedy="compare the study packages of server and site; see docs/operations.md",
            exit_code=ExitCode.PROTOCOL,
        ) from None


def _software() -> str:
    try:
        return f"fedmvp {version('fedmvp')}"
    except PackageNotFoundError:  # running from a source tree that is not installed
        return "fedmvp"
