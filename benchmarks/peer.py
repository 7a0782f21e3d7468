"""Another system's rounds, run by its driver in a process of its own and answered one at a time."""

from __future__ import annotations

import json
import selectors
import subprocess
from pathlib import Path
from typing import Any, Self

DRIVER = Path(__file__).with_name("peers") / "flower_secagg_plus.py"
START_LIMIT_S = 120.0


class PeerMissingError(Exception):
    """The peer's environment does not run its driver; the text says why."""


class PeerLimitError(Exception):
    """The peer did not answer within its limit."""


class Peer:
    """A driver that waits for the next round; use it in a ``with`` statement.

    Args:
        environment: folder of the virtual environment that holds the peer.
        arguments: what the driver is started with.

    Raises:
        PeerMissingError: if the driver does not start.
    """

    def __init__(self, environment: Path, arguments: list[str]) -> None:
        python = environment / "bin" / "python"
        try:
            self._process = subprocess.Popen(
                [python, DRIVER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        except OSError as failure:
            raise PeerMissingError(f"{python} does not run: {failure.strerror}") from None
        try:
            self.version = str(self._answer(START_LIMIT_S)["ready"])
        except (PeerMissingError, PeerLimitError):
            self.__exit__()
            raise PeerMissingError(f"the driver does not start with {python}: {self._last_words}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_failure: object) -> None:
        self._process.kill()
        _, said = self._process.communicate()
        self._last_words = (said.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]

    def round(self, limit_s: float) -> dict[str, Any]:
        """Run one round; PeerLimitError after a limit, PeerMissingError if the driver died."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"round\n")
        self._process.stdin.flush()
        return self._answer(limit_s)

    def _answer(self, limit_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(limit_s):
                raise PeerLimitError
        line = self._process.stdout.readline()
        if not line:
            raise PeerMissingError("the driver ended")
        answer: dict[str, Any] = json.loads(line)
        return answer
