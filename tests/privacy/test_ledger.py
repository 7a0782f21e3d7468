"""The ledger charges before it lets anything go, and refuses whatever it cannot vouch for."""

import copy
import json
import math
import pickle
import shutil
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from privacy import (
    ACCOUNTANT,
    AlreadyReleased,
    AttemptReplayed,
    BudgetExceeded,
    Ledger,
    LedgerCorrupt,
    LedgerError,
    LedgerExists,
    LedgerLocked,
    LedgerMissing,
    LedgerRolledBack,
    LedgerVersionUnknown,
    LedgerWriteFailed,
    PrivacyParameters,
    PrivacyRefused,
    ReleaseToken,
    TokenSpent,
    epsilon,
    make_receipt,
)
from privacy.storage import LedgerStore, Marker, marker_path
from tests.privacy.conftest import POLICY, UNSAFE

OPEN_IN_ANOTHER_PROCESS = "import sys; from privacy import Ledger; Ledger.open(sys.argv[1])"


def _charge(ledger: Ledger, params: PrivacyParameters, rounds: range, run: str = "run") -> list[ReleaseToken]:
    return [ledger.reserve(run, number, params, POLICY) for number in rounds]


def _closed_ledger(tmp_path: Path, params: PrivacyParameters) -> Path:
    with Ledger.create(tmp_path / "l.db", dataset_id="ward-7", delta=1e-5, epsilon_max=8.0) as ledger:
        _charge(ledger, params, range(1, 4))
    return tmp_path / "l.db"


def test_a_reservation_is_charged_with_its_mechanism(ledger: Ledger, params: PrivacyParameters) -> None:
    (token,) = _charge(ledger, params, range(1, 2))
    spent = ledger.spent()
    assert spent.epsilon == epsilon([params.mechanism], 1e-5) == token.epsilon_after
    assert (spent.steps, spent.rounds, spent.delta, spent.unit) == (5, 1, 1e-5, "record")
    assert spent.neighboring_relation == "add-or-remove-one"
    assert "PLD" in spent.accountant
    body = ledger.entries()[-1].body
    assert (body["run_id"], body["round"], body["policy_hash"]) == ("run", 1, POLICY.hex())
    assert ledger.head == token.entry_hash == ledger.entries()[-1].hash


def test_a_preview_charges_nothing(ledger: Ledger, params: PrivacyParameters) -> None:
    head = ledger.head
    assert ledger.preview("run", 1, params) == epsilon([params.mechanism], 1e-5)
    assert (ledger.head, ledger.spent().epsilon, ledger.last_round("run")) == (head, 0.0, 0)


def test_what_was_spent_survives_a_restart(tmp_path: Path, params: PrivacyParameters) -> None:
    path = _closed_ledger(tmp_path, params)
    with Ledger.open(path) as ledger:
        assert ledger.spent().epsilon == epsilon([params.mechanism] * 3, 1e-5)
        assert (ledger.dataset_id, ledger.epsilon_max, ledger.last_round("run")) == ("ward-7", 8.0, 3)
        with pytest.raises(AlreadyReleased):
            ledger.reserve("run", 2, params, POLICY)
        with pytest.raises(AlreadyReleased):
            ledger.preview("run", 2, params)
        _charge(ledger, params, range(4, 5))


def test_one_round_is_released_once_however_it_ended(ledger: Ledger, params: PrivacyParameters) -> None:
    _charge(ledger, params, range(1, 2))  # the token is never used
    head = ledger.head
    with pytest.raises(AlreadyReleased):
        ledger.reserve("run", 1, params, POLICY)
    with pytest.raises(AlreadyReleased):
        ledger.reserve("run", 1, replace(params, noise_multiplier=9.0), bytes(32))
    assert ledger.head == head


def test_two_runs_on_one_dataset_compose(ledger: Ledger, params: PrivacyParameters) -> None:
    _charge(ledger, params, range(1, 4), "first")
    longer = replace(params, steps_per_round=9)  # another number of the same steps
    _charge(ledger, longer, range(1, 3), "second")
    assert ledger.spent().epsilon == epsilon([params.mechanism] * 3 + [longer.mechanism] * 2, 1e-5)
    assert ledger.spent().accountant == ACCOUNTANT
    assert (ledger.last_round("first"), ledger.last_round("second"), ledger.last_round("third")) == (3, 2, 0)


