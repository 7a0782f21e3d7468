"""How much memory may be used, as Linux, its control groups and the site's own limit say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedmvp.training import free_memory
from fedmvp.training.free_memory import GIB, Room, room_on

CPU = torch.device("cpu")
Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes files of an invented /proc and /sys/fs/cgroup, in which this process has 1,000 pages."""
    monkeypatch.setattr(free_memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(free_memory, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr("os.sysconf", lambda _name: 4096)

    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    write("proc/self/statm", "5000 1000 10 1 0 1 0\n")
    write("proc/self/cgroup", "0::/\n")
    write("proc/meminfo", f"MemTotal: 1 kB\nMemAvailable:   {8 * GIB // 1024} kB\n")
    return write


def group(write: Write, path: str, limit: int | str, used: int, *, inactive: int = 0) -> None:
    write(f"cgroup/{path}memory.max", f"{limit}\n")
    write(f"cgroup/{path}memory.current", f"{used}\n")
    write(f"cgroup/{path}memory.stat", f"anon 5\ninactive_file {inactive}\n")


def test_without_control_groups_what_linux_calls_available_is_free(write: Write) -> None:
    assert room_on(CPU) == Room(1000 * 4096, 8 * GIB)
    assert room_on(CPU, sharers=4).free == 2 * GIB


def test_a_limit_of_the_process_counts_what_it_uses_already(write: Write) -> None:
    write("proc/self/statm", f"0 {GIB // 4096} 0\n")
    assert room_on(CPU, limit_gb=3.0) == Room(GIB, 2 * GIB)
    assert room_on(CPU, limit_gb=0.5).free == 0
    assert room_on(CPU, limit_gb=30.0).free == 8 * GIB


def test_a_control_group_bounds_what_is_free_and_files_it_can_give_back_do_not_count(write: Write) -> None:
    group(write, "", 4 * GIB, 3 * GIB, inactive=GIB)
    assert room_on(CPU).free == 2 * GIB
    group(write, "", "max", 3 * GIB)
    assert room_on(CPU).free == 8 * GIB
    group(write, "", GIB, 2 * GIB)
    assert room_on(CPU).free == 0


def test_the_tightest_of_the_groups_above_counts(write: Write) -> None:
    write("proc/self/cgroup", "0::/a/b\n")
    group(write, "a/b/", "max", 0)
    group(write, "a/", 3 * GIB, GIB)
    assert room_on(CPU).free == 2 * GIB
    group(write, "a/b/", GIB, 0)
    assert room_on(CPU).free == GIB


def test_groups_of_the_first_version_are_read_too(write: Write) -> None:
    write("proc/self/cgroup", "9:cpu,cpuacct:/\n4:memory:/docker/x\n0::/system\n")
    write("cgroup/memory/docker/x/memory.limit_in_bytes", str(5 * GIB))
    write("cgroup/memory/docker/x/memory.usage_in_bytes", str(2 * GIB))
    write("cgroup/memory/docker/x/memory.stat", f"inactive_file 1\ntotal_inactive_file {GIB}\n")
    assert room_on(CPU).free == 4 * GIB


def test_where_nothing_tells_only_the_sites_own_limit_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free_memory, "PROC", tmp_path / "nothing")
    assert room_on(CPU) == Room(0, None)
    assert room_on(CPU, limit_gb=2.0) == Room(0, 2 * GIB)


def test_a_gpu_says_itself_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: None)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _device: (6 * GIB, 8 * GIB))
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda _device: GIB)
    assert room_on(torch.device("cuda:1"), sharers=2) == Room(GIB, 6 * GIB)  # each process has a GPU of its own
    monkeypatch.setattr("torch.mps.driver_allocated_memory", lambda: GIB)
    monkeypatch.setattr("torch.mps.recommended_max_memory", lambda: 5 * GIB)
    assert room_on(torch.device("mps")) == Room(GIB, 4 * GIB)


def test_this_machine_says_something() -> None:
    room = room_on(CPU)
    assert room.used > 0
    assert room.free is None or 0 < room.free < 2**50
