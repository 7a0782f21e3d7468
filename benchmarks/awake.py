"""Wakes every core before a turn is timed.

While one side of a comparison runs, the cores of the other fall asleep, and a virtual machine may put its threads on
one core until there is load again. What is compared is the work, so both sides start on cores that are awake. Needs the
standard library only: the drivers of peers use it in environments of their own.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time

WAKE_SECONDS = 0.2
_CONTENT = bytes(2**20)  # hashing it lets the other threads of the interpreter run


def wake_cores(seconds: float = WAKE_SECONDS) -> None:
    """Keep all cores that this process may use busy for a moment."""
    until = time.perf_counter() + seconds

    def spin() -> None:
        while time.perf_counter() < until:
            hashlib.sha256(_CONTENT).digest()

    threads = [threading.Thread(target=spin) for _ in os.sched_getaffinity(0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
