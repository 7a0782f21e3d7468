"""Whatever a disk refuses is one error that names the file, the reason and the remedy, and no token is given out."""

import errno
import fcntl
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from privacy import Ledger, LedgerEntry, LedgerError, LedgerUnreachable, LedgerWriteFailed, storage
from privacy.disk import primary_code, remedy
from privacy.storage import marker_path
from tests.privacy.conftest import PARAMS, POLICY

_AS_SOMEBODY_ELSE = """
import os, sys
from pathlib import Path
from privacy import Ledger, LedgerError
from tests.crash.spend import PARAMS
path, when = Path(sys.argv[1]), sys.argv[2]
ledger = None
if when == "while it is open":
    ledger = Ledger.open(path)
    ledger.epsilon_after(PARAMS)  # imports what it needs while the user may read it
path.parent.chmod(0o555 if ledger else 0)
if os.geteuid() == 0:
    os.seteuid(65534)  # nothing refuses root
attempts = {
    "create": lambda: Ledger.create(path.with_name("new.db"), dataset_id="d", delta=1e-5, epsilon_max=8.0),
    "create deeper": lambda: Ledger.create(path.parent / "a" / "b" / "l.db", dataset_id="d", delta=1e-5, epsilon_max=8),
    "open": lambda: Ledger.open(path),
    "look": lambda: Ledger.open(path, read_only=True),
}
if ledger is not None:
    attempts = {"reserve": lambda: ledger.reserve("run", 1, PARAMS, bytes(32)).consume()}
for name, attempt in attempts.items():
    try:
        attempt()
        print(name, "DONE")
    except LedgerError as error:
        print(name, type(error).__name__, error, sep=" | ")
"""


