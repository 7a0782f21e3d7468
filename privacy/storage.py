"""The files of a ledger: an SQLite database, a lock, and a marker that makes loss and roll-back visible.

Responsible for durability and for nothing else: what the entries mean is not known here. For a ledger at ``P`` the
files are ``P`` (with SQLite's ``P-wal`` and ``P-shm`` while it is open), ``P.lock`` and ``P.created``. The database is
written before the marker, so a crash can leave the marker behind the chain but never ahead of it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import sqlite3
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from privacy.chain import LedgerEntry, encode_body, parse
from privacy.disk import in_words, is_refusal, primary_code, refused
from privacy.errors import (
    LedgerCorrupt,
    LedgerError,
    LedgerExists,
    LedgerLocked,
    LedgerMissing,
    LedgerUnreachable,
    LedgerVersionUnknown,
    LedgerWriteFailed,
)

FORMAT_VERSION = 1
"""Stored as SQLite's user_version and in the marker."""

APPLICATION_ID = 0x464D5650
"""SQLite application_id of a ledger ("FMVP")."""

_SCHEMA = """
CREATE TABLE entries (
    seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, body BLOB NOT NULL,
    previous BLOB NOT NULL, hash BLOB NOT NULL UNIQUE, release_key TEXT UNIQUE
) STRICT;
CREATE TRIGGER entries_are_never_changed BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER entries_are_never_removed BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'append only'); END;
"""


@dataclass(frozen=True, slots=True)
class Marker:
    """What the marker file remembers: where the chain had got to when it was last written."""

    seq: int
    head: bytes

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The marker of the ledger at ``path``, or None if there is no file.

        Raises:
            LedgerCorrupt: the file is not a marker.
            LedgerVersionUnknown: the marker is of another format.
            LedgerUnreachable: it cannot be read.
        """
        try:
            fields = json.loads(marker_path(path).read_bytes())
            version, marker = int(fields["version"]), cls(int(fields["seq"]), bytes.fromhex(fields["head"]))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise refused(LedgerUnreachable, f"{marker_path(path)} cannot be read", error, path) from error
        except (ValueError, KeyError, TypeError) as error:
            raise LedgerCorrupt(f"{marker_path(path)} is damaged: {error}") from error
        if version != FORMAT_VERSION:
            raise LedgerVersionUnknown(f"{marker_path(path)} has format {version}; this program knows {FORMAT_VERSION}")
        return marker

    def write(self, path: Path) -> None:
        """Replace the marker durably."""
        target = marker_path(path)
        temporary = target.with_name(target.name + ".tmp")
        fields = {"version": FORMAT_VERSION, "seq": self.seq, "head": self.head.hex()}
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(json.dumps(fields).encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
        _sync_folder(target.parent)


class LedgerStore:
    """An open ledger database; appends are one fsynced transaction each."""

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: int | None) -> None:
        self.path = path
        self._connection = connection
        self._lock = lock

    @classmethod
    def create(cls, path: Path, first: LedgerEntry) -> None:
        """Write a new ledger holding ``first``; all of it appears or nothing.

        Raises:
            LedgerExists: a ledger or a marker is already there.
            LedgerWriteFailed: the disk refused.
        """
        with in_words(LedgerWriteFailed, f"the ledger {path} could not be created", path):
            if _exists(path) or _exists(marker_path(path)):
                raise LedgerExists(
                    f"there is already a ledger, or the mark of one, at {path}; a dataset keeps one ledger for life"
                )
            _make_folder(path.parent)
            cls._put_in_place(path, first)

    @classmethod
    def _put_in_place(cls, path: Path, first: LedgerEntry) -> None:
        """Write the whole ledger under another name, then give it its own."""
        draft = path.with_name(f"{path.name}.draft-{secrets.token_hex(6)}")
        os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        try:
            with contextlib.closing(sqlite3.connect(draft, isolation_level=None)) as connection:
                connection.execute("PRAGMA synchronous=FULL")
                connection.executescript(
                    f"PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={FORMAT_VERSION}; {_SCHEMA}"
                )
                _insert(connection, first)
            try:
                os.link(draft, path)  # unlike a rename it cannot replace a ledger that appeared meanwhile
            except FileExistsError as error:
                raise LedgerExists(f"there is already a ledger at {path}") from error
            _sync_folder(path.parent)
            Marker(first.seq, first.hash).write(path)
        finally:
            with contextlib.suppress(OSError):  # a draft left behind is no ledger, and the first error is the news
                draft.unlink()

    @classmethod
    def open(cls, path: Path, *, read_only: bool) -> Self:
        """Open an existing ledger; the writer holds the lock until :meth:`close`.

        Raises:
            LedgerMissing: no file. LedgerLocked: another holder. LedgerUnreachable: the disk refuses.
            LedgerVersionUnknown, LedgerCorrupt: as named.
        """
        with in_words(LedgerUnreachable, f"the ledger {path} cannot be reached", path):
            if not _exists(path):
                raise LedgerMissing(_missing(path))
        lock = None if read_only else _acquire_lock(path)
        try:
            connection = _connect(path, read_only=read_only)
        except BaseException:
            _release_lock(lock)
            raise
        return cls(path, connection, lock)

    def read(self) -> tuple[LedgerEntry, ...]:
        """Every entry in order, each checked against its own hash.

        Raises:
            LedgerCorrupt: the file is damaged.
        """
        with _reading(self.path):
            (state,) = self._connection.execute("PRAGMA integrity_check(1)").fetchone()
            if state != "ok":
                raise LedgerCorrupt(f"{self.path} is damaged: {state}")
            query = "SELECT seq, kind, body, previous, hash, release_key FROM entries ORDER BY seq"
            rows = self._connection.execute(query).fetchall()
            entries = tuple(parse(*row[:5]) for row in rows)
        if any(entry.release_key != row[5] for entry, row in zip(entries, rows, strict=True)):
            raise LedgerCorrupt(f"{self.path}: a release mark does not match its charge")
        return entries

    def append(self, entry: LedgerEntry) -> None:
        """Make ``entry`` durable: when this returns it survives a power cut.

        Raises:
            LedgerWriteFailed: it may or may not have been stored; the caller must not go on.
        """
        with in_words(LedgerWriteFailed, f"the ledger {self.path} could not be written", self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                tail = self._connection.execute("SELECT hash FROM entries ORDER BY seq DESC LIMIT 1").fetchone()
                if tail is None or tail[0] != entry.previous:
                    raise LedgerCorrupt(f"{self.path} was changed by somebody else while it was open")
                _insert(self._connection, entry)
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            Marker(entry.seq, entry.hash).write(self.path)

    def close(self) -> None:
        """Release the lock and the file; harmless when repeated."""
        self._connection.close()
        _release_lock(self._lock)
        self._lock = None


def marker_path(path: Path) -> Path:
    """Where the marker of the ledger at ``path`` lies."""
    return path.with_name(path.name + ".created")


def _exists(path: Path) -> bool:
    """Whether there is a plain file. OSError where that cannot be told: nothing may be taken for missing then."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(mode):
        raise IsADirectoryError(errno.EISDIR, f"{path} is not a plain file")
    return True


