"""Threads for work that releases the interpreter's lock: independent slices of one vector, done before returning.

The sessions know nothing of it. Whether a call is split never changes its result.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import lru_cache

MIN_BYTES_PER_THREAD = 2**20  # below, waking a thread costs more than it saves
MAX_THREADS = 64  # started as they are needed


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_for(work_bytes: int, limit: int | None) -> int:
    """Return how many threads some work deserves.

    Args:
        work_bytes: bytes that will be generated or hashed.
        limit: most threads, at least 1; None for as many as there are cores.
    """
    return max(1, min(limit if limit is not None else usable_cores(), work_bytes // MIN_BYTES_PER_THREAD))


def over_slices(work: Callable[[int, int], None], count: int, threads: int) -> None:
    """Call ``work(start, stop)`` for consecutive slices of ``range(count)``, one in each thread.

    Args:
        work: called once for each slice; the slices do not overlap and cover everything.
        count: number of items.
        threads: number of slices, the last of which runs in this thread; with 1, the call is made in this thread.
    """
    if threads <= 1 or count <= 1:
        work(0, count)
        return
    step = -(-count // threads)
    *others, last = [(start, min(start + step, count)) for start in range(0, count, step)]
    started: list[Future[None]] = []
    try:
        for bounds in others:
            try:
                started.append(_pool(os.getpid()).submit(work, *bounds))
            except RuntimeError:  # the interpreter is ending and takes no more work: do it here
                work(*bounds)
        work(*last)
    finally:
        wait(started)
    for done in started:
        done.result()


@lru_cache(maxsize=1)
def _pool(_process: int) -> ThreadPoolExecutor:
    """The threads of this process, started when first needed; a forked child starts its own."""
    return ThreadPoolExecutor(max_workers=MAX_THREADS, thread_name_prefix="secure_agg")
