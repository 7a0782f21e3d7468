"""Files written whole or not at all, and private keys that only their owner can read.

The rule is the journal's: write a sibling, flush it to the disk, then rename it over the name. A reader sees the old
file or the new one; a crash leaves at most a hidden sibling.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fedmvp.errors import ExitCode, UserError

PRIVATE_MODE = 0o600
PUBLIC_MODE = 0o644
MAX_KEY_FILE_BYTES = 16 << 10


def write_atomic(path: Path, content: bytes, *, mode: int = PUBLIC_MODE, replace: bool = True) -> None:
    """Write a file so that it holds all of ``content`` or is not there.

    Args:
        path: the destination; its folder is made when missing.
        content: the bytes.
        mode: permissions from the first moment on, whatever the umask.
        replace: whether an existing file may be replaced.

    Raises:
        UserError: the file exists and must not be replaced, or the disk refuses.
    """
    sibling = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(sibling, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                sibling.replace(path)
            else:
                path.hardlink_to(sibling)
        finally:
            sibling.unlink(missing_ok=True)
        sync_folder(path.parent)
    except FileExistsError:
        raise UserError(
            f"{path} exists already", remedy="choose another folder, or move that file away if it is not needed"
        ) from None
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror}", remedy="check the folder, its permissions and free space"
        ) from None


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` durable; of a file, its content."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def install_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """Replace a folder of public files as a whole: readers see all of the old ones or all of the new ones.

    Args:
        target: the folder; replaced if it exists.
        files: name to content.

    Raises:
        UserError: the disk refuses; the folder is then as it was.
    """
    staged = target.with_name(f".{target.name}.new-{secrets.token_hex(6)}")
    retired = target.with_name(f".{target.name}.old-{secrets.token_hex(6)}")
    try:
        for name, content in files.items():
            write_atomic(staged / name, content)
        if target.exists():
            target.rename(retired)
        staged.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        if retired.exists() and not target.exists():
            retired.rename(target)
        raise UserError(
            f"{target} cannot be installed: {error.strerror}",
            remedy="check the folder, its permissions and free space",
        ) from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    shutil.rmtree(retired, ignore_errors=True)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give a hidden folder to fill; its content appears in ``target`` when the block ends well, and never otherwise.

    Args:
        target: a folder that does not exist or is empty.

    Raises:
        UserError: the folder holds something, or the disk refuses.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(
            f"{target} exists and is not empty",
            remedy="choose a new folder; keys are never written over anything",
        )
    try:
        target.mkdir(parents=True, exist_ok=True)
        staged = target / f".new-{secrets.token_hex(6)}"
        staged.mkdir(mode=0o700)
    except OSError as error:
        raise UserError(
            f"{target} cannot be made: {error.strerror}", remedy="check the parent folder and its permissions"
        ) from None
    try:
        yield staged
        for item in sorted(staged.iterdir()):
            item.rename(target / item.name)
        sync_folder(target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Give a folder beside ``target`` to fill, and rename it to ``target`` when the block ends well.

    Whoever looks finds all files or no folder; after a crash a hidden sibling is left, and nothing under the name.

    Args:
        target: a folder that does not exist or is empty.

    Raises:
        UserError: the folder holds something, or the disk refuses.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not empty", remedy="choose a new folder; nothing is overwritten")
    staged = target.absolute().with_name(f".{target.absolute().name}.new-{secrets.token_hex(6)}")
    try:
        staged.mkdir(parents=True)
        yield staged
        for item in staged.iterdir():
            sync_folder(item)
        sync_folder(staged)
        staged.rename(target.absolute())
        sync_folder(staged.parent)
    except OSError as error:
        raise UserError(
            f"{target} cannot be written: {error.strerror}",
            remedy="choose a new folder; check its parent, the permissions and free space",
        ) from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def write_private(path: Path, content: bytes, *, replace: bool = False) -> None:
    """Write a private key: mode 0600 from its first byte on, and never over an existing key unless told."""
    write_atomic(path, content, mode=PRIVATE_MODE, replace=replace)


def read_private(path: Path, *, what: str) -> bytes:
    """Return a private key file's bytes, refusing one that others could have read.

    Args:
        path: the key file.
        what: what the key is, for the message ("signing key").

    Raises:
        UserError: missing, unreadable, not a plain file, or readable by group or others.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise UserError(
            f"{what} {path} does not exist",
            remedy="restore it from your backup; a lost key cannot be made again, only a new enrolment",
            exit_code=ExitCode.IDENTITY,
        ) from None
    except OSError as error:
        raise UserError(
            f"{what} {path} cannot be read: {error.strerror}",
            remedy="run as the user who owns the key",
            exit_code=ExitCode.IDENTITY,
        ) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UserError(
                f"{what} {path} is not a plain file", remedy="name the key file", exit_code=ExitCode.IDENTITY
            )
        if status.st_mode & 0o077:
            raise UserError(
                f"{what} {path} has mode {stat.S_IMODE(status.st_mode):04o}: others on this machine may have read it",
                remedy=f"chmod 600 {path}; if others had access to this machine, enrol with new keys instead",
                exit_code=ExitCode.IDENTITY,
            )
        return os.read(descriptor, MAX_KEY_FILE_BYTES)
    finally:
        os.close(descriptor)
