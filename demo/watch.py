"""Live progress of the demo: a table on a terminal, JSON lines otherwise.

Reads the server's events file; shows round, phase, accuracy on the public set, epsilon by site and the time left.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from demo.modes import DEFAULT_MODE
from fedmvp.errors import ExitCode, UserError
from privacy.spending import terms

Event = dict[str, Any]
SECONDS_BETWEEN_LINES = 2.0


class EventTail:
    """The events of a growing file, each once.

    Args:
        path: the server's events.jsonl; need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> list[Event]:
        """What has come since the last call; an unfinished line stays for the next one."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            fresh = file.read()
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


@dataclass
class Progress:
    """What the events say so far."""

    rounds: int
    done: int = 0
    phase: str = "starting: loading the backbone, computing frozen features"
    zero_shot: float | None = None
    accuracy: float | None = None
    epsilon_by_site: dict[str, float] = field(default_factory=dict)
    terms: str = ""
    names: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    rounds_seen: list[Event] = field(default_factory=list)
    first_round_at: float | None = None
    finished: bool = False
    mode: str = DEFAULT_MODE

    def take(self, event: Event) -> None:
        """Learn from one event."""
        kind = event["event"]
        if kind == "run-started":
            self.zero_shot = self.accuracy = event["accuracy"]
            self.mode = event.get("mode", DEFAULT_MODE)
            self.names = {str(number): name for number, name in event["sites"].items()}
        elif kind == "phase":
            self.phase = f"round {event['round']}: {event['phase'].replace('_', ' ')}"
            self.first_round_at = self.first_round_at or event["time"]
        elif kind == "round":
            self.done = event["round"]
            self.accuracy = event["accuracy"]
            self.rounds_seen.append(event)
            for site, receipt in event["receipts"].items():
                self.epsilon_by_site[self.names[site]] = float(receipt["epsilon"])
                self.terms = terms(receipt["delta"], receipt["unit"], receipt["accountant"])
            if event["dropped"]:
                lost = ", ".join(self.names[str(site)] for site in event["dropped"])
                self.notes.append(
                    f"round {event['round']} was completed without {lost}; its mask was taken out by the others"
                )
        elif kind == "round-aborted":
            self.notes.append(f"round {event['round']} was aborted: {event['reason']}")
        elif kind == "run-finished":
            self.finished = True
        elif kind in {"run-stopped", "run-failed"}:
            raise UserError(
                f"the server ended the run: {event['reason']}",
                remedy="read runs/demo/logs",
                exit_code=ExitCode.PROTOCOL,
            )

    @property
    def seconds_left(self) -> float | None:
        """By the mean time of a round so far; None before the first."""
        if not self.done or self.first_round_at is None:
            return None
        return (time.time() - self.first_round_at) / self.done * (self.rounds - self.done)


class Display:
    """Shows progress until left.

    Args:
        progress: updated by the caller.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self._console = Console(file=sys.stderr)
        self._live = (
            Live(console=self._console, refresh_per_second=8, transient=False) if self._console.is_terminal else None
        )
        self._last_line = 0.0
        self._notes_said = 0

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refresh(force=True)
        if self._live:
            self._live.stop()

    def note(self, text: str) -> None:
        """Add a line that stays."""
        self.progress.notes.append(text)
        self.refresh(force=True)

    def refresh(self, *, force: bool = False) -> None:
        """Show the present state."""
        if self._live:
            self._live.update(self._picture())
        elif force or time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            print(json.dumps(self._line()), file=sys.stderr, flush=True)

    def _line(self) -> dict[str, Any]:
        p = self.progress
        fresh, self._notes_said = p.notes[self._notes_said :], len(p.notes)
        left = p.seconds_left
        return {
            "event": "progress",
            "round": p.done,
            "rounds": p.rounds,
            "phase": p.phase,
            "accuracy": p.accuracy,
            "epsilon_by_site": {name: round(value, 3) for name, value in p.epsilon_by_site.items()},
            "epsilon_terms": p.terms,
            "seconds_left": None if left is None else round(left),
            **({"mode": p.mode} if p.mode != DEFAULT_MODE else {}),
            **({"notes": fresh} if fresh else {}),
        }

    def _picture(self) -> Group:
        p = self.progress
        table = Table.grid(padding=(0, 2))
        left = p.seconds_left
        table.add_row("round", Text(f"{p.done} of {p.rounds}"), ProgressBar(total=p.rounds, completed=p.done, width=40))
        table.add_row("phase", p.phase, "" if left is None else f"about {left:.0f} s left")
        if p.accuracy is not None and p.zero_shot is not None:
            table.add_row("accuracy", f"{p.accuracy:.3f}", f"zero-shot {p.zero_shot:.3f}")
        spent = "  ".join(f"{name} {value:.2f}" for name, value in sorted(p.epsilon_by_site.items()))
        table.add_row("epsilon", "by site" if p.mode == DEFAULT_MODE else f"by site, {p.mode}", spent)
        if p.terms:
            table.add_row("", "", p.terms)
        return Group(table, *(Text(f"  {note}", style="yellow") for note in p.notes))
