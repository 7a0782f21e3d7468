"""What the coordinator writes down: snapshots, events, receipts."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedmvp.errors import UserError
from fedmvp.rpc.errors import WireError
from fedmvp.rpc.receipts import RECEIPT_TAG, receipt_from_wire, receipt_to_wire
from fedmvp.rpc.v1.aggregation_pb2 import SubmitReceiptRequest
from fedmvp.server.events import EventLog, read_events, steps_in
from fedmvp.server.snapshot import FILE_NAME, Snapshot, read_snapshot
from fedmvp.server.tracker import PrivacyTracker
from privacy.receipt import PrivacyReceipt
from secure_agg.errors import SignatureError
from secure_agg.keys import SigningKey
from secure_agg.roster import Roster, RosterEntry

KEY = SigningKey.generate()
ROSTER = Roster(1, (RosterEntry(1, "site-1", "Hospital", KEY.verify_key, bytes(32)),))


def receipt(round_number: int = 3, run_id: str = "run", epsilon: float = 1.25) -> PrivacyReceipt:
    return PrivacyReceipt(
        site_id=1,
        run_id=run_id,
        round=round_number,
        mode="record-local",
        unit="record",
        neighboring_relation="add-or-remove-one",
        sample_rate=0.1,
        noise_multiplier=2.0,
        steps=15,
        epsilon=epsilon,
        delta=1e-5,
        accountant="PLD",
        ledger_head=bytes([9] * 32),
    )


def sign(value: PrivacyReceipt) -> bytes:
    return KEY.sign(RECEIPT_TAG, *value.signed_fields())


def test_a_snapshot_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    tensors = (("parameters", np.arange(5, dtype=np.float32)), ("step", np.array([2], dtype=np.float32)))
    Snapshot("run", bytes(32), 4, 3, tensors, "record-local").write(tmp_path)
    read = read_snapshot(tmp_path)

    assert read is not None
    assert (read.run_id, read.policy_hash, read.round, read.rounds_completed) == ("run", bytes(32), 4, 3)
    assert read.stamp == "record-local"
    assert [name for name, _ in read.tensors] == ["parameters", "step"]
    assert np.array_equal(read.parameters, tensors[0][1])


def test_a_snapshot_with_one_changed_byte_is_refused(tmp_path: Path) -> None:
    Snapshot("run", bytes(32), 4, 3, (("parameters", np.ones(50, dtype=np.float32)),), "record-local").write(tmp_path)
    content = bytearray((tmp_path / FILE_NAME).read_bytes())
    content[-3] ^= 1
    (tmp_path / FILE_NAME).write_bytes(content)

    with pytest.raises(UserError, match="damaged"):
        read_snapshot(tmp_path)


def test_a_cut_snapshot_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"short")

    with pytest.raises(UserError, match="damaged"):
        read_snapshot(tmp_path)


def test_events_are_heard_and_read_back_without_an_unfinished_line(tmp_path: Path) -> None:
    heard: list[str] = []
    log = EventLog(tmp_path / "events.jsonl", listener=lambda event: heard.append(event["event"]))
    log.emit("round", round=1, hash=b"\x01", sites={3, 1})
    log.close()
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"event": "half')
    (event,) = read_events(tmp_path / "events.jsonl")

    assert heard == ["round"]
    assert (event["round"], event["hash"], event["sites"]) == (1, "01", [1, 3])


def test_a_receipt_survives_the_wire_with_its_signature() -> None:
    wire = receipt_to_wire(receipt(), sign(receipt()))
    parsed = SubmitReceiptRequest.FromString(wire.SerializeToString())

    assert receipt_from_wire(parsed) == (receipt(), wire.signature)


def test_a_receipt_is_kept_and_shown() -> None:
    tracker = PrivacyTracker(ROSTER, "run")
    tracker.receive(receipt(), sign(receipt()))

    assert tracker.latest(1) == receipt()
    assert tracker.display(1)["epsilon"] == 1.25


def test_a_receipt_with_another_epsilon_than_was_signed_is_refused() -> None:
    with pytest.raises(SignatureError):
        PrivacyTracker(ROSTER, "run").receive(receipt(epsilon=0.5), sign(receipt()))


def test_a_receipt_of_another_run_or_of_the_past_is_refused() -> None:
    tracker = PrivacyTracker(ROSTER, "run")
    tracker.receive(receipt(), sign(receipt()))

    for other in (receipt(run_id="other"), receipt(round_number=2)):
        with pytest.raises(ValueError, match="receipt is"):
            tracker.receive(other, sign(other))


def _went_back(tracker: PrivacyTracker, *receipts: PrivacyReceipt) -> list[bool]:
    shown = []
    for stated in receipts:
        tracker.receive(stated, sign(stated))
        shown.append(tracker.display(1)["ledger_went_back"])
    return shown


def counted(round_number: int, steps: int) -> PrivacyReceipt:
    return replace(receipt(round_number), steps=steps)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([(1, 5), (2, 10), (2, 10), (5, 15)], [False] * 4),  # the same receipt twice, and rounds left out
        ([(1, 5), (1, 10)], [False, False]),  # another run on the same records charged meanwhile
        ([(1, 5), (2, 10), (3, 10), (4, 15)], [False, False, True, True]),  # put back to round 1, and used again
        ([(7, 35), (8, 5), (9, 40)], [False, True, True]),  # made anew; said for good
        ([(3, 15), (3, 10)], [False, True]),
    ],
)
def test_a_ledger_that_went_back_is_shown_at_the_server(counts: list[tuple[int, int]], expected: list[bool]) -> None:
    assert _went_back(PrivacyTracker(ROSTER, "run"), *(counted(*count) for count in counts)) == expected


def test_a_ledger_that_went_back_while_the_server_was_away_is_shown_too(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    first = PrivacyTracker(ROSTER, "run")
    log = EventLog(path)
    for number in (1, 2):
        first.receive(counted(number, 5 * number), sign(counted(number, 5 * number)))
        log.emit("round", round=number, receipts={1: first.display(1)})
    log.emit("run-stopped")
    log.close()
    assert _went_back(PrivacyTracker(ROSTER, "run", steps_in(path)), counted(3, 15)) == [False]
    assert _went_back(PrivacyTracker(ROSTER, "run", steps_in(path)), counted(3, 10)) == [True]
    assert _went_back(PrivacyTracker(ROSTER, "run"), counted(3, 10)) == [False]  # the control: nothing remembered


@pytest.mark.parametrize(
    "content",
    [
        "",
        "hello\n",
        "[]\n",
        '{"event": "round", "receipts": []}\n',
        '{"event": "round", "receipts": {"1": {}}}\n',
        '{"event": "round"}\n',
        '{"no": "event"}\n',
    ],
)
def test_events_that_cannot_be_read_do_not_stop_a_server(tmp_path: Path, content: str) -> None:
    (tmp_path / "events.jsonl").write_text(content)
    assert steps_in(tmp_path / "events.jsonl") == []
    assert steps_in(tmp_path / "none.jsonl") == []


def test_infinity_is_written_as_a_word() -> None:
    tracker = PrivacyTracker(ROSTER, "run")
    unsafe = receipt(epsilon=float("inf"))
    tracker.receive(unsafe, sign(unsafe))

    assert tracker.display(1)["epsilon"] == "inf"


def test_receipts_of_a_round_are_waited_for_and_a_missing_one_is_left_out() -> None:
    async def scenario() -> list[int]:
        tracker = PrivacyTracker(ROSTER, "run")
        waiting = asyncio.create_task(tracker.wait_for(3, lambda: {1}, 3600.0))
        await asyncio.sleep(0)
        tracker.receive(receipt(), sign(receipt()))
        return [len(await waiting), len(await tracker.wait_for(4, lambda: {1}, 0.01))]

    assert asyncio.run(scenario()) == [1, 0]


@pytest.mark.parametrize(
    "change",
    [
        {"delta": float("nan")},
        {"delta": 0.0},
        {"sample_rate": float("inf")},
        {"sample_rate": 0.0},
        {"noise_multiplier": float("nan")},
        {"noise_multiplier": -1.0},
        {"epsilon": float("nan")},
        {"epsilon": -1.0},
        {"round": 2**63},
        {"mode": "none"},
        {"unit": "person"},
        {"unit": "site"},
        {"mode": "silo-distributed"},
        {"neighboring_relation": "replace-one"},
        {"accountant": ""},
        {"accountant": "line\nbreak"},
        {"ledger_head": b"short"},
    ],
    ids=str,
)
def test_a_receipt_with_a_number_that_no_ledger_could_state_is_refused(change: dict[str, object]) -> None:
    wire = receipt_to_wire(replace(receipt(), **change), bytes(64))  # type: ignore[arg-type]

    with pytest.raises(WireError):
        receipt_from_wire(wire)


@pytest.mark.parametrize(
    ("mode", "unit"),
    [("record-local", "patient"), ("record-distributed", "record"), ("silo-distributed", "site")],
)
def test_the_receipts_of_every_mode_and_unit_are_taken_and_shown(mode: str, unit: str) -> None:
    stated = replace(receipt(), mode=mode, unit=unit, accountant="fedmvp Renyi filter at order 12")
    taken, _ = receipt_from_wire(receipt_to_wire(stated, bytes(64)))
    tracker = PrivacyTracker(ROSTER, "run")
    tracker.receive(taken, sign(stated))

    shown = tracker.display(1)
    assert (shown["mode"], shown["unit"], shown["accountant"]) == (mode, unit, "fedmvp Renyi filter at order 12")


def test_the_receipt_of_a_run_without_privacy_is_taken() -> None:
    stamped = replace(receipt(), mode="UNSAFE-no-dp", noise_multiplier=0.0, epsilon=float("inf"))

    assert receipt_from_wire(receipt_to_wire(stamped, bytes(64)))[0] == stamped
