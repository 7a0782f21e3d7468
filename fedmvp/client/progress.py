"""Progress of long local work: a bar on a terminal, a log line every few seconds otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = structlog.get_logger("fedmvp.client")

SECONDS_BETWEEN_LINES = 5.0
"""Often enough to see that it moves, seldom enough not to fill a log."""

Report = Callable[[int, int], None]
"""Called with (done, in all)."""


@contextmanager
def shown(label: str) -> Iterator[Report]:
    """Show how far a piece of work is.

    Args:
        label: what is being done, for people.

    Yields:
        The function to call as the work proceeds.
    """
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield _lines(label)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(label: str) -> Report:
    last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            log.info(label, done=done, total=total)

    return report
