"""What the operating system or SQLite refused to do with the files of a ledger, and what a person can do about it."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from privacy.errors import LedgerError

DiskError = OSError | sqlite3.Error

_NO_ACCESS = "run as the user who owns {folder}, or let that user enter it and read and write every file of the ledger"
_READ_ONLY = "mount the disk of {folder} for writing; a ledger that is only shown needs that too"
_FULL = "free space on the disk of {folder}, or raise the limit on it, and start again; nothing was sent"
_NOT_A_FOLDER = "a file lies where {folder}, or a folder above it, should be: correct the path of the ledger"
_NOT_A_FILE = "a folder lies where a file of the ledger should be: correct the path of the ledger"
_WRONG_PATH = "correct the path of the ledger"
_BAD_DISK = (
    "look at the health, the free space and the quota of the disk of {folder}; from a failing one copy the ledger, its "
    "marker and its -wal file together"
)
_NO_LOCKS = "keep the ledger on a local disk: the one of {folder} cannot lock files"
_ANYTHING = "look at {folder}: its disk, its owner and its permissions"

_BY_ERRNO = {
    errno.EACCES: _NO_ACCESS,
    errno.EPERM: _NO_ACCESS,
    errno.EROFS: _READ_ONLY,
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.ENOTDIR: _NOT_A_FOLDER,
    errno.EISDIR: _NOT_A_FILE,
    errno.ENOENT: _WRONG_PATH,
    errno.ELOOP: _WRONG_PATH,
    errno.ENAMETOOLONG: _WRONG_PATH,
    errno.EIO: _BAD_DISK,
    errno.ENOLCK: _NO_LOCKS,
    errno.EOPNOTSUPP: _NO_LOCKS,
}
_BY_SQLITE_CODE = {
    sqlite3.SQLITE_PERM: _NO_ACCESS,
    sqlite3.SQLITE_CANTOPEN: _NO_ACCESS,
    sqlite3.SQLITE_READONLY: f"{_NO_ACCESS}; if the disk is mounted read-only, {_READ_ONLY}",
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_IOERR: _BAD_DISK,
}
"""By primary result code."""


def primary_code(error: sqlite3.Error) -> int | None:
    """SQLite's primary result code; None where the error is not SQLite's own."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else int(code) & 0xFF


def is_refusal(error: sqlite3.Error) -> bool:
    """Whether the disk refused, so that the error says nothing of what the file holds."""
    return primary_code(error) in _BY_SQLITE_CODE


def remedy(error: DiskError, path: Path) -> str:
    """What to do about an error.

    Args:
        error: as it was raised.
        path: the ledger.
    """
    if isinstance(error, sqlite3.Error):
        text = _BY_SQLITE_CODE.get(primary_code(error) or 0, _ANYTHING)
    else:
        text = _BY_ERRNO.get(error.errno or 0, _ANYTHING)
    return text.format(folder=path.parent)


def refused(kind: type[LedgerError], what: str, error: DiskError, path: Path) -> LedgerError:
    """One error in words.

    Args:
        kind: of the error to make.
        what: what could not be done.
        error: why.
        path: the ledger.
    """
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return kind(f"{what}: {reason}", remedy=remedy(error, path))


@contextlib.contextmanager
def in_words(kind: type[LedgerError], what: str, path: Path) -> Iterator[None]:
    """Raise :func:`refused` in the place of whatever the operating system or SQLite raises inside the block."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise refused(kind, what, error, path) from error