def _missing(path: Path) -> str:
    if _exists(marker_path(path)):
        return (
            f"the ledger {path} is gone although {marker_path(path).name} says it was created: put it back; without it "
            "what was spent is unknown and nothing may be released"
        )
    return f"there is no ledger at {path}: create it once, before the first run on this dataset"


def _connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    with _reading(path):
        mode = "ro" if read_only else "rw"
        connection = sqlite3.connect(
            f"{path.resolve().as_uri()}?mode={mode}", uri=True, isolation_level=None, timeout=2, check_same_thread=False
        )
        try:
            application, version = (
                int(connection.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("application_id", "user_version")
            )
            if application != APPLICATION_ID:
                raise LedgerCorrupt(f"{path} is not a privacy ledger")
            if version != FORMAT_VERSION:
                raise LedgerVersionUnknown(f"{path} has format {version}; this program knows {FORMAT_VERSION}")
            if not read_only:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=FULL")
                connection.execute("PRAGMA fullfsync=ON")
        except BaseException:
            connection.close()
            raise
        return connection


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except LedgerError:
        raise
    except sqlite3.Error as error:
        if primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise LedgerLocked(f"{path} is in use by another process") from error
        if is_refusal(error):
            raise refused(LedgerUnreachable, f"the ledger {path} cannot be read", error, path) from error
        raise LedgerCorrupt(f"{path} cannot be read as a ledger: {error}") from error
    except (ValueError, TypeError, OverflowError) as error:  # damaged text, types or sizes
        raise LedgerCorrupt(f"{path} cannot be read as a ledger: {error}") from error


def _insert(connection: sqlite3.Connection, entry: LedgerEntry) -> None:
    row = (entry.seq, entry.kind.value, encode_body(entry.body), entry.previous, entry.hash, entry.release_key)
    connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)", row)


def _acquire_lock(path: Path) -> int:
    """An flock on a file of its own: closing a POSIX record lock's file anywhere in the process would drop it."""
    with in_words(LedgerUnreachable, f"the lock of {path} could not be taken", path):
        descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise LedgerLocked(f"{path} is in use by another process; only one client may run on a dataset") from error
        except OSError:
            os.close(descriptor)
            raise
    return descriptor


def _release_lock(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    """Make a folder with those above it, durably: a ledger is lost with the name of any of them."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for made in reversed(missing):
        _sync_folder(made.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
