"""An append-only file of JSON lines, each carrying the hash of everything before it.

The coordinator's audit log and a site's log of published rounds are written through this. A line that was cut off by a
crash is dropped when the file is opened; a line that was changed, removed or inserted is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedmvp.errors import ExitCode, UserError
from secure_agg.encoding import digest

TAG = "fedmvp/journal/v1"
GENESIS = bytes(32)

Record = dict[str, Any]


class Journal:
    """One hash-chained file, open for appending.

    Args:
        path: the file; made when missing.
        on_record: called with every record already in the file, in order.

    Raises:
        UserError: a line does not follow from the one before it.
    """

    def __init__(self, path: Path, *, on_record: Callable[[Record], None] | None = None) -> None:
        self._path = path
        self._head = GENESIS
        self._length = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = self._replay(path.read_bytes() if path.exists() else b"", on_record)
        self._file = path.open("ab")
        self._file.truncate(whole)

    @property
    def head(self) -> bytes:
        """Hash over all records (32 bytes)."""
        return self._head

    @property
    def length(self) -> int:
        """Number of records."""
        return self._length

    def append(self, record: Record, *, durable: bool = True) -> None:
        """Add a record.

        Args:
            record: JSON-ready fields.
            durable: return only once the disk has it; otherwise a power cut, though no crash, may lose it.
        """
        body = _canonical_json(record)
        self._head = digest(TAG, self._head, body)
        self._length += 1
        self._file.write(b'{"record":' + body + b',"chain":"' + self._head.hex().encode() + b'"}\n')
        self._file.flush()
        if durable:
            os.fdatasync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _replay(self, content: bytes, on_record: Callable[[Record], None] | None) -> int:
        """Check the chain; return the length of its whole lines in bytes."""
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            try:
                entry = json.loads(line)
                record, chain = entry["record"], entry["chain"]
                self._head = digest(TAG, self._head, _canonical_json(record))
                intact = chain == self._head.hex()
            except (ValueError, KeyError, TypeError):
                intact = False
            if not intact:
                raise UserError(
                    f"{self._path} line {number} does not follow from the lines before it: the file was changed",
                    remedy="restore the folder from a backup; keep the damaged file as evidence",
                    exit_code=ExitCode.PROTOCOL,
                )
            self._length += 1
            if on_record is not None:
                on_record(record)
        return whole


def _canonical_json(record: Record) -> bytes:
    """One line of JSON whose bytes do not depend on the order of keys."""
    return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()
