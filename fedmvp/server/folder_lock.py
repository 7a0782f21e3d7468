"""One server at a time on one state folder.

Two would announce the same round numbers, mix their lines in one audit log and overwrite each other's snapshots.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedmvp.errors import ExitCode, UserError

FILE_NAME = "server.lock"


@contextmanager
def lock_folder(state_dir: Path) -> Iterator[None]:
    """Keep other servers out of a state folder; the lock ends with the block, or with the process however it ends.

    Args:
        state_dir: the folder; made when missing. The lock file in it stays and means nothing by itself.

    Raises:
        UserError: another server holds the folder, or it cannot be told whether one does.
    """
    descriptor = None
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        # Not passed on to programs that are started from here, which could outlive this one.
        descriptor = os.open(state_dir / FILE_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if descriptor is not None:
            os.close(descriptor)
        raise _refusal(state_dir, error) from None
    try:
        yield
    finally:
        os.close(descriptor)


def _refusal(state_dir: Path, error: OSError) -> UserError:
    if isinstance(error, BlockingIOError):
        return UserError(
            f"the state folder {state_dir} is in use by another fedmvp-server",
            remedy="stop that server first; for another study name another [server] state_dir in server.toml",
            exit_code=ExitCode.CONFIG,
        )
    return UserError(
        f"the state folder {state_dir} cannot be locked: {error.strerror}",
        remedy="check that it is a folder which this user may write, with free space, on a disk that can lock files",
        exit_code=ExitCode.CONFIG,
    )
