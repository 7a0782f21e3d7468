"""Processes that spend from one ledger at once: run as ``python -m tests.crash.spend_at_once FOLDER JSON``.

Forks them from a warm process and prints what they sent. The lock, and the look at the last entry before one is
written, can be taken away; then the processes wait for each other, so that what must go wrong does.
"""

import json
import multiprocessing
import os
import sys
import time
import traceback
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path

from privacy import BudgetExceeded, Ledger, LedgerCorrupt, LedgerLocked, accountant, chain, storage
from tests.crash.spend import PARAMS

AT_ONCE = replace(PARAMS, sample_rate=1.0, noise_multiplier=8.0)
PROCESSES, ROUNDS, AFFORDABLE = 4, 12, 30
"""Each process wants all of its rounds; the budget is that of fewer than they want together."""


def _last_writer_wins(store: storage.LedgerStore, entry: chain.LedgerEntry) -> None:
    """Writes what this process thinks comes next, over whatever is there."""
    row = (entry.seq, entry.kind.value, chain.encode_body(entry.body), entry.previous, entry.hash, entry.release_key)
    store._connection.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?)", row)


def _link_to_the_last(store: storage.LedgerStore, entry: chain.LedgerEntry) -> None:
    """Loses nothing, but the decision was made before the others spent."""
    store._connection.execute("BEGIN IMMEDIATE")
    query = "SELECT seq, hash FROM entries ORDER BY seq DESC LIMIT 1"
    seq, previous = store._connection.execute(query).fetchone()
    storage._insert(store._connection, chain.link(seq + 1, entry.kind, entry.body, previous))
    store._connection.execute("COMMIT")


APPENDS = {"last writer wins": _last_writer_wins, "link to the last": _link_to_the_last}


def spend_at_once(folder: Path, *, locked: bool, append: str | None) -> list[str]:
    """Create a ledger and let the processes spend from it, each opening it for every round.

    Args:
        folder: for the ledger.
        locked: False takes the lock away.
        append: how entries are written instead; see ``APPENDS``.
    """
    path = folder / "ledger.db"
    curve = accountant.curve(AT_ONCE.mechanism, PROCESSES * ROUNDS, AT_ONCE.delta)  # cached before any fork
    Ledger.create(path, dataset_id="d", delta=AT_ONCE.delta, epsilon_max=curve[AFFORDABLE - 1]).close()
    meeting = None if locked else multiprocessing.get_context("fork").Barrier(PROCESSES, timeout=60)
    children = []
    for process in range(PROCESSES):
        child = os.fork()
        if child == 0:
            try:
                if meeting is not None:
                    storage._acquire_lock = lambda _path: None  # type: ignore[assignment, return-value]
                    storage.Marker.write = lambda *_: None  # type: ignore[method-assign, assignment, return-value]
                if append is not None:
                    storage.LedgerStore.append = APPENDS[append]  # type: ignore[method-assign]
                sent = _spend(path, f"run-{process}", meeting)
                (folder / f"sent-{process}").write_text("\n".join(sent))
            except Exception:  # noqa: BLE001 - the parent shows it
                traceback.print_exc()
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    return [round_ for process in range(PROCESSES) for round_ in (folder / f"sent-{process}").read_text().split()]


def _spend(path: Path, run: str, meeting: Barrier | None) -> list[str]:
    sent = []
    for number in range(1, ROUNDS + 1):
        with _opened(path) as ledger:
            if meeting is None:
                ledger.mark_attempt(run, number, 1)
            else:
                ledger._store._connection.execute("PRAGMA busy_timeout=60000")
                meeting.wait()  # all have read the same entries
            try:
                ledger.reserve(run, number, AT_ONCE, bytes(32)).consume()
                sent.append(f"{run}/{number}")
            except (BudgetExceeded, LedgerCorrupt):
                pass  # nothing was sent
        if meeting is not None:
            meeting.wait()  # all have written
    return sent


def _opened(path: Path) -> Ledger:
    while True:
        try:
            return Ledger.open(path)
        except LedgerLocked:
            time.sleep(0.002)


if __name__ == "__main__":
    request = json.loads(sys.argv[2])
    answer = spend_at_once(Path(sys.argv[1]), locked=request.get("locked", True), append=request.get("append"))
    print(json.dumps(answer))
