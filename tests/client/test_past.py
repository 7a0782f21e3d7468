"""What a site remembers, and what it refuses because of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedmvp.client.connection import Publication
from fedmvp.client.past import Past
from secure_agg.context import RoundContext
from secure_agg.errors import RemoteProtocolError
from secure_agg.messages import PublishedSum

NEXT = bytes([5] * 32)
CONTEXT = RoundContext(
    run_id="run",
    round=3,
    attempt=1,
    policy_hash=bytes(32),
    roster_hash=bytes(32),
    model_hash=bytes(32),
    cohort=(1, 2, 3),
    threshold=3,
    colluders=1,
    ring_bits=32,
    length=4,
    graph="complete",
    degree=2,
    share_threshold=3,
)
PUBLISHED = Publication(PublishedSum(np.zeros(4, dtype=np.uint32), (1, 2, 3), bytes(32)), bytes(32), NEXT)
HEADS = {1: bytes([1] * 32), 2: bytes([2] * 32)}


@pytest.fixture
def past(tmp_path: Path) -> Iterator[Past]:
    """A past with one round, read again from its file as after a restart."""
    first = Past(tmp_path)
    first.finished(CONTEXT, PUBLISHED, HEADS, bytes([8] * 32))
    first.close()
    again = Past(tmp_path)
    yield again
    again.close()


def test_the_model_that_the_last_sum_led_to_is_accepted(past: Past) -> None:
    past.check_model(replace(CONTEXT, round=4, model_hash=NEXT), model_round=3)


def test_another_model_than_the_last_sum_led_to_is_refused(past: Past) -> None:
    with pytest.raises(RemoteProtocolError, match="last sum"):
        past.check_model(replace(CONTEXT, round=4), model_round=3)


def test_a_model_of_an_earlier_round_is_refused(past: Past) -> None:
    with pytest.raises(RemoteProtocolError, match="went back"):
        past.check_model(replace(CONTEXT, round=4, model_hash=NEXT), model_round=2)


def test_a_model_after_rounds_that_this_site_missed_cannot_be_compared(past: Past) -> None:
    past.check_model(replace(CONTEXT, round=6), model_round=5)


def test_another_run_starts_afresh(past: Past) -> None:
    past.check_model(replace(CONTEXT, run_id="other", round=1), model_round=0)


def test_a_ledger_head_seen_before_tells_that_a_copy_was_put_back(past: Past) -> None:
    assert past.rolled_back({1: bytes([1] * 32), 2: bytes([7] * 32), 3: bytes([1] * 32)}) == (1,)


def test_the_own_ledger_head_is_remembered_over_a_restart(past: Past) -> None:
    assert past.own_ledger_head == bytes([8] * 32)
