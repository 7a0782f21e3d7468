"""A coordinator process that keeps every byte of every message and every piece of metadata it receives.

The bytes are those inside the TLS connection, before protobuf reads them: nothing that a site sends can reach the
process by another way. Only tests start it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, BinaryIO

import grpc

from tests.e2e.server_entry import parse, serve


class Recorder(grpc.aio.ServerInterceptor):
    """Writes messages one after the other to received.bin, and (method, bytes) of each to received.jsonl."""

    def __init__(self, folder: Path) -> None:
        self._bytes: BinaryIO = (folder / "received.bin").open("ab", buffering=0)
        self._index = (folder / "received.jsonl").open("a", buffering=1)

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)
        metadata = [
            [key, value if isinstance(value, str) else value.hex()] for key, value in details.invocation_metadata or ()
        ]
        self._keep(details.method, json.dumps(metadata).encode(), metadata=True)
        if handler is None:
            return None
        parse_request = handler.request_deserializer

        def keep_and_parse(content: bytes) -> Any:
            self._keep(details.method, content, metadata=False)
            return parse_request(content)

        return handler._replace(request_deserializer=keep_and_parse)

    def _keep(self, method: str, content: bytes, *, metadata: bool) -> None:
        self._bytes.write(content)
        self._index.write(json.dumps({"method": method, "bytes": len(content), "metadata": metadata}) + "\n")


if __name__ == "__main__":
    chosen = parse()
    sys.exit(serve(chosen, interceptors=[Recorder(chosen.record)]))
