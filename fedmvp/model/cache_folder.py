"""The files of a bounded cache folder that several processes share: what is in use, what goes first, what is half done.

A file is written beside its place under an exclusive lock and renamed; whoever reads one holds a shared lock. Room is
made by removing the files that were used longest ago, never one that is locked. Locks end with their process, so what a
killed one left half written is found and removed. What the files hold is not known here.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SUFFIX = ".sealed"
_PARTIAL = ".sealing"
_LOCK_FILE = ".lock"
_NO_PREALLOCATION = {errno.EINVAL, errno.EOPNOTSUPP}


@dataclass(frozen=True)
class OpenFile:
    """A file that this process holds.

    Args:
        path: where it is, or will be once published.
        descriptor: open and locked.
        size: room set aside for a new file, bytes.
    """

    path: Path
    descriptor: int
    size: int

    def close(self) -> None:
        """Give the file up."""
        os.close(self.descriptor)

    def abandon(self) -> None:
        """Give a file up that is not published, and remove it."""
        with contextlib.suppress(OSError):
            _partial_of(self.path).unlink(missing_ok=True)
        os.close(self.descriptor)


class CacheFolder:
    """A folder and how much it may hold.

    Args:
        path: made when first written to, readable by its owner alone.
        max_bytes: most bytes of all cached files together.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes

    def files(self, prefix: str) -> list[Path]:
        """Return the finished files whose names begin like this."""
        return sorted(self.path.glob(f"{prefix}*{SUFFIX}")) if self.path.is_dir() else []

    def open(self, path: Path) -> OpenFile | None:
        """Open a finished file for reading and mark it as used; None where it is gone or about to be."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        with contextlib.suppress(OSError):  # a folder that cannot be written: nothing is removed from it either
            os.utime(descriptor)
        return OpenFile(path, descriptor, os.fstat(descriptor).st_size)

    def create(self, stem: str, *, most: int, least: int) -> OpenFile | None:
        """Start a new file with room set aside; `publish` gives it its name.

        Args:
            stem: beginning of its name.
            most: bytes it would use.
            least: bytes below which it is of no use.

        Returns:
            The file; None where the limit of the folder leaves no room.

        Raises:
            OSError: the folder or the disk refuses.
        """
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._one_at_a_time():
            size = self._make_room(most)
            if size < least:
                return None
            path = self.path / f"{stem}{secrets.token_hex(6)}{SUFFIX}"
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            file = OpenFile(path, os.open(_partial_of(path), flags, 0o600), size)
            try:
                fcntl.flock(file.descriptor, fcntl.LOCK_EX)
                _set_aside(file.descriptor, size)
            except BaseException:
                file.abandon()
                raise
        return file

    def publish(self, file: OpenFile) -> None:
        """Give a file that is complete its name; from now on it is read.

        Raises:
            OSError: the folder refuses.
        """
        _partial_of(file.path).rename(file.path)
        fcntl.flock(file.descriptor, fcntl.LOCK_SH)

    def remove(self, path: Path) -> None:
        """Remove a file; whoever has it open goes on reading it."""
        with contextlib.suppress(OSError):  # it stays, and is refused again
            path.unlink(missing_ok=True)

    def remove_matching(self, pattern: str) -> None:
        """Remove every file whose name is of this form."""
        for path in self.path.glob(pattern):
            self.remove(path)

    def rename(self, path: Path, new: Path) -> None:
        """Give a finished file another name."""
        with contextlib.suppress(OSError):  # gone already, or in a folder that cannot be written
            path.rename(new)

    def clear(self) -> None:
        """Remove every file that nobody uses."""
        if self.path.is_dir():
            with contextlib.suppress(OSError), self._one_at_a_time():
                self._make_room(self.max_bytes + 1)

    def _make_room(self, needed: int) -> int:
        """Remove what was used longest ago until `needed` bytes fit; return how many of them do."""
        for abandoned in self.path.glob(f"*{_PARTIAL}"):
            _remove_unless_held(abandoned)
        found = []
        for path in (*self.path.glob(f"*{SUFFIX}"), *self.path.glob(f"*{_PARTIAL}")):
            try:
                state = path.stat()
            except OSError:
                continue
            found.append((state.st_mtime_ns, state.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total + needed <= self.max_bytes:
                break
            if path.suffix == SUFFIX and _remove_unless_held(path):
                total -= size
        return max(0, min(needed, self.max_bytes - total))

    @contextlib.contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """Keep two processes from giving the same room away; held for a moment only."""
        descriptor = os.open(self.path / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _partial_of(path: Path) -> Path:
    return path.with_suffix(_PARTIAL)


def _set_aside(descriptor: int, size: int) -> None:
    """Reserve space on the disk, so that a full one is noticed before anything is computed for it."""
    if not hasattr(os, "posix_fallocate"):  # macOS
        os.ftruncate(descriptor, size)
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as failure:
        if failure.errno not in _NO_PREALLOCATION:
            raise
        os.ftruncate(descriptor, size)


def _remove_unless_held(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
