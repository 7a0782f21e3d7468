"""The wire without a network: calls of clients in threads reach a service in an event loop of the same process.

For studies on one machine. Requests and replies are serialised, parsed strictly and counted as on a connection; the
caller is known by its certificate, as under TLS. What is missing is the socket, and with it encryption in transit.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as LateError
from contextlib import suppress
from typing import Any, NoReturn

import grpc

from fedmvp.rpc.strict import strict

Parse = Callable[[bytes], Any]


class InProcessError(grpc.RpcError):
    """A call that ended with a status, as a channel of gRPC raises it."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        """Return the status."""
        return self._code

    def details(self) -> str:
        """Return the line for the caller."""
        return self._details


class InProcessServer:
    """Where a service is registered and its loop is found; open from `open` to `close`.

    Attributes:
        sent: bytes of the requests of each caller, by its certificate.
        received: bytes of the replies to each caller.
    """

    def __init__(self) -> None:
        self._handlers: dict[str, Any] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._serving: asyncio.Task[Any] | None = None
        self._closed = False
        self._stopped = False
        self._settled = threading.Event()
        self.sent: Counter[bytes] = Counter()
        self.received: Counter[bytes] = Counter()

    def add_generic_rpc_handlers(self, handlers: tuple[Any, ...]) -> None:
        """Take nothing: generated code offers its handlers twice."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Take the handlers of a service; called by generated code."""
        self._handlers |= {f"/{service}/{name}": handler for name, handler in handlers.items()}

    def open(self) -> None:
        """Take calls from now on, in the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._serving = asyncio.current_task()
        if self._stopped and self._serving is not None:
            self._serving.cancel()
        self._settled.set()

    def stop(self) -> None:
        """Cancel the task that opened this server, or will; from any thread, and without effect once it has ended."""
        self._stopped = True
        loop, serving = self._loop, self._serving
        if loop is not None and serving is not None:
            with suppress(RuntimeError):  # its loop is closed: it has ended
                loop.call_soon_threadsafe(serving.cancel)

    def close(self) -> None:
        """Take no further call; whoever waits for the opening learns that there is none."""
        self._closed = True
        self._settled.set()

    def channel(self, certificate: bytes) -> InProcessChannel:
        """Return a caller's channel.

        Args:
            certificate: the caller's own, in PEM.
        """
        return InProcessChannel(self, certificate)

    def find(self, method: str) -> tuple[asyncio.AbstractEventLoop, Any]:
        """Wait until the server is open and return its loop and the method's handler.

        Raises:
            InProcessError: it is closed.
        """
        self._settled.wait()
        loop = self._loop
        if loop is None or self._closed:
            raise InProcessError(grpc.StatusCode.UNAVAILABLE, "the coordinator of this process has ended")
        return loop, self._handlers[method]


class InProcessChannel:
    """What a generated stub calls; `close` ends every call that is still open."""

    def __init__(self, server: InProcessServer, certificate: bytes) -> None:
        self._server = server
        self._certificate = certificate
        self._context = _Context(certificate)
        self._open: set[_Stream] = set()

    def __repr__(self) -> str:
        return "InProcessChannel()"

    def close(self) -> None:
        """End what is open."""
        for stream in tuple(self._open):
            stream.cancel()

    def unary_unary(
        self, method: str, request_serializer: Any, response_deserializer: Parse, **_options: Any
    ) -> Callable[..., Any]:
        """Return the call of a method with one request and one reply."""

        def call(request: Any, timeout: float | None = None, metadata: Any = None) -> Any:
            del metadata
            loop, handler = self._server.find(method)
            work = handler.unary_unary(self._parsed(handler, request_serializer(request)), self._context)
            return self._reply(loop, handler, work, response_deserializer, timeout)

        return call

    def stream_unary(
        self, method: str, request_serializer: Any, response_deserializer: Parse, **_options: Any
    ) -> Callable[..., Any]:
        """Return the call of a method with many requests and one reply."""

        def call(requests: Iterator[Any], timeout: float | None = None, metadata: Any = None) -> Any:
            del metadata
            loop, handler = self._server.find(method)
            parts = (self._parsed(handler, request_serializer(request)) for request in requests)
            work = handler.stream_unary(_one_by_one(parts), self._context)
            return self._reply(loop, handler, work, response_deserializer, timeout)

        return call

    def unary_stream(
        self, method: str, request_serializer: Any, response_deserializer: Parse, **_options: Any
    ) -> Callable[..., Any]:
        """Return the call of a method with one request and many replies."""

        def call(request: Any, timeout: float | None = None, metadata: Any = None) -> _Stream:
            del metadata
            loop, handler = self._server.find(method)
            replies = handler.unary_stream(self._parsed(handler, request_serializer(request)), self._context)
            stream = _Stream(loop, replies, lambda reply: self._passed(handler, reply, response_deserializer), timeout)
            self._open.add(stream)
            stream.when_over(lambda: self._open.discard(stream))
            return stream

        return call

    def _parsed(self, handler: Any, content: bytes) -> Any:
        self._server.sent[self._certificate] += len(content)
        return strict(handler.request_deserializer)(content)

    def _passed(self, handler: Any, reply: Any, parse: Parse) -> Any:
        content = handler.response_serializer(reply)
        self._server.received[self._certificate] += len(content)
        return parse(content)

    def _reply(self, loop: Any, handler: Any, work: Any, parse: Parse, timeout: float | None) -> Any:
        held = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return self._passed(handler, held.result(timeout), parse)
        except LateError:
            held.cancel()
            raise InProcessError(grpc.StatusCode.DEADLINE_EXCEEDED, f"no reply within {timeout} s") from None
        except CancelledError:
            raise InProcessError(grpc.StatusCode.CANCELLED, "the coordinator of this process has ended") from None


class _Context:
    """What a handler asks of its call."""

    def __init__(self, certificate: bytes) -> None:
        self._certificate = certificate

    def auth_context(self) -> Mapping[str, list[bytes]]:
        return {"x509_pem_cert": [self._certificate]}

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def peer(self) -> str:
        return "in-process"

    async def abort(self, code: grpc.StatusCode, details: str = "") -> NoReturn:
        raise InProcessError(code, details)


class _Stream:
    """Replies as they come; the call goes on in the loop until it ends or is cancelled."""

    def __init__(self, loop: Any, replies: AsyncIterator[Any], passed: Parse, timeout: float | None) -> None:
        self._arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._passed = passed
        self._timeout = timeout
        self._held = asyncio.run_coroutine_threadsafe(self._receive(replies), loop)
        self._held.add_done_callback(self._end_if_never_begun)

    def when_over(self, act: Callable[[], None]) -> None:
        self._held.add_done_callback(lambda _held: act())

    def cancel(self) -> None:
        self._held.cancel()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            reply = self._arrived.get(timeout=self._timeout)
        except queue.Empty:
            self.cancel()
            raise InProcessError(grpc.StatusCode.DEADLINE_EXCEEDED, f"no reply within {self._timeout} s") from None
        if isinstance(reply, BaseException):
            self._arrived.put(reply)  # whoever asks again hears the same
            raise reply
        return self._passed(reply)

    def _end_if_never_begun(self, held: Future[None]) -> None:
        if held.cancelled():  # perhaps before its first step, which would have left an end
            self._arrived.put(InProcessError(grpc.StatusCode.CANCELLED, "the call has ended"))

    async def _receive(self, replies: AsyncIterator[Any]) -> None:
        end: BaseException = StopIteration()
        try:
            async for reply in replies:
                self._arrived.put(reply)
        except grpc.RpcError as error:
            end = error
        except asyncio.CancelledError:
            end = InProcessError(grpc.StatusCode.CANCELLED, "the call has ended")
            raise
        except Exception as error:  # noqa: BLE001 - gRPC, too, tells a caller that much and no more
            end = InProcessError(grpc.StatusCode.UNKNOWN, f"unexpected {type(error).__name__}")
        finally:
            await replies.aclose()  # type: ignore[attr-defined]  # an async generator
            self._arrived.put(end)


async def _one_by_one(parts: Iterator[Any]) -> AsyncIterator[Any]:
    for part in parts:
        yield part
