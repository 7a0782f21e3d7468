"""However a site dies, what it sent was charged before, once, and the ledger opens again."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from privacy import Ledger, LedgerRolledBack, accountant
from privacy.chain import EntryKind
from tests.crash.spend import PARAMS
from tests.crash.spend_at_once import AFFORDABLE, AT_ONCE, PROCESSES, ROUNDS

STEPS = [
    "before the transaction",
    "before the insertion",
    "inserted, not committed",
    "committed, marker not written",
    "marker drafted, not replaced",
    "marker replaced, folder not synced",
    "all durable, token not made",
    "token made, nothing sent",
    "token consumed, nothing sent",
]


def _ask(folder: Path, program: str = "tests.crash.spend", **request: object) -> Any:
    command = [sys.executable, "-m", program, str(folder), json.dumps(request)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def _run(folder: Path, trials: list[Any], *, send_first: bool = False) -> list[dict[str, Any]]:
    reports: list[dict[str, Any]] = _ask(folder, trials=trials, send_first=send_first)
    assert len(reports) == len(trials)
    return reports


def _check(reports: list[dict[str, Any]]) -> None:
    before: list[int] = []
    for report in reports:
        assert report["killed"], f"the site did not die {report['instant']}"
        assert len(report["charged"]) == len(set(report["charged"])), "charged twice"
        assert len(report["sent"]) == len(set(report["sent"])), "released twice"
        assert set(report["sent"]) <= set(report["charged"]), "released but not charged"
        assert report["charged"][: len(before)] == before, "a charge was forgotten"
        before = report["charged"]


def test_a_kill_at_every_step_of_a_reservation_leaves_it_charged_or_untouched(tmp_path: Path) -> None:
    reports = _run(tmp_path, STEPS)
    _check(reports)
    assert len(reports[-1]["sent"]) < len(reports[-1]["charged"])  # some rounds were charged and never sent


def test_kills_at_random_instants_leave_nothing_released_uncharged(tmp_path: Path) -> None:
    for stretch in (1, 4, 16):  # on a busy machine a child may die before it came to send anything
        folder = tmp_path / str(stretch)
        folder.mkdir()
        reports = _run(folder, [stretch * random.Random(seed).uniform(0.01, 0.12) for seed in range(15)])
        _check(reports)
        if reports[-1]["sent"]:
            return
    raise AssertionError("no site ever sent anything")


@pytest.mark.long
def test_two_hundred_kills_at_random_instants_leave_nothing_released_uncharged(tmp_path: Path) -> None:
    instants = [random.Random(1000 + seed).uniform(0.0, 0.15) for seed in range(200)]
    reports = _run(tmp_path, instants)
    _check(reports)
    assert reports[-1]["sent"]
    assert len(reports[-1]["sent"]) < len(reports[-1]["charged"])  # some died between the charge and the sending


def test_a_kill_at_every_step_of_a_creation_leaves_a_ledger_or_nothing(tmp_path: Path) -> None:
    steps = ["before the insertion", "inserted, not committed", "ledger drafted, not in its place"]
    later = ["ledger in its place, folder not synced", "committed, marker not written", "marker drafted, not replaced"]
    assert _ask(tmp_path, create=steps + later) == ["created anew"] * 3 + ["opens"] * 3


def _spend_at_once(folder: Path, **request: object) -> list[str]:
    """What four processes sent that spend from one ledger at once."""
    sent: list[str] = _ask(folder, "tests.crash.spend_at_once", **request)
    return sent


def _check_at_once(folder: Path, sent: list[str]) -> None:
    assert len(sent) == len(set(sent)), "released twice"
    with Ledger.open(folder / "ledger.db") as ledger:
        charged = [f"{entry.run_id}/{entry.round}" for entry in ledger.entries() if entry.kind is EntryKind.CHARGE]
        assert sorted(charged) == sorted(sent), "a charge was lost"
        spent = accountant.spent([AT_ONCE.mechanism] * len(sent), ledger.delta, ledger.epsilon_max)
        assert spent <= ledger.epsilon_max, "released past the budget"


def test_four_processes_that_spend_at_once_lose_no_charge_and_stop_at_the_budget(tmp_path: Path) -> None:
    sent = _spend_at_once(tmp_path)
    _check_at_once(tmp_path, sent)
    assert len(sent) == AFFORDABLE  # neither more nor fewer than one process alone
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        assert [ledger.last_attempt(f"run-{process}") for process in range(PROCESSES)] == [(ROUNDS, 1)] * PROCESSES


@pytest.mark.parametrize(
    ("append", "message"), [("last writer wins", "a charge was lost"), ("link to the last", "past the budget")]
)
def test_control_without_the_lock_and_the_look_at_the_last_entry_the_same_check_fails(
    tmp_path: Path, append: str, message: str
) -> None:
    sent = _spend_at_once(tmp_path, locked=False, append=append)
    with pytest.raises(AssertionError, match=message):
        _check_at_once(tmp_path, sent)


def test_without_the_lock_the_look_at_the_last_entry_still_lets_one_of_four_through(tmp_path: Path) -> None:
    """On a disk that grants a lock to everybody who asks."""
    sent = _spend_at_once(tmp_path, locked=False)
    _check_at_once(tmp_path, sent)
    assert len(sent) == ROUNDS


def test_control_a_site_that_sends_before_it_reserves_fails_the_same_check(tmp_path: Path) -> None:
    reports = _run(tmp_path, ["before the transaction"], send_first=True)
    with pytest.raises(AssertionError, match="not charged"):
        _check(reports)


def test_a_log_cut_anywhere_after_a_charge_was_used_is_refused(tmp_path: Path) -> None:
    """A disk that loses what it had promised to keep is found out by the marker."""
    path = tmp_path / "live.db"
    ledger = Ledger.create(path, dataset_id="d", delta=1e-5, epsilon_max=8.0)
    for number in (1, 2, 3):
        ledger.reserve("run", number, PARAMS, bytes(32)).consume()
    files = {suffix: Path(f"{path}{suffix}").read_bytes() for suffix in ("", "-wal", ".created")}
    ledger.close()
    log = files["-wal"]
    opened = 0
    for number, cut in enumerate([*range(0, len(log), 1031), len(log)]):
        copy = tmp_path / f"copy-{number}.db"
        for suffix, content in files.items():
            Path(f"{copy}{suffix}").write_bytes(content[:cut] if suffix == "-wal" else content)
        try:
            with Ledger.open(copy) as survivor:
                assert survivor.spent().rounds == 3
            opened += 1
        except LedgerRolledBack:
            assert cut < len(log)
    assert 1 <= opened < len(log) // 1031


def test_a_file_size_limit_stops_the_spending_without_losing_a_charge(tmp_path: Path) -> None:
    """The operating system refuses the write in the middle, as on a full disk."""
    path = tmp_path / "small.db"
    Ledger.create(path, dataset_id="d", delta=1e-5, epsilon_max=50.0).close()
    script = (
        "import resource, signal, sys\n"
        "from privacy import Ledger, LedgerError\n"
        "from tests.crash.spend import PARAMS\n"
        "ledger = Ledger.open(sys.argv[1]); ledger.epsilon_after(PARAMS)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try:\n"
        "    for number in range(1, 100):\n"
        "        ledger.reserve('run', number, PARAMS, bytes(32)).consume(); print(number)\n"
        "except LedgerError as error:\n"
        "    print(type(error).__name__)\n"
    )
    run = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)
    *sent, last = run.stdout.split()
    assert last == "LedgerWriteFailed", run.stderr
    with Ledger.open(path) as ledger:
        assert 0 < len(sent) <= ledger.spent().rounds <= len(sent) + 1
