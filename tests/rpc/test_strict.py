"""Fields that nobody agreed on are refused, wherever they hide."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from fedmvp.rpc.errors import WireError
from fedmvp.rpc.strict import StrictReplies, StrictRequests, refuse_unknown_fields, strict
from fedmvp.rpc.v1 import aggregation_pb2 as pb
from fedmvp.rpc.v1 import secure_sum_pb2 as sums
from fedmvp.rpc.v1.aggregation_pb2_grpc import AggregationStub

UNKNOWN = bytes([0xFA, 0x3E, 0x01, 0x41])
"""Field 1007 with one byte in it."""


def test_a_message_of_this_version_is_read_as_it_was() -> None:
    request = pb.JoinRequest(run_id="run", policy_hash=bytes(32))

    assert strict(pb.JoinRequest.FromString)(request.SerializeToString()) == request


def test_an_unknown_field_is_refused_by_its_number() -> None:
    content = pb.JoinRequest(run_id="run").SerializeToString() + UNKNOWN

    assert pb.JoinRequest.FromString(content).run_id == "run", "protobuf itself lets it pass"
    with pytest.raises(WireError, match="JoinRequest carries field 1007"):
        strict(pb.JoinRequest.FromString)(content)


def test_an_unknown_field_inside_a_repeated_message_is_refused() -> None:
    inner = sums.RoundId.FromString(sums.RoundId(round=1, attempt=1).SerializeToString() + UNKNOWN)
    outer = pb.Announcement(tensors=[pb.TensorHeader(name="a")], id=inner)

    with pytest.raises(WireError, match="RoundId"):
        refuse_unknown_fields(outer)

    header = pb.TensorHeader.FromString(pb.TensorHeader(name="a").SerializeToString() + UNKNOWN)
    with pytest.raises(WireError, match="TensorHeader"):
        refuse_unknown_fields(pb.Announcement(tensors=[pb.TensorHeader(name="b"), header]))


JOIN = "/fedmvp.v1.Aggregation/Join"


def handler(reply: Any, serializer: Any) -> grpc.GenericRpcHandler:
    method = grpc.unary_unary_rpc_method_handler(
        reply, request_deserializer=pb.JoinRequest.FromString, response_serializer=serializer
    )
    return grpc.method_handlers_generic_handler("fedmvp.v1.Aggregation", {"Join": method})


def test_a_server_does_not_answer_a_request_with_an_unknown_field() -> None:
    async def answer(_request: Any, _context: Any) -> pb.JoinReply:
        return pb.JoinReply(site_id=1)

    async def ask() -> tuple[Any, grpc.StatusCode]:
        server = grpc.aio.server(interceptors=[StrictRequests()])
        server.add_generic_rpc_handlers((handler(answer, pb.JoinReply.SerializeToString),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary(JOIN, response_deserializer=pb.JoinReply.FromString)
            good = await call(pb.JoinRequest(run_id="run").SerializeToString())
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(pb.JoinRequest(run_id="run").SerializeToString() + UNKNOWN)
        await server.stop(0)
        return good, refused.value.code()

    good, code = asyncio.run(ask())

    assert good.site_id == 1
    assert code is not grpc.StatusCode.OK


def test_a_site_does_not_read_a_reply_with_an_unknown_field() -> None:
    extra = [b"", UNKNOWN]
    server = grpc.server(ThreadPoolExecutor(1))
    serializer = lambda reply: reply.SerializeToString() + extra[reply.site_id]  # noqa: E731
    answers = iter([0, 1])
    server.add_generic_rpc_handlers((handler(lambda *_: pb.JoinReply(site_id=next(answers)), serializer),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = AggregationStub(StrictReplies(channel))  # type: ignore[call-overload]
        assert stub.Join(pb.JoinRequest()).site_id == 0
        with pytest.raises(grpc.RpcError):
            stub.Join(pb.JoinRequest())
    server.stop(0)