def _as_somebody_else(path: Path, when: str) -> list[list[str]]:
    command = [sys.executable, "-W", "ignore", "-c", _AS_SOMEBODY_ELSE, str(path), when]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        path.parent.chmod(0o700)
    assert run.stderr == ""
    return [line.split(" | ") for line in run.stdout.splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "l.db"
    Ledger.create(path, dataset_id="d", delta=1e-5, epsilon_max=8.0).close()
    return path


def test_a_folder_that_cannot_be_entered_is_one_error_with_its_remedy(path: Path) -> None:
    answers = _as_somebody_else(path, "before")
    assert [answer[:2] for answer in answers] == [
        ["create", "LedgerWriteFailed"],
        ["create deeper", "LedgerWriteFailed"],
        ["open", "LedgerUnreachable"],
        ["look", "LedgerUnreachable"],
    ]
    for _, _, text in answers:
        assert text.startswith(f"the ledger {path.parent}")
        assert "Permission denied; run as the user who owns" in text
    assert sorted(file.name for file in path.parent.iterdir()) == ["l.db", "l.db.created", "l.db.lock"]


def test_a_folder_that_cannot_be_written_gives_no_token(path: Path) -> None:
    ((name, kind, text),) = _as_somebody_else(path, "while it is open")
    assert (name, kind) == ("reserve", "LedgerWriteFailed")
    assert f"the ledger {path} could not be written" in text
    with Ledger.open(path) as again:
        assert again.spent().rounds <= 1  # charged or not, nothing was released


def _create(path: Path) -> None:
    Ledger.create(path.with_name("new.db"), dataset_id="d", delta=1e-5, epsilon_max=8.0).close()


def _open(path: Path) -> None:
    Ledger.open(path).close()


def _look(path: Path) -> None:
    Ledger.open(path, read_only=True).close()


_OWNER = "run as the user who owns"
_SPACE = "free space on the disk"


@pytest.mark.parametrize(
    ("work", "call", "number", "kind", "advice"),
    [
        (_create, "os.stat", errno.EACCES, LedgerWriteFailed, _OWNER),
        (_create, "os.stat", errno.ENOTDIR, LedgerWriteFailed, "a file lies where"),
        (_create, "pathlib.Path.mkdir", errno.EACCES, LedgerWriteFailed, _OWNER),
        (_create, "pathlib.Path.mkdir", errno.EROFS, LedgerWriteFailed, "mount the disk of"),
        (_create, "os.open", errno.EPERM, LedgerWriteFailed, _OWNER),
        (_create, "os.open", errno.EROFS, LedgerWriteFailed, "mount the disk of"),
        (_create, "os.open", errno.EDQUOT, LedgerWriteFailed, _SPACE),
        (_create, "os.link", errno.EPERM, LedgerWriteFailed, _OWNER),
        (_create, "os.fsync", errno.ENOSPC, LedgerWriteFailed, _SPACE),
        (_create, "os.fsync", errno.EIO, LedgerWriteFailed, "look at the health"),
        (_open, "os.stat", errno.EACCES, LedgerUnreachable, _OWNER),
        (_open, "os.stat", errno.ELOOP, LedgerUnreachable, "correct the path"),
        (_open, "os.open", errno.EACCES, LedgerUnreachable, _OWNER),
        (_open, "os.open", errno.EROFS, LedgerUnreachable, "mount the disk of"),
        (_open, "os.open", errno.ENOSPC, LedgerUnreachable, _SPACE),
        (_open, "fcntl.flock", errno.ENOLCK, LedgerUnreachable, "keep the ledger on a local disk"),
        (_open, "pathlib.Path.read_bytes", errno.EACCES, LedgerUnreachable, _OWNER),
        (_look, "os.stat", errno.EACCES, LedgerUnreachable, _OWNER),
        (_look, "pathlib.Path.read_bytes", errno.EIO, LedgerUnreachable, "look at the health"),
        (_look, "os.stat", errno.EMFILE, LedgerUnreachable, "its disk, its owner and its permissions"),
    ],
)
def test_a_refusal_of_the_operating_system_is_one_error_with_its_remedy(
    path: Path, monkeypatch: pytest.MonkeyPatch, *, work: Callable[[Path], None], call: str, number: int,
    kind: type[LedgerError], advice: str,
) -> None:  # fmt: skip
    def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    before = sorted(path.parent.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(call, refuse)
        with pytest.raises(kind) as caught:
            work(path)
    assert os.strerror(number) in caught.value.what
    assert str(path.parent) in caught.value.what
    assert advice in caught.value.remedy
    assert str(caught.value) == f"{caught.value.what}; {caught.value.remedy}"
    if work is _create and call != "os.fsync":
        assert sorted(path.parent.iterdir()) == before
    if call == "os.fsync":  # by then a new ledger is in its place; opening it completes it
        _open(path.with_name("new.db"))
    _open(path)


@pytest.mark.parametrize("call", ["os.open", "os.fsync", "pathlib.Path.replace"])
@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EACCES, _OWNER),
        (errno.ENOSPC, _SPACE),
        (errno.EROFS, "mount the disk of"),
        (errno.ENOTDIR, "a file lies"),
    ],
)
def test_a_disk_that_refuses_the_marker_of_a_charge_gives_no_token(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, advice: str
) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    ledger = Ledger.open(path)
    ledger.epsilon_after(PARAMS)
    with monkeypatch.context() as patch:
        patch.setattr(call, refuse)
        with pytest.raises(LedgerWriteFailed, match="could not be written") as caught:
            ledger.reserve("run", 1, PARAMS, POLICY)
    assert advice in caught.value.remedy
    with pytest.raises(LedgerError, match="close and open it again"):
        ledger.reserve("run", 2, PARAMS, POLICY)
    ledger.close()
    with Ledger.open(path) as again:
        assert again.spent().rounds == 1  # the charge was on the disk already: it counts, and was never released


@pytest.mark.parametrize(
    ("statement", "reason", "advice"),
    [
        ("PRAGMA max_page_count=1", "full", _SPACE),
        ("PRAGMA query_only=ON", "readonly", "if the disk is mounted read-only"),
    ],
)
def test_a_database_that_is_full_or_read_only_gives_no_token_and_no_charge(
    path: Path, statement: str, reason: str, advice: str
) -> None:
    released = []
    ledger = Ledger.open(path)
    ledger._store._connection.execute(statement)

    def release_many() -> None:
        for number in range(1, 40):  # a page takes several entries
            released.append(ledger.reserve("run", number, PARAMS, POLICY))

    with pytest.raises(LedgerWriteFailed, match=reason) as caught:
        release_many()
    assert advice in caught.value.remedy
    ledger.close()
    with Ledger.open(path) as again:
        assert again.spent().rounds == len(released)


def _sqlite_error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("a reason")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (sqlite3.SQLITE_CANTOPEN, _OWNER),
        (sqlite3.SQLITE_PERM, _OWNER),
        (sqlite3.SQLITE_READONLY_DIRECTORY, "a ledger that is only shown needs that too"),
        (sqlite3.SQLITE_IOERR_READ, "look at the health"),
    ],
)
@pytest.mark.parametrize("work", [_open, _look])
def test_a_database_that_cannot_be_read_is_not_called_damaged(
    path: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[[Path], None], code: int, advice: str
) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise _sqlite_error(code)

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", refuse)
        with pytest.raises(LedgerUnreachable, match="cannot be read: a reason") as caught:
            work(path)
    assert advice in caught.value.remedy
    _open(path)


