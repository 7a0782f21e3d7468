"""A site that spends its budget and is killed: run as ``python -m tests.crash.spend FOLDER JSON``.

Forks one child a trial from a warm process, kills it at the asked instant, and writes what the child sent to ``wire``.
The child does what a client does: reserve, consume the token, send. A trial's instant is a number of seconds after
which the child is killed from outside, or the name of a step at which it kills itself.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from privacy import (
    ADD_OR_REMOVE_ONE,
    AlreadyReleased,
    Ledger,
    LedgerMissing,
    Mode,
    PrivacyParameters,
    chain,
    ledger,
    storage,
)

PARAMS = PrivacyParameters(
    mode=Mode.RECORD_LOCAL,
    unit="record",
    neighboring_relation=ADD_OR_REMOVE_ONE,
    sample_rate=0.01,
    noise_multiplier=4.0,
    max_grad_norm=1.0,
    expected_batch_size=10,
    steps_per_round=1,
    delta=1e-5,
)


def _die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _after(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **named: Any) -> Any:
        function(*args, **named)
        _die()

    return wrapped


def _arm(step: str) -> None:
    """Make the child die at one step of the next reservation."""
    targets: dict[str, tuple[object, str, bool]] = {
        "before the transaction": (storage.LedgerStore, "append", False),
        "before the insertion": (storage, "_insert", False),
        "inserted, not committed": (storage, "_insert", True),
        "committed, marker not written": (storage.Marker, "write", False),
        "marker drafted, not replaced": (storage.Path, "replace", False),
        "marker replaced, folder not synced": (storage, "_sync_folder", False),
        "all durable, token not made": (storage.LedgerStore, "append", True),
        "ledger drafted, not in its place": (storage.os, "link", False),
        "ledger in its place, folder not synced": (storage.os, "link", True),
        "token made, nothing sent": (ledger.ReleaseToken, "consume", False),
        "token consumed, nothing sent": (ledger.ReleaseToken, "consume", True),
    }
    owner, name, afterwards = targets[step]
    setattr(owner, name, _after(getattr(owner, name)) if afterwards else _die)


def _spend(path: Path, wire: int, step: str | None, *, send_first: bool) -> None:
    opened = Ledger.open(path)
    number = opened.last_round("run") + 1
    while True:
        if step is not None and number % 3 == 0:
            _arm(step)
        if send_first:  # the mistake that the test must be able to see
            os.write(wire, f"{number}\n".encode())
        try:
            token = opened.reserve("run", number, PARAMS, bytes(32))
        except AlreadyReleased:
            number += 1
            continue
        token.consume()
        if not send_first:
            os.write(wire, f"{number}\n".encode())
        number += 1


def create_and_die(folder: Path, steps: list[str]) -> list[str]:
    """Create a ledger for each step and die there; what opening it says afterwards."""
    outcomes = []
    for number, step in enumerate(steps):
        path = folder / f"ledger-{number}.db"
        child = os.fork()
        if child == 0:
            try:
                _arm(step)
                Ledger.create(path, dataset_id="d", delta=1e-5, epsilon_max=50.0)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        try:
            Ledger.open(path).close()
            outcome = "opens"
        except LedgerMissing:
            Ledger.create(path, dataset_id="d", delta=1e-5, epsilon_max=50.0).close()
            outcome = "created anew"
        outcomes.append(outcome if os.WIFSIGNALED(status) else "did not die")
    return outcomes


def main(folder: Path, trials: list[float | str], *, send_first: bool) -> list[dict[str, Any]]:
    """Run the trials one after another on one ledger and report what the ledger says after each."""
    path, wire = folder / "ledger.db", os.open(folder / "wire", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with Ledger.create(path, dataset_id="d", delta=1e-5, epsilon_max=50.0) as created:
        created.epsilon_after(PARAMS)  # imports the accountant before any fork
    reports = []
    for instant in trials:
        child = os.fork()
        if child == 0:
            try:
                _spend(path, wire, instant if isinstance(instant, str) else None, send_first=send_first)
            finally:
                os._exit(1)
        if not isinstance(instant, str):
            time.sleep(instant)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        sent = [int(line) for line in (folder / "wire").read_text().split()]
        with Ledger.open(path) as after:
            charged = [e.round for e in after.entries() if e.kind is chain.EntryKind.CHARGE]
        reports.append({"killed": os.WIFSIGNALED(status), "instant": instant, "sent": sent, "charged": charged})
    return reports


if __name__ == "__main__":
    where, request = Path(sys.argv[1]), json.loads(sys.argv[2])
    if "create" in request:
        answer: object = create_and_die(where, request["create"])
    else:
        answer = main(where, request["trials"], send_first=request.get("send_first", False))
    print(json.dumps(answer))
