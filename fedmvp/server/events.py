"""events.jsonl: what happened, one JSON object a line, for the operator, the demo and the status command.

For display: nothing is decided by this file and nothing in it is secret. The audit log is the evidence.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Event = dict[str, Any]
Listener = Callable[[Event], None]


class EventLog:
    """Appends events to a file and hands them to a listener.

    Args:
        path: the file; a new run of the server appends to it.
        listener: called with each event, for a live display.
    """

    def __init__(self, path: Path, *, listener: Listener | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")
        self._listener = listener

    def emit(self, event: str, **fields: Any) -> None:
        """Write one event with the time in seconds since 1970."""
        record: Event = {"event": event, "time": time.time(), **fields}
        self._file.write(json.dumps(record, default=_plain, allow_nan=False) + "\n")
        self._file.flush()
        if self._listener is not None:
            self._listener(record)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_events(path: Path) -> list[Event]:
    """All whole events of a file, oldest first; an unfinished last line is left out."""
    if not path.exists():
        return []
    content = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in content[: content.rfind("\n") + 1].splitlines()]


def steps_in(path: Path) -> list[tuple[int, int, int]]:
    """Site, round and steps of every receipt reported, oldest first; none from a file that is no log of events."""
    try:
        return [
            (int(site), int(receipt["round"]), int(receipt["steps"]))
            for event in read_events(path)
            if event["event"] == "round"
            for site, receipt in event["receipts"].items()
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def finite(value: float) -> float | str:
    """A number JSON can carry: infinity, the epsilon of a run without privacy, is written as the word."""
    return value if math.isfinite(value) else str(value)


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no place in an event")
