"""Messages with a field that this version does not know are refused, at both ends, before anything reads them.

Protobuf skips unknown fields silently. Here a field that one side means and the other does not see could change what
was agreed to, so the message is not understood at all: an upgrade is made at every party, or not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from fedmvp.rpc.errors import WireError

Deserializer = Callable[[bytes], Any]


def refuse_unknown_fields(message: Message) -> None:
    """Check a parsed message and every message in it.

    Raises:
        WireError: a field number that this version's protos do not have.
    """
    unknown = UnknownFieldSet(message)
    if len(unknown):
        name = message.DESCRIPTOR.name
        raise WireError(f"{name} carries field {unknown[0].field_number}, which this version does not know")
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in (value,) if isinstance(value, Message) else value:
                refuse_unknown_fields(part)


def strict(parse: Deserializer) -> Deserializer:
    """Return a deserializer that refuses unknown fields."""

    def parse_strictly(content: bytes) -> Any:
        message = parse(content)
        refuse_unknown_fields(message)
        return message

    return parse_strictly


class StrictRequests(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs alone
    """Makes every request of a server parse strictly."""

    async def intercept_service(self, continuation: Any, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return the method's handler with a strict deserializer."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        return handler._replace(request_deserializer=strict(handler.request_deserializer))


class StrictReplies:
    """A channel whose replies parse strictly; for a generated stub.

    Args:
        channel: the channel that the calls go over.
    """

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def __getattr__(self, kind: str) -> Callable[..., Any]:
        open_call = getattr(self._channel, kind)

        def opened(
            method: str, request_serializer: Any = None, response_deserializer: Any = None, **options: Any
        ) -> Any:
            return open_call(method, request_serializer, strict(response_deserializer), **options)

        return opened
