import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import pytest

from fedmvp.rpc.in_process import InProcessChannel, InProcessServer
from fedmvp.rpc.v1 import aggregation_pb2 as pb
from fedmvp.rpc.v1 import secure_sum_pb2 as sums
from fedmvp.rpc.v1.aggregation_pb2_grpc import (
    AggregationServicer,
    AggregationStub,
    add_AggregationServicer_to_server,
)

CERTIFICATE = b"-----BEGIN CERTIFICATE-----"


class Service(AggregationServicer):
    """Answers one method of each kind."""

    def __init__(self) -> None:
        self.left = threading.Event()

    async def Join(self, request: pb.JoinRequest, context: Any) -> pb.JoinReply:  # noqa: N802
        if request.run_id == "refused":
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "another study")
        if request.run_id == "held":
            await asyncio.sleep(60)
        (certificate,) = context.auth_context()["x509_pem_cert"]
        return pb.JoinReply(site_id=7, site_name=certificate.decode())

    async def AwaitRound(self, request: pb.AwaitRoundRequest, context: Any) -> AsyncIterator[pb.RoundPart]:  # noqa: N802
        try:
            yield pb.RoundPart(model_chunk=b"one")
            if request.run_id == "broken":
                raise ValueError("a secret of the server")
            if request.run_id == "refused":
                await context.abort(grpc.StatusCode.ABORTED, "over")
            if request.run_id == "held":
                await asyncio.sleep(60)
            yield pb.RoundPart(model_chunk=b"two")
        finally:
            self.left.set()

    async def SubmitMaskedInput(self, parts: AsyncIterator[sums.MaskedInputPart], context: Any) -> sums.SurvivorsReply:  # noqa: N802
        count = len([part async for part in parts])
        return sums.SurvivorsReply(inputs=[sums.InputDigest(sender=count)])


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def server(service: Service) -> Iterator[InProcessServer]:
    opened = InProcessServer()
    add_AggregationServicer_to_server(service, opened)

    async def serve() -> None:
        opened.open()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            opened.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    yield opened
    opened.stop()
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def channel(server: InProcessServer) -> InProcessChannel:
    return server.channel(CERTIFICATE)


@pytest.fixture
def stub(channel: InProcessChannel) -> Any:
    return AggregationStub(channel)


def status_of(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as failed:
        call()
    return failed.value.code(), failed.value.details()


def test_a_caller_is_known_by_its_certificate(stub: Any) -> None:
    assert stub.Join(pb.JoinRequest(run_id="r")).site_name == CERTIFICATE.decode()


def test_a_refusal_arrives_with_its_status_and_line(stub: Any) -> None:
    assert status_of(lambda: stub.Join(pb.JoinRequest(run_id="refused"))) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "another study",
    )
    assert status_of(lambda: list(stub.AwaitRound(pb.AwaitRoundRequest(run_id="refused")))) == (
        grpc.StatusCode.ABORTED,
        "over",
    )


def test_a_call_ends_at_its_deadline(stub: Any, service: Service) -> None:
    assert status_of(lambda: stub.Join(pb.JoinRequest(run_id="held"), timeout=0.05))[0] is (
        grpc.StatusCode.DEADLINE_EXCEEDED
    )
    held = stub.AwaitRound(pb.AwaitRoundRequest(run_id="held"), timeout=0.05)
    assert next(held).model_chunk == b"one"
    assert status_of(lambda: next(held))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    assert service.left.wait(5)


def test_replies_come_one_after_the_other_and_end(stub: Any) -> None:
    call = stub.AwaitRound(pb.AwaitRoundRequest(run_id="r"))
    assert [part.model_chunk for part in call] == [b"one", b"two"]
    assert next(call, None) is None


def test_what_breaks_at_the_server_is_told_to_the_caller_by_its_kind_alone(stub: Any) -> None:
    code, details = status_of(lambda: list(stub.AwaitRound(pb.AwaitRoundRequest(run_id="broken"))))
    assert code is grpc.StatusCode.UNKNOWN
    assert "secret" not in details


def test_a_cancelled_call_and_a_closed_channel_are_left_at_the_server(
    stub: Any, channel: InProcessChannel, service: Service
) -> None:
    for leave in (lambda call: call.cancel(), lambda _call: channel.close()):
        service.left.clear()
        call = stub.AwaitRound(pb.AwaitRoundRequest(run_id="held"))
        next(call)
        leave(call)
        assert service.left.wait(5)
        assert status_of(lambda call=call: next(call))[0] is grpc.StatusCode.CANCELLED


def test_requests_are_streamed_and_every_byte_is_counted(stub: Any, server: InProcessServer) -> None:
    parts = [sums.MaskedInputPart(chunk=bytes(100)) for _ in range(3)]
    reply = stub.SubmitMaskedInput(iter(parts))
    assert reply.inputs[0].sender == 3
    assert server.sent[CERTIFICATE] == sum(part.ByteSize() for part in parts)
    assert server.received[CERTIFICATE] == reply.ByteSize()


def test_a_request_with_an_unknown_field_is_not_understood(stub: Any) -> None:
    request = pb.JoinRequest.FromString(pb.JoinRequest(run_id="r").SerializeToString() + b"\xfa\x7f\x01x")
    with pytest.raises(Exception, match="does not know"):
        stub.Join(request)


def test_a_server_that_has_ended_is_not_there(server: InProcessServer, stub: Any) -> None:
    server.close()
    assert status_of(lambda: stub.Join(pb.JoinRequest(run_id="r")))[0] is grpc.StatusCode.UNAVAILABLE
