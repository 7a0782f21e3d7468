"""Sites of several processes for tests: forked from one that has torch loaded, so that each costs little."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from privacy.ranks import ComputingRank, LeadingRank, Ranks

PATIENCE_SECONDS = 60.0

Body = Callable[[Any, Path], Any]
"""What a process does with its rank and the test's folder; what it returns is handed back."""


@dataclass
class Ended:
    """How one process of a site ended."""

    code: int | None
    returned: Any = None
    error: BaseException | None = None
    trace: str = field(default="", repr=False)


def join_site(rank: int, size: int, folder: Path, timeout_seconds: float = 30.0) -> Ranks:
    """This process's place in a site, by gloo and a file."""
    side = LeadingRank if rank == 0 else ComputingRank
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    return side(
        rank,
        size,
        device=torch.device("cpu"),
        timeout_seconds=timeout_seconds,
        meeting_point=f"file://{folder / 'meeting'}",
    )


def _process(body: Body, rank: int, size: int, folder: Path, timeout_seconds: float) -> None:
    torch.set_num_threads(1)
    ended = Ended(0)
    try:
        ended.returned = body(join_site(rank, size, folder, timeout_seconds), folder)
    except BaseException as error:  # noqa: BLE001 - handed to the test
        ended.error, ended.trace = error, traceback.format_exc()
    torch.save(ended, folder / f"ended-{rank}")


def run_site(folder: Path, *bodies: Body, timeout_seconds: float = 30.0) -> list[Ended]:
    """Run one process for each body, the first of them leading, and return how they ended."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.privacy.site_cases"])
    folder.mkdir(exist_ok=True)
    children = [
        context.Process(target=_process, args=(body, rank, len(bodies), folder, timeout_seconds))
        for rank, body in enumerate(bodies)
    ]
    for child in children:
        child.start()
    outcomes = []
    for rank, child in enumerate(children):
        child.join(PATIENCE_SECONDS)
        if child.exitcode is None:
            child.kill()
            child.join()
            outcomes.append(Ended(None))
            continue
        path = folder / f"ended-{rank}"
        outcomes.append(torch.load(path, weights_only=False) if path.exists() else Ended(child.exitcode))
        child.close()
    return outcomes
