"""The hash-chained file of records, and the coordinator's audit log on top of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmvp.errors import UserError
from fedmvp.journal import Journal
from fedmvp.server.audit import ATTEMPTS_SKIPPED, AuditLog
from secure_agg.context import RoundContext


def written(path: Path) -> list[bytes]:
    journal = Journal(path)
    for number in range(3):
        journal.append({"number": number})
    journal.close()
    return path.read_bytes().splitlines(keepends=True)


def records(path: Path) -> list[int]:
    found: list[int] = []
    Journal(path, on_record=lambda record: found.append(record["number"])).close()
    return found


def test_records_and_head_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    written(path)
    again = Journal(path)
    head = again.head
    again.append({"number": 3})
    again.close()

    assert records(path) == [0, 1, 2, 3]
    assert again.head != head


def test_a_line_cut_off_by_a_crash_is_dropped_and_written_over(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    lines = written(path)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:10])
    journal = Journal(path)
    journal.append({"number": 7})
    journal.close()

    assert records(path) == [0, 1, 7]


@pytest.mark.parametrize("order", [(0, 2), (1, 0, 2), (1, 2), (0, 0, 1, 2)])
def test_a_line_removed_moved_or_repeated_is_refused(tmp_path: Path, order: tuple[int, ...]) -> None:
    path = tmp_path / "journal.jsonl"
    lines = written(path)
    path.write_bytes(b"".join(lines[index] for index in order))

    with pytest.raises(UserError, match="does not follow"):
        Journal(path)


def test_a_changed_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    lines = written(path)
    path.write_bytes(lines[0] + lines[1].replace(b'"number":1', b'"number":5') + lines[2])

    with pytest.raises(UserError, match="line 2"):
        Journal(path)


def context(round_number: int, attempt: int) -> RoundContext:
    hashes = dict.fromkeys(("policy_hash", "roster_hash", "model_hash"), bytes(32))
    return RoundContext(
        run_id="run", round=round_number, attempt=attempt, cohort=(1, 2, 3), threshold=3, colluders=1, ring_bits=32,
        length=4, graph="complete", degree=2, share_threshold=3, **hashes,
    )  # fmt: skip


def test_a_new_attempt_follows_an_announced_one(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    log.announced(context(1, 1))
    log.aborted(context(1, 1), "too few", released=False)

    assert log.next_attempt == (1, 2)
    log.close()


def test_a_round_number_is_used_up_once_vectors_may_have_left(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    log.announced(context(1, 1))
    log.release_opened(context(1, 1))
    assert log.next_attempt == (2, 1)
    log.aborted(context(1, 1), "too few", released=True)

    assert log.next_attempt == (2, 1)
    log.close()


def test_a_round_whose_shares_did_not_suffice_may_be_tried_again(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    log.announced(context(1, 1))
    log.release_opened(context(1, 1))
    log.aborted(context(1, 1), "too few", released=False)

    assert log.next_attempt == (1, 2)
    log.close()


def test_a_coordinator_killed_in_an_attempt_announces_none_that_a_site_can_have_seen(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    log.announced(context(4, 2))
    log.close()
    again = AuditLog(tmp_path)
    again.started(run_id="run", policy_hash=b"", roster_hash=b"", model_hash=b"", model_round=3)

    assert again.next_attempt == (4, 3 + ATTEMPTS_SKIPPED)
    again.close()


def test_a_coordinator_killed_after_vectors_may_have_left_does_not_use_the_number_again(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    log.announced(context(4, 2))
    log.release_opened(context(4, 2))
    log.close()
    again = AuditLog(tmp_path)

    assert again.next_attempt[0] == 5
    again.close()