def test_the_budget_may_be_spent_exactly_and_not_a_hair_more(tmp_path: Path, params: PrivacyParameters) -> None:
    exactly = epsilon([params.mechanism] * 3, 1e-5)
    budgets = {"exact": exactly, "a hair less": math.nextafter(exactly, 0)}
    granted = {}
    for name, budget in budgets.items():
        with Ledger.create(tmp_path / name, dataset_id="d", delta=1e-5, epsilon_max=budget) as ledger:
            with pytest.raises(BudgetExceeded) as refusal:
                _charge(ledger, params, range(1, 9))
            granted[name] = ledger.spent().rounds
            assert refusal.value.epsilon_max == budget < refusal.value.epsilon_after
            assert ledger.spent().epsilon <= budget
    assert granted == {"exact": 3, "a hair less": 2}


def test_parameters_of_another_delta_are_refused(ledger: Ledger, params: PrivacyParameters) -> None:
    with pytest.raises(PrivacyRefused, match="delta"):
        ledger.reserve("run", 1, replace(params, delta=1e-6), POLICY)
    assert len(ledger.entries()) == 1


@pytest.mark.parametrize(("run", "number"), [("", 1), ("run", 0), ("run", -1), ("run", True)])
def test_a_release_needs_a_run_and_a_round(ledger: Ledger, params: PrivacyParameters, run: str, number: int) -> None:
    with pytest.raises(ValueError, match=r"run_id|rounds"):
        ledger.reserve(run, number, params, POLICY)


def test_a_token_works_once(ledger: Ledger, params: PrivacyParameters) -> None:
    (token,) = _charge(ledger, params, range(1, 2))
    assert not token.is_spent
    token.consume()
    with pytest.raises(TokenSpent):
        token.consume()


def test_a_token_cannot_be_made_copied_pickled_or_altered(ledger: Ledger, params: PrivacyParameters) -> None:
    (token,) = _charge(ledger, params, range(1, 2))
    attempts = (
        ReleaseToken,
        lambda: ReleaseToken._mint(
            object(), run_id="run", round=2, policy_hash=POLICY, epsilon_after=0.0, entry_hash=bytes(32)
        ),
        lambda: copy.copy(token),
        lambda: copy.deepcopy(token),
        lambda: pickle.dumps(token),
    )
    for attempt in attempts:
        with pytest.raises(TypeError):
            attempt()
    with pytest.raises(AttributeError):
        token.round = 2  # type: ignore[misc]
    assert POLICY.hex() not in repr(token)


def test_attempts_only_go_forward_and_survive_a_restart(ledger: Ledger) -> None:
    for number, attempt in ((1, 1), (1, 2), (3, 1)):
        ledger.mark_attempt("run", number, attempt)
    for number, attempt in ((3, 1), (2, 9), (1, 3)):
        with pytest.raises(AttemptReplayed):
            ledger.mark_attempt("run", number, attempt)
    ledger.mark_attempt("other", 1, 1)
    ledger.close()
    with Ledger.open(ledger.path) as again:
        assert [again.last_attempt(run) for run in ("run", "other", "new")] == [(3, 1), (1, 1), (0, 0)]
        assert again.spent().epsilon == 0.0


def test_a_receipt_states_the_whole_spending_and_signs_every_field(ledger: Ledger, params: PrivacyParameters) -> None:
    _charge(ledger, params, range(1, 3))
    receipt = make_receipt(ledger, site_id=4, run_id="run", round=1)
    assert (receipt.epsilon, receipt.steps, receipt.ledger_head) == (ledger.spent().epsilon, 10, ledger.head)
    fields = receipt.signed_fields()
    changes = {"site_id": 5, "run_id": "x", "round": 2, "mode": "x", "unit": "x", "neighboring_relation": "x"}
    changes |= {"sample_rate": 0.2, "noise_multiplier": 2.0, "steps": 11, "epsilon": 0.1, "delta": 1e-6}
    changes |= {"accountant": "x", "ledger_head": bytes(32)}
    assert len(fields) == len(changes)
    for position, (name, value) in enumerate(changes.items()):
        altered = replace(receipt, **{name: value}).signed_fields()  # type: ignore[arg-type]
        assert [i for i, pair in enumerate(zip(fields, altered, strict=True)) if pair[0] != pair[1]] == [position]


