"""The client as one of several processes, writing down which files it opens; for tests.

Usage: python -m tests.e2e.watched_client FOLDER [--other-data PATH] <arguments of fedmvp-client>
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from fedmvp.cli.client import main

WATCHED = {"open", "sqlite3.connect"}


def watch(log: Path) -> None:
    """Append every path that this process opens to a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in WATCHED and isinstance(arguments[0], str | bytes | os.PathLike):
            os.write(descriptor, os.fsencode(arguments[0]) + b"\n")

    sys.addaudithook(hook)


if __name__ == "__main__":
    rank = os.environ["RANK"]
    folder = Path(sys.argv.pop(1))
    if sys.argv[1] == "--other-data":
        if rank != "0":
            os.environ["FEDMVP_DATA_PATH"] = sys.argv[2]
        del sys.argv[1:3]
    watch(folder / f"opened-{rank}")
    main()
