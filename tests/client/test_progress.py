"""How long work is shown where there is no terminal."""

from __future__ import annotations

import pytest
import structlog

from fedmvp.client import progress


def test_without_a_terminal_the_end_is_a_line_and_not_every_step_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with structlog.testing.capture_logs() as lines:
        monkeypatch.setattr(progress, "log", structlog.get_logger())
        with progress.shown("computing") as report:
            for done in range(1, 101):
                report(done, 100)

    assert [(line["event"], line["done"], line["total"]) for line in lines] == [("computing", 100, 100)]


def test_slow_work_gives_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with structlog.testing.capture_logs() as lines:
        monkeypatch.setattr(progress, "log", structlog.get_logger())
        with progress.shown("computing") as report:
            for done in range(1, 11):
                report(done, 100)

    assert 1 <= len(lines) < 10