def test_a_round_that_was_never_charged_gets_no_receipt(ledger: Ledger) -> None:
    with pytest.raises(PrivacyRefused, match="never charged"):
        make_receipt(ledger, site_id=1, run_id="run", round=1)


def test_the_unsafe_mode_is_stamped_on_ledger_and_receipt_and_never_forgotten(
    unsafe_ledger: Ledger, params: PrivacyParameters
) -> None:
    _charge(unsafe_ledger, params, range(1, 2))
    assert math.isfinite(unsafe_ledger.spent().epsilon)
    _charge(unsafe_ledger, UNSAFE, range(2, 3))
    receipt = make_receipt(unsafe_ledger, site_id=1, run_id="run", round=2)
    assert (receipt.mode, receipt.epsilon) == ("UNSAFE-no-dp", math.inf)
    assert unsafe_ledger.entries()[-1].body["mode"] == "UNSAFE-no-dp"
    unsafe_ledger.close()
    with Ledger.open(unsafe_ledger.path) as again:
        assert math.isinf(again.spent().epsilon)
        _charge(again, params, range(3, 4))
        assert math.isinf(again.spent().epsilon)


def test_the_unsafe_mode_needs_a_ledger_created_for_it(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(PrivacyRefused, match="UNSAFE"):
        ledger.reserve("run", 1, UNSAFE, POLICY)
    for budget, unsafe in ((math.inf, False), (8.0, True)):
        with pytest.raises(ValueError, match="belong together"):
            Ledger.create(tmp_path / "u", dataset_id="d", delta=1e-5, epsilon_max=budget, unsafe=unsafe)


@pytest.mark.parametrize(
    "bad", [{"delta": 0.0}, {"epsilon_max": 0.0}, {"epsilon_max": math.nan}, {"unit": "ward"}, {"dataset_id": ""}]
)
def test_a_ledger_without_sense_is_not_created(tmp_path: Path, bad: dict[str, object]) -> None:
    values: dict[str, object] = {"dataset_id": "d", "delta": 1e-5, "epsilon_max": 8.0, "unit": "record"}
    with pytest.raises(ValueError, match=r"must|unknown"):
        Ledger.create(tmp_path / "new.db", **(values | bad))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_second_process_and_a_second_opening_are_locked_out_until_the_first_closes(ledger: Ledger) -> None:
    command = [sys.executable, "-W", "ignore", "-c", OPEN_IN_ANOTHER_PROCESS, str(ledger.path)]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "LedgerLocked" in refused.stderr
    with pytest.raises(LedgerLocked):
        Ledger.open(ledger.path)
    ledger.close()
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_running_ledger_can_be_looked_at_but_not_written(ledger: Ledger, params: PrivacyParameters) -> None:
    _charge(ledger, params, range(1, 3))
    with Ledger.open(ledger.path, read_only=True) as display:
        assert display.spent() == ledger.spent()
        with pytest.raises(LedgerError, match="reading only"):
            display.reserve("run", 3, params, POLICY)


def test_a_closed_ledger_charges_nothing(ledger: Ledger, params: PrivacyParameters) -> None:
    ledger.close()
    ledger.close()
    with pytest.raises(LedgerError, match="closed"):
        ledger.reserve("run", 1, params, POLICY)


def test_a_ledger_is_never_overwritten(tmp_path: Path, params: PrivacyParameters) -> None:
    path = _closed_ledger(tmp_path, params)
    for _ in range(2):  # the second time only the marker is left
        with pytest.raises(LedgerExists):
            Ledger.create(path, dataset_id="ward-7", delta=1e-5, epsilon_max=8.0)
        path.unlink(missing_ok=True)


def test_a_missing_ledger_is_refused_and_a_lost_one_told_apart(tmp_path: Path, params: PrivacyParameters) -> None:
    with pytest.raises(LedgerMissing, match="no ledger at"):
        Ledger.open(tmp_path / "never.db")
    path = _closed_ledger(tmp_path, params)
    path.unlink()
    with pytest.raises(LedgerMissing, match="is gone although"):
        Ledger.open(path)


def test_a_lost_marker_is_refused_once_something_was_charged(tmp_path: Path, params: PrivacyParameters) -> None:
    path = _closed_ledger(tmp_path, params)
    marker_path(path).unlink()
    with pytest.raises(LedgerMissing, match="is gone: without it"):
        Ledger.open(path)


def test_a_creation_interrupted_before_the_marker_is_completed(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    Ledger.create(path, dataset_id="d", delta=1e-5, epsilon_max=8.0).close()
    marker_path(path).unlink()
    Ledger.open(path).close()
    assert marker_path(path).exists()


def test_an_older_copy_put_back_is_refused(tmp_path: Path, params: PrivacyParameters) -> None:
    path = _closed_ledger(tmp_path, params)
    shutil.copy(path, tmp_path / "copy")
    with Ledger.open(path) as ledger:
        _charge(ledger, params, range(4, 5))
    shutil.copy(tmp_path / "copy", path)
    with pytest.raises(LedgerRolledBack, match="copy was put back"):
        Ledger.open(path)


def test_an_older_copy_of_ledger_and_marker_is_refused_by_the_expected_head(
    tmp_path: Path, params: PrivacyParameters
) -> None:
    path = _closed_ledger(tmp_path, params)
    files = (path, marker_path(path))
    for file in files:
        shutil.copy(file, tmp_path / f"{file.name}.copy")
    with Ledger.open(path) as ledger:
        earlier = ledger.head
        _charge(ledger, params, range(4, 5))
        newest = ledger.head
    Ledger.open(path, expected_head=earlier).close()  # the chain may be ahead of what was recorded elsewhere
    for file in files:
        shutil.copy(tmp_path / f"{file.name}.copy", file)
    with pytest.raises(LedgerRolledBack, match="recorded earlier"):
        Ledger.open(path, expected_head=newest)


def test_another_ledger_put_in_its_place_is_refused(tmp_path: Path, params: PrivacyParameters) -> None:
    path = _closed_ledger(tmp_path, params)
    for rounds in (0, 3, 5):  # shorter than the marker says, as long, and longer
        other = tmp_path / f"other-{rounds}.db"
        with Ledger.create(other, dataset_id="ward-7", delta=1e-5, epsilon_max=80.0) as ledger:
            _charge(ledger, params, range(1, rounds + 1))
        shutil.copy(other, path)
        with pytest.raises(LedgerRolledBack, match="another ledger than"):
            Ledger.open(path)


def _rewrite(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.executescript("DROP TRIGGER entries_are_never_changed; DROP TRIGGER entries_are_never_removed")
        connection.execute(statement)
    connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET body = CAST(replace(CAST(body AS TEXT), '1.5', '9.5') AS BLOB) WHERE seq = 2",
        "UPDATE entries SET kind = 'attempt', release_key = NULL WHERE seq = 2",
        "UPDATE entries SET release_key = NULL WHERE seq = 2",
        "UPDATE entries SET release_key = '77:run' WHERE seq = 2",
        "UPDATE entries SET previous = zeroblob(32) WHERE seq = 2",
        "UPDATE entries SET hash = randomblob(32) WHERE seq = 3",
        "UPDATE entries SET seq = 9 WHERE seq = 3",
        "DELETE FROM entries WHERE seq = 3",
        "DELETE FROM entries WHERE seq = 1",
        "DELETE FROM entries",
        "DROP TABLE entries",
        "INSERT INTO entries VALUES (4, 'charge', x'7b7d', zeroblob(32), randomblob(32), NULL)",
    ],
)
def test_an_altered_chain_is_refused(tmp_path: Path, params: PrivacyParameters, statement: str) -> None:
    path = _closed_ledger(tmp_path, params)
    _rewrite(path, statement)
    with pytest.raises(LedgerError):
        Ledger.open(path)


def test_an_entry_that_is_missing_is_noticed_although_the_marker_was_changed_to_agree(
    tmp_path: Path, params: PrivacyParameters
) -> None:
    path = _closed_ledger(tmp_path, params)
    with Ledger.open(path, read_only=True) as ledger:
        head = ledger.head
    _rewrite(path, "DELETE FROM entries WHERE seq = 2")
    Marker(2, head).write(path)  # the third of three
    with pytest.raises(LedgerCorrupt, match="the chain breaks at entry 2"):
        Ledger.open(path)


def test_an_entry_cannot_be_changed_or_removed_by_accident(tmp_path: Path, params: PrivacyParameters) -> None:
    path = _closed_ledger(tmp_path, params)
    connection = sqlite3.connect(path)
    for statement in ("UPDATE entries SET kind = 'charge'", "DELETE FROM entries"):
        with pytest.raises(sqlite3.IntegrityError, match="append only"):
            connection.execute(statement)
    connection.close()


def test_every_flipped_bit_is_either_refused_or_changes_nothing(tmp_path: Path, params: PrivacyParameters) -> None:
    path = _closed_ledger(tmp_path, params)
    with Ledger.open(path, read_only=True) as ledger:
        original = ledger.entries()
    content = path.read_bytes()
    refused = 0
    for position in range(0, len(content), 97):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        for leftover in tmp_path.glob("l.db-*"):
            leftover.unlink()
        path.write_bytes(damaged)
        try:
            with Ledger.open(path, read_only=True) as ledger:
                assert ledger.entries() == original
        except LedgerError:
            refused += 1
    assert refused > 20


def test_a_flipped_bit_in_any_recorded_charge_is_refused(tmp_path: Path, params: PrivacyParameters) -> None:
    path = _closed_ledger(tmp_path, params)
    content = path.read_bytes()
    start = content.index(b'"noise_multiplier":1.5')
    for position in range(start, start + 22):
        damaged = bytearray(content)
        damaged[position] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(LedgerCorrupt):
            Ledger.open(path)


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.7, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, params: PrivacyParameters, kept: float) -> None:
    path = _closed_ledger(tmp_path, params)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(LedgerError):
        Ledger.open(path)


