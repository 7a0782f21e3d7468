"""Finished rounds are measured and reported here, behind the round loop, so that no site waits for a measurement."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmvp.server.evaluator import PublicModel, PublicScore
from fedmvp.server.events import EventLog
from fedmvp.server.lobby import Lobby
from fedmvp.server.tracker import PrivacyTracker

RECEIPT_SECONDS = 2.0
"""A receipt follows its round by one call; a site that has not sent it by then is reported without."""

MAX_PENDING_ROUNDS = 2
"""When measuring is slower than the rounds, the rounds wait: the report never falls far behind."""


@dataclass(frozen=True, eq=False)
class RoundRecord:
    """What is reported of a published round."""

    round: int
    attempt: int
    survivors: tuple[int, ...]
    dropped: tuple[int, ...]
    seconds: float
    seconds_by_phase: dict[str, float]
    bytes_up_by_site: dict[int, int]
    parameters: NDArray[np.float32]


class Reporter:
    """Reports rounds in order.

    Args:
        events: where to.
        model: measures accuracy on the public set.
        tracker: knows the sites' receipts.
        lobby: knows whose receipt can still come.
    """

    def __init__(self, events: EventLog, model: PublicModel, tracker: PrivacyTracker, lobby: Lobby) -> None:
        self._events = events
        self._model = model
        self._tracker = tracker
        self._lobby = lobby
        self._queue: asyncio.Queue[RoundRecord] = asyncio.Queue(MAX_PENDING_ROUNDS)
        self.last_score: PublicScore | None = None
        self.last_round_by_site: dict[int, int] = {}

    async def put(self, record: RoundRecord) -> None:
        """Hand over a finished round; waits only when too many are pending."""
        self.last_round_by_site |= dict.fromkeys(record.survivors, record.round)
        await self._queue.put(record)

    async def drain(self) -> None:
        """Return when every round handed over is reported."""
        await self._queue.join()

    async def run(self) -> None:
        """Report rounds until cancelled."""
        while True:
            record = await self._queue.get()
            await self._report(record)
            self._queue.task_done()

    async def _report(self, record: RoundRecord) -> None:
        score = await asyncio.to_thread(self._model.score, record.parameters)
        receipts = await self._tracker.wait_for(
            record.round, lambda: set(record.survivors) & self._lobby.connected, RECEIPT_SECONDS
        )
        self.last_score = score or self.last_score
        self._events.emit(
            "round",
            round=record.round,
            attempt=record.attempt,
            survivors=record.survivors,
            dropped=record.dropped,
            accuracy=score.accuracy if score else None,
            accuracy_interval=[score.low, score.high] if score else None,
            seconds=record.seconds,
            seconds_by_phase=record.seconds_by_phase,
            bytes_up_by_site=record.bytes_up_by_site,
            receipts=receipts,
        )
