"""How much memory of a device this process may still use, as the system says it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

GIB = 2**30

CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")


@dataclass(frozen=True)
class Room:
    """Memory of a device, in bytes.

    Args:
        used: by this process.
        free: what it may use besides; None where nobody knows.
    """

    used: int
    free: int | None


def room_on(device: torch.device, *, limit_gb: float = 0.0, sharers: int = 1) -> Room:
    """Return what this process uses of a device's memory and what it may use besides.

    Args:
        device: where.
        limit_gb: most that this process may use there altogether, in 2^30 bytes; 0 sets no limit.
        sharers: processes of this site that use the same processor.
    """
    free, used = _free_and_used(device)
    if free is not None and device.type == "cpu":
        free //= sharers
    bounds = [] if free is None else [free]
    if limit_gb:
        bounds.append(max(0, int(limit_gb * GIB) - used))
    return Room(used, min(bounds, default=None))


def _free_and_used(device: torch.device) -> tuple[int | None, int]:
    """Bytes that are free on a device, and bytes that this process has there."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0], torch.cuda.memory_allocated(device)
    if device.type == "mps":
        used = torch.mps.driver_allocated_memory()
        return torch.mps.recommended_max_memory() - used, used
    free = [number for number in (_available(PROC), _cgroup_headroom(PROC, CGROUPS)) if number is not None]
    return min(free, default=None), _resident(PROC)


def _available(proc: Path) -> int | None:
    """What Linux would give without swapping."""
    try:
        lines = (proc / "meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _resident(proc: Path) -> int:
    try:
        return int((proc / "self" / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _cgroup_headroom(proc: Path, cgroups: Path) -> int | None:
    """What the limits of this process's control groups leave, of both versions; None where there is no limit."""
    try:
        own = [line.split(":", 2) for line in (proc / "self" / "cgroup").read_text().splitlines()]
    except OSError:
        return None
    found = []
    for _, controllers, path in own:
        base = cgroups / "memory" if "memory" in controllers.split(",") else cgroups if not controllers else None
        if base is None:
            continue
        folder = base / path.lstrip("/")
        # A group is bound by those above it; in a container the path may not exist and its root is the group itself.
        for group in (folder, *folder.parents):
            if group.is_relative_to(base) and (headroom := _headroom(group)) is not None:
                found.append(headroom)
    return min(found, default=None)


def _headroom(group: Path) -> int | None:
    for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        try:
            stated, used = (group / limit).read_text().strip(), int((group / usage).read_text())
            statistics = dict(line.split(maxsplit=1) for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if not stated.isdecimal():
            return None  # "max"
        reclaimable = int(statistics.get("total_inactive_file", statistics.get("inactive_file", 0)))
        return max(0, int(stated) - used + reclaimable)
    return None