@pytest.mark.parametrize("content", [b"", b"\x00" * 4096, b"not a ledger", b"SQLite format 3\x00"])
def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "l.db").write_bytes(content)
    with pytest.raises(LedgerCorrupt):
        Ledger.open(tmp_path / "l.db")


def test_an_unknown_version_is_refused(tmp_path: Path, params: PrivacyParameters) -> None:
    path = _closed_ledger(tmp_path, params)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=2")
    connection.close()
    with pytest.raises(LedgerVersionUnknown, match="format 2"):
        Ledger.open(path)


@pytest.mark.parametrize("content", ["", "{}", '{"version": 1, "seq": 0, "head": "xyz"}'])
def test_a_damaged_marker_is_refused(tmp_path: Path, params: PrivacyParameters, content: str) -> None:
    path = _closed_ledger(tmp_path, params)
    marker_path(path).write_text(content)
    with pytest.raises(LedgerCorrupt):
        Ledger.open(path)


def test_a_marker_of_an_unknown_version_is_refused(tmp_path: Path, params: PrivacyParameters) -> None:
    path = _closed_ledger(tmp_path, params)
    fields = json.loads(marker_path(path).read_text())
    marker_path(path).write_text(json.dumps(fields | {"version": 2}))
    with pytest.raises(LedgerVersionUnknown):
        Ledger.open(path)