def test_an_error_that_is_not_sqlites_own_has_no_code_and_the_common_remedy(path: Path) -> None:
    error = sqlite3.ProgrammingError("closed")
    assert primary_code(error) is None
    assert "its disk, its owner and its permissions" in remedy(error, path)


def test_a_folder_in_the_place_of_the_ledger_or_of_its_marker_is_one_error(path: Path) -> None:
    for taken in (path.with_name("new.db"), marker_path(path.with_name("new.db"))):
        taken.mkdir()
        with pytest.raises(LedgerWriteFailed, match="is not a plain file; a folder lies where"):
            _create(path)
        taken.rmdir()
    shutil.move(path, path.with_name("elsewhere"))
    path.mkdir()
    with pytest.raises(LedgerUnreachable, match="is not a plain file; a folder lies where"):
        _open(path)


def test_a_file_in_the_place_of_a_folder_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "l.db", tmp_path / "file" / "deeper" / "l.db"):
        with pytest.raises(LedgerWriteFailed, match="Not a directory; a file lies where"):
            _create(path)
        with pytest.raises(LedgerUnreachable, match="Not a directory; a file lies where"):
            _open(path)


def test_a_lock_that_could_not_be_taken_is_given_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.ENOLCK, "No locks available")

    before = count()
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(LedgerUnreachable):
        _open(path)
    assert count() == before


def test_a_ledger_that_cannot_be_created_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("privacy.storage._insert", full)
    with pytest.raises(LedgerWriteFailed, match=r"could not be created: No space left on device; free space"):
        _create(tmp_path / "l.db")
    assert list(tmp_path.iterdir()) == []


def test_a_draft_that_cannot_be_removed_does_not_hide_the_first_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    def refuse(*_: object, **__: object) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("privacy.storage._insert", full)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(LedgerWriteFailed, match="No space left"):
        _create(tmp_path / "l.db")
    monkeypatch.undo()
    _create(tmp_path / "l.db")  # what it left behind is in nobody's way


# What is told to the disk, and in which order


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every file and folder that was forced to the disk, and every name that was given, in order."""
    seen: list[str] = []
    fsync, link, replace_ = os.fsync, os.link, Path.replace

    def record_fsync(descriptor: int) -> None:
        seen.append(f"force {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def record_link(source: Path, target: Path) -> None:
        seen.append(f"name {target.name}")
        link(source, target)

    def record_replace(source: Path, target: Path) -> Path:
        seen.append(f"name {target.name}")
        return replace_(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "link", record_link)
    monkeypatch.setattr(Path, "replace", record_replace)
    return seen


MARKED = ["force l.db.created.tmp", "name l.db.created", "force folder"]
"""A marker is whole on the disk before it has its name, and its name is on the disk before anything goes on."""


def test_a_new_ledger_is_forced_to_the_disk_before_its_marker_says_that_it_exists(
    tmp_path: Path, told: list[str]
) -> None:
    Ledger.create(tmp_path / "above" / "folder" / "l.db", dataset_id="d", delta=1e-5, epsilon_max=8.0).close()
    assert told == [f"force {tmp_path.name}", "force above", "name l.db", "force folder", *MARKED]


def test_a_charge_is_committed_and_its_marker_forced_before_there_is_a_token(path: Path, told: list[str]) -> None:
    with Ledger.open(path) as ledger:
        connection = ledger._store._connection
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # full: a commit waits for the disk
        assert connection.execute("PRAGMA fullfsync").fetchone() == (1,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        told.clear()
        connection.set_trace_callback(lambda statement: told.append(" ".join(statement.split()[:2])))
        ledger.reserve("run", 1, PARAMS, POLICY)
    assert told == ["BEGIN IMMEDIATE", "SELECT hash", "INSERT INTO", "COMMIT", *MARKED]


def test_the_first_entry_of_a_ledger_waits_for_the_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int]] = []
    insert = storage._insert

    def record(connection: sqlite3.Connection, entry: LedgerEntry) -> None:
        seen.append(connection.execute("PRAGMA synchronous").fetchone())
        insert(connection, entry)

    monkeypatch.setattr(storage, "_insert", record)
    Ledger.create(tmp_path / "l.db", dataset_id="d", delta=1e-5, epsilon_max=8.0).close()
    assert seen == [(2,)]
