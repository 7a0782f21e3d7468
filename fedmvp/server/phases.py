"""Where a round is, for the display and for the seconds each phase took."""

from __future__ import annotations

import time
from collections.abc import Collection

from fedmvp.server.events import EventLog
from secure_agg.context import RoundContext

TRAINING = "training"
PUBLISHED = "published"


class PhaseClock:
    """Measures the phases of one attempt and reports each as it begins.

    Args:
        events: where the beginning of a phase is reported.
        context: the attempt.
    """

    def __init__(self, events: EventLog, context: RoundContext) -> None:
        self._events = events
        self._context = context
        self._started = self._phase_started = time.monotonic()
        self._phase = ""
        self.seconds_by_phase: dict[str, float] = {}

    @property
    def phase(self) -> str:
        """The phase the attempt is in."""
        return self._phase

    @property
    def seconds(self) -> float:
        """Seconds since the announcement."""
        return time.monotonic() - self._started

    def begin(self, phase: str, sites: Collection[int]) -> None:
        """End the present phase and begin another, in which these sites are expected to answer."""
        self.end()
        self._phase = phase
        self._events.emit(
            "phase", round=self._context.round, attempt=self._context.attempt, phase=phase, sites=sorted(sites)
        )

    def end(self) -> None:
        """End the present phase."""
        now = time.monotonic()
        if self._phase:
            self.seconds_by_phase[self._phase] = now - self._phase_started
        self._phase_started = now