def test_a_full_disk_gives_no_token_and_charges_nothing(tmp_path: Path, params: PrivacyParameters) -> None:
    path = _closed_ledger(tmp_path, params)
    ledger = Ledger.open(path)
    ledger._store._connection.execute("PRAGMA max_page_count=1")  # SQLite's own way to say that the disk is full
    quiet, tokens = replace(params, noise_multiplier=50.0), []

    def reserve_until_refused() -> None:
        for number in range(4, 60):
            tokens.append(ledger.reserve("run", number, quiet, POLICY))

    with pytest.raises(LedgerWriteFailed, match="full"):
        reserve_until_refused()
    with pytest.raises(LedgerError, match="open it again"):
        ledger.reserve("other", 1, params, POLICY)
    ledger.close()
    with Ledger.open(path) as again:
        assert again.spent().rounds == 3 + len(tokens)


def test_a_marker_that_cannot_be_written_gives_no_token_although_the_round_is_charged(
    ledger: Ledger, params: PrivacyParameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(marker: Marker, path: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Marker, "write", full)
        with pytest.raises(LedgerWriteFailed, match="No space left"):
            ledger.reserve("run", 1, params, POLICY)
    ledger.close()
    with Ledger.open(ledger.path) as again:
        assert again.spent().rounds == 1
        with pytest.raises(AlreadyReleased):
            again.reserve("run", 1, params, POLICY)


def test_a_change_behind_the_back_of_an_open_ledger_is_noticed(ledger: Ledger, params: PrivacyParameters) -> None:
    _charge(ledger, params, range(1, 3))
    _rewrite(ledger.path, "DELETE FROM entries WHERE seq = 2")
    with pytest.raises(LedgerCorrupt, match="somebody else"):
        ledger.reserve("run", 3, params, POLICY)


def test_private_files_are_readable_by_their_owner_alone(ledger: Ledger, params: PrivacyParameters) -> None:
    _charge(ledger, params, range(1, 2))
    files = list(ledger.path.parent.iterdir())
    assert {file.name for file in files} >= {"ledger.db", "ledger.db.created", "ledger.db.lock", "ledger.db-wal"}
    assert all(file.stat().st_mode & 0o077 == 0 for file in files)


def test_a_store_never_replaces_a_ledger_that_appears_during_creation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ledger: Ledger
) -> None:
    path = tmp_path / "raced.db"
    monkeypatch.setattr("privacy.storage._exists", lambda path: False)
    path.write_bytes(b"somebody else's")
    with pytest.raises(LedgerExists):
        LedgerStore.create(path, ledger.entries()[0])
    assert path.read_bytes() == b"somebody else's"


