"""At most one masked vector leaves a site for a round number, ever: the mark that says so outlives every crash.

:meth:`secure_agg.client.ClientSession.masked_input` asks a register to mark the round before it hands the vector out. A
program that keeps a ledger on disk anyway implements the protocol there; :class:`FileReleases` is the smallest one.
"""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path
from typing import Protocol

from secure_agg.errors import LocalProtocolError

_LINE = re.compile(r"([0-9]{1,20}) ([!-~]+)")


class ReleaseRegister(Protocol):
    """Remembers which rounds of which runs a vector may have left for."""

    def mark(self, run_id: str, round_number: int) -> None:
        """Mark a round as released; the mark is on disk when this returns.

        Raises:
            LocalProtocolError: if this round of the run, or a later one, was marked before. Nothing has changed.
        """


class FileReleases:
    """A register in a file of its own: a line for each release, forced to disk; one process at a time.

    Args:
        path: the file; made, with mode 0600, if its folder holds none.

    Raises:
        LocalProtocolError: if another process holds the file, or it holds something else than marks.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last: dict[str, int] = {}
        self._broken = False
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._lock()
            self._read()
            _force_to_disk(path.parent)
        except BaseException:
            self.close()
            raise

    def last_round(self, run_id: str) -> int:
        """Return the highest round of a run that was marked, 0 if none."""
        return self._last.get(run_id, 0)

    def mark(self, run_id: str, round_number: int) -> None:
        """Mark a round as released; see :class:`ReleaseRegister`. OSError if the disk does not take it."""
        if round_number <= self.last_round(run_id):
            raise LocalProtocolError(
                f"a vector of round {round_number} of {run_id}, or of a later one, may have left this site",
                remedy="take part in the next round: a round number is used once",
            )
        line = f"{round_number} {run_id}"
        if _LINE.fullmatch(line) is None:
            raise LocalProtocolError("a run's name is printable ASCII without spaces", remedy="rename the run")
        if self._broken:
            raise LocalProtocolError(
                f"an earlier mark did not reach {self._path}", remedy="mend the disk and start the client again"
            )
        self._broken = True  # until the mark is known to be on disk: what a failed write left there is not
        self._last[run_id] = round_number
        with os.fdopen(os.dup(self._file), "ab") as file:
            file.write(line.encode("ascii") + b"\n")
        os.fsync(self._file)
        self._broken = False

    def close(self) -> None:
        """Close the file and let another process have it."""
        os.close(self._file)

    def _lock(self) -> None:
        """Keep other processes out until this one closes the file or ends."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LocalProtocolError(
                f"{self._path} is in use by another process", remedy="stop the other client of this site first"
            ) from None

    def _read(self) -> None:
        """Read every mark; refuse a file that is not a register."""
        *lines, rest = self._path.read_bytes().split(b"\n")
        for line in lines:
            match = _LINE.fullmatch(line.decode("ascii", errors="replace"))
            if match is None:
                raise LocalProtocolError(
                    f"{self._path} holds a line that is not a release mark",
                    remedy="restore the file, or leave the run: without it a vector could leave twice",
                )
            self._last[match[2]] = max(self.last_round(match[2]), int(match[1]))
        if rest:  # a mark cut off by a crash: it never returned, so nothing left under it
            os.ftruncate(self._file, os.fstat(self._file).st_size - len(rest))


def _force_to_disk(folder: Path) -> None:
    """Make a new file's name survive a crash too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
