"""Sides measured in turns, and the peak memory of one side in a process of its own."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.steps import WAYS, Step
from benchmarks.workload import Trained, Workload

MEMORY_STEPS = 2  # the second has what the first left to the allocator


@dataclass(frozen=True)
class Times:
    """Seconds of each run of one side: of the wall clock, and of the processor."""

    wall: tuple[float, ...]
    processor: tuple[float, ...]

    def over(self, other: Times) -> dict[str, Any]:
        """Ratios of runs that were next to each other: median and spread; of the processor's time too."""
        walls = [ours / theirs for ours, theirs in zip(self.wall, other.wall, strict=True)]
        processors = [ours / theirs for ours, theirs in zip(self.processor, other.processor, strict=True)]
        return {
            "ratio": statistics.median(walls),
            "ratio_spread": [min(walls), max(walls)],
            "processor_ratio": statistics.median(processors),
        }

    @property
    def seconds(self) -> float:
        """The median of the wall clock."""
        return statistics.median(self.wall)


def in_turns(
    sides: Mapping[str, Callable[[], AbstractContextManager[Step]]], runs: int, device: str
) -> dict[str, Times]:
    """Run every side once to warm up and then ``runs`` times, one after the other, every second time backwards."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for run in range(runs + 1):
        for name in list(sides) if run % 2 else list(reversed(sides)):
            with sides[name]() as step:
                wall, processor = timed(step, device)
            if run:
                times[name].append((wall, processor))
    return {name: Times(*(tuple(column) for column in zip(*pairs, strict=True))) for name, pairs in times.items()}


def timed(step: Step, device: str) -> tuple[float, float]:
    """Wall and processor seconds of one step, to its end on the device."""
    synchronize(device)
    wall, processor = time.perf_counter(), time.process_time()
    step()
    synchronize(device)
    return time.perf_counter() - wall, time.process_time() - processor


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def peak_bytes(workload: Workload, way: str, threads: int) -> int:
    """The peak of one side's memory above what the model, its batch and torch need, measured in a fresh process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run_and_report, args=(sender, workload, way, threads))
    process.start()
    sender.close()
    try:
        return int(receiver.recv())
    except EOFError:
        raise SystemExit(f"the process that measures the memory of {way} died") from None
    finally:
        process.join()


def _run_and_report(sender: Connection, workload: Workload, way: str, threads: int) -> None:
    torch.set_num_threads(threads)
    sender.send(peak_of(workload.build(), way, workload.device))


def peak_of(trained: Trained, way: str, device: str) -> int:
    """The same in this process: of the device's memory, or of what is resident."""
    on_cuda = device.startswith("cuda")
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of what came before
        start = _resident("VmRSS")
    with WAYS[way](trained) as step:
        for _ in range(MEMORY_STEPS):
            step()
        return (torch.cuda.max_memory_allocated(device) if on_cuda else _resident("VmHWM")) - start


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])