def test_a_head_recorded_elsewhere_is_asked_for_while_the_ledger_is_open(
    ledger: Ledger, params: PrivacyParameters
) -> None:
    before = ledger.head
    _charge(ledger, params, range(1, 2))
    ledger.require_head(before)
    ledger.require_head(ledger.head)
    with pytest.raises(LedgerRolledBack, match="recorded earlier"):
        ledger.require_head(bytes(32))


@pytest.mark.parametrize("attempt", [0, -1])
def test_attempts_count_from_one(ledger: Ledger, attempt: int) -> None:
    with pytest.raises(ValueError, match="attempts count from 1"):
        ledger.mark_attempt("run", 1, attempt)


def test_threads_that_share_a_ledger_decide_one_after_the_other(
    ledger: Ledger, params: PrivacyParameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.epsilon_after(params)
    inside, most = 0, 0
    check = Ledger.check_affordable

    def slow_check(self: Ledger, params: PrivacyParameters) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.02)
        check(self, params)
        inside -= 1

    monkeypatch.setattr(Ledger, "check_affordable", slow_check)
    with ThreadPoolExecutor(4) as pool:
        tokens = list(pool.map(lambda number: ledger.reserve("run", number, params, POLICY), range(1, 5)))
    assert most == 1
    assert len({token.entry_hash for token in tokens}) == ledger.spent().rounds == 4


def test_a_fork_can_neither_charge_nor_use_a_token_nor_close_the_ledger(
    ledger: Ledger, params: PrivacyParameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    (token,) = _charge(ledger, params, range(1, 2))
    with monkeypatch.context() as forked:
        forked.setattr("os.getpid", lambda: -1)
        with pytest.raises(LedgerError, match="not to a fork"):
            ledger.reserve("run", 2, params, POLICY)
        with pytest.raises(TokenSpent, match="belongs to the process"):
            token.consume()
        ledger.close()
        with pytest.raises(LedgerLocked):
            Ledger.open(ledger.path)
    token.consume()
