from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from fedmvp.model import cache_folder, feature_cache
from fedmvp.model.feature_cache import CachedRows, open_feature_cache
from fedmvp.model.sealed import sealed_bytes
from tests.model.caches import sealed, sealed_files

KIND = b"\x01" * 32
OTHER_KIND = b"\x02" * 32
ROW_BYTES = 100
DRAWS = np.random.default_rng(1)
ROWS = {DRAWS.bytes(32): DRAWS.bytes(ROW_BYTES) for _ in range(12)}
DIGESTS = list(ROWS)


def shelf(folder: Path, kind: bytes = KIND, *, expected: int = len(ROWS), **cache: Any) -> CachedRows:
    return sealed(folder, **cache).open(kind, ROW_BYTES, expected=expected)


def fill(folder: Path, digests: Sequence[bytes] = DIGESTS, kind: bytes = KIND, **cache: Any) -> None:
    rows = shelf(folder, kind, expected=len(digests), **cache)
    for digest in digests:
        rows.add(digest, ROWS[digest])
    rows.close()


def held(folder: Path, kind: bytes = KIND, **cache: Any) -> dict[bytes, bytes]:
    """What can be read of a kind, each row checked."""
    rows = shelf(folder, kind, **cache)
    found = {digest: row for digest in DIGESTS if (row := rows.read(digest)) is not None}
    rows.close()
    assert all(ROWS[digest] == row for digest, row in found.items())
    return found


def test_rows_are_found_again_by_another_run(tmp_path):
    fill(tmp_path)
    assert held(tmp_path) == ROWS
    assert held(tmp_path, OTHER_KIND) == {}
    assert held(tmp_path, dataset="another") == {}


def test_files_are_readable_by_their_owner_alone_and_tell_no_name_of_the_data_set(tmp_path):
    fill(tmp_path, dataset="chest-2026")
    (file,) = sealed_files(tmp_path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700
    assert "chest" not in file.name


def test_a_row_can_be_read_in_the_run_that_wrote_it(tmp_path):
    rows = shelf(tmp_path)
    rows.add(DIGESTS[0], ROWS[DIGESTS[0]])
    assert rows.read(DIGESTS[0]) is None  # its file is not complete yet
    rows.flush()
    assert rows.read(DIGESTS[0]) == ROWS[DIGESTS[0]]
    assert DIGESTS[0] in rows
    rows.close()


def test_an_image_twice_in_the_data_is_kept_once(tmp_path):
    fill(tmp_path, [DIGESTS[0], DIGESTS[0], DIGESTS[1]])
    (file,) = sealed_files(tmp_path)
    assert file.stat().st_size == sealed_bytes(2, ROW_BYTES)


def test_many_rows_go_into_files_of_bounded_size(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "FILE_BYTES", sealed_bytes(5, ROW_BYTES))
    fill(tmp_path)
    assert sorted(file.stat().st_size for file in sealed_files(tmp_path)) == [
        sealed_bytes(2, ROW_BYTES), sealed_bytes(5, ROW_BYTES), sealed_bytes(5, ROW_BYTES),
    ]  # fmt: skip
    assert held(tmp_path) == ROWS


def test_many_small_files_are_joined(tmp_path, monkeypatch):
    for digest in DIGESTS:
        fill(tmp_path, [digest])
    assert len(sealed_files(tmp_path)) == 12
    monkeypatch.setattr(feature_cache, "MOST_FILES", 4)
    assert held(tmp_path) == ROWS
    assert len(sealed_files(tmp_path)) == 1
    assert held(tmp_path) == ROWS


def test_images_that_left_the_data_set_are_removed_from_every_kind_of_row(tmp_path):
    fill(tmp_path)
    fill(tmp_path, kind=OTHER_KIND)
    fill(tmp_path, dataset="another")
    sealed(tmp_path).keep_only(DIGESTS[3:])
    for kind in (KIND, OTHER_KIND):
        assert held(tmp_path, kind) == {digest: ROWS[digest] for digest in DIGESTS[3:]}
    assert held(tmp_path, dataset="another") == ROWS
    sizes = sorted(file.stat().st_size for file in sealed_files(tmp_path))
    assert sizes == [sealed_bytes(9, ROW_BYTES)] * 2 + [sealed_bytes(12, ROW_BYTES)]


def test_nothing_is_rewritten_where_no_image_left(tmp_path):
    fill(tmp_path)
    before = [file.name for file in sealed_files(tmp_path)]
    sealed(tmp_path).keep_only([*DIGESTS, b"\x00" * 32])
    assert [file.name for file in sealed_files(tmp_path)] == before


@pytest.mark.parametrize("place", [0, 9, 20, 60, 200, -1], ids=["magic", "version", "identity", "salt", "row", "index"])
def test_a_damaged_file_gives_no_wrong_row_and_is_replaced(tmp_path, place):
    fill(tmp_path)
    (file,) = sealed_files(tmp_path)
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    with capture_logs() as lines:
        found = held(tmp_path)
    assert len(found) == (11 if place == 200 else 0)
    assert any("damaged" in line["event"] for line in lines)
    rows = sealed(tmp_path)
    rows.keep_only(DIGESTS)
    fill(tmp_path)
    with capture_logs() as lines:
        assert held(tmp_path) == ROWS
    assert not lines
    assert not list((tmp_path / "cache").glob("*damaged*"))


def test_under_another_key_everything_is_computed_again(tmp_path):
    fill(tmp_path)
    assert held(tmp_path, key="other.key") == {}
    fill(tmp_path, key="other.key")
    assert held(tmp_path, key="other.key") == ROWS


def test_two_files_with_the_same_rows_become_one(tmp_path):
    first, second = shelf(tmp_path), shelf(tmp_path)  # neither sees what the other writes
    for digest, row in ROWS.items():
        first.add(digest, row)
        second.add(digest, row)
    first.close()
    second.close()
    assert len(sealed_files(tmp_path)) == 2
    assert held(tmp_path) == ROWS
    assert len(sealed_files(tmp_path)) == 1


def size_of(folder: Path) -> int:
    total = 0
    for file in (folder / "cache").iterdir():
        with suppress(FileNotFoundError):  # renamed or removed meanwhile
            total += file.stat().st_size
    return total


def gigabytes(rows: int) -> float:
    return sealed_bytes(rows, ROW_BYTES) / 1e9


def test_the_bound_of_the_folder_is_kept_and_what_does_not_fit_is_left_out(tmp_path):
    fill(tmp_path, max_gb=gigabytes(5))
    assert size_of(tmp_path) == sealed_bytes(5, ROW_BYTES)
    assert list(held(tmp_path, max_gb=gigabytes(5))) == DIGESTS[:5]
    rows = shelf(tmp_path, OTHER_KIND, max_gb=gigabytes(0) + 1e-9)
    rows.add(DIGESTS[0], ROWS[DIGESTS[0]])
    assert rows.is_full
    rows.close()


def test_what_was_used_longest_ago_goes_first(tmp_path):
    for age, dataset in enumerate(("a", "b", "c")):
        fill(tmp_path, DIGESTS[:4], dataset=dataset)
        newest = max(sealed_files(tmp_path), key=lambda file: file.stat().st_mtime_ns)
        os.utime(newest, ns=(age, age))
    assert len(held(tmp_path, dataset="a")) == 4  # a is used again, so that b is now the oldest
    fill(tmp_path, DIGESTS[:4], dataset="d", max_gb=3.9 * gigabytes(4))
    assert [len(held(tmp_path, dataset=name)) for name in "abcd"] == [4, 0, 4, 4]


def test_a_file_in_use_is_never_removed(tmp_path):
    fill(tmp_path, dataset="a")
    reader = shelf(tmp_path, dataset="a")
    fill(tmp_path, dataset="b", max_gb=gigabytes(12))
    assert reader.read(DIGESTS[0]) == ROWS[DIGESTS[0]]
    reader.close()
    assert held(tmp_path, dataset="a") == ROWS
    assert held(tmp_path, dataset="b") == {}
    fill(tmp_path, dataset="b", max_gb=gigabytes(12))
    assert held(tmp_path, dataset="a") == {}
    assert held(tmp_path, dataset="b") == ROWS


def test_a_bound_of_zero_keeps_nothing_and_removes_what_is_there(tmp_path):
    fill(tmp_path)
    assert open_feature_cache(tmp_path / "cache", tmp_path / "cache.key", max_gb=0.0, dataset="ward") is None
    assert sealed_files(tmp_path) == []
    assert open_feature_cache(tmp_path / "none", tmp_path / "none.key", max_gb=0.0, dataset="ward") is None
    assert not (tmp_path / "none.key").exists()


def test_without_a_key_nothing_is_cached(tmp_path):
    (tmp_path / "file").touch()
    with capture_logs() as lines:
        assert open_feature_cache(tmp_path / "cache", tmp_path / "file" / "k", max_gb=1.0, dataset="ward") is None
    assert "key cannot be written" in lines[0]["event"]


def test_features_that_earlier_versions_kept_in_the_clear_are_removed(tmp_path):
    (tmp_path / "cache").mkdir()
    for name in ("features-abc.safetensors", "attributes-abc.safetensors"):
        (tmp_path / "cache" / name).touch()
    sealed(tmp_path).keep_only(DIGESTS)
    assert [file.name for file in (tmp_path / "cache").iterdir()] == ["attributes-abc.safetensors"]


def refuse(number: int, *, after: int = 0):
    """A system call that fails with this error from its `after`-th use on."""
    used = 0

    def wrap(call):
        def refused(*arguments, **options):
            nonlocal used
            used += 1
            if used > after:
                raise OSError(number, os.strerror(number))
            return call(*arguments, **options)

        return refused

    return wrap


def test_a_disk_that_is_full_from_the_start_costs_the_cache_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", refuse(errno.ENOSPC)(os.posix_fallocate))
    with capture_logs() as lines:
        fill(tmp_path)
    assert [line["reason"] for line in lines] == ["No space left on device"]  # said once
    assert not [file for file in (tmp_path / "cache").iterdir() if file.suffix == ".sealing"]
    assert held(tmp_path) == {}


def test_a_disk_that_becomes_full_keeps_the_files_that_were_complete(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "FILE_BYTES", sealed_bytes(5, ROW_BYTES))
    monkeypatch.setattr(os, "pwrite", refuse(errno.ENOSPC, after=10)(os.pwrite))
    fill(tmp_path)
    assert list(held(tmp_path)) == DIGESTS[:5]
    assert not list((tmp_path / "cache").glob("*.sealing"))


def test_a_file_system_that_sets_no_space_aside_is_written_to_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", refuse(errno.EOPNOTSUPP)(os.posix_fallocate))
    fill(tmp_path)
    assert held(tmp_path) == ROWS
    monkeypatch.delattr(os, "posix_fallocate")  # macOS
    fill(tmp_path, kind=OTHER_KIND)
    assert held(tmp_path, OTHER_KIND) == ROWS


def test_a_folder_that_cannot_be_written_is_read_all_the_same(tmp_path, monkeypatch):
    fill(tmp_path, DIGESTS[:4])
    really = os.open

    def read_only(path, flags, *mode):
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return really(path, flags, *mode)

    monkeypatch.setattr(cache_folder.os, "open", read_only)
    monkeypatch.setattr(cache_folder.os, "utime", refuse(errno.EROFS)(os.utime))
    monkeypatch.setattr(Path, "unlink", refuse(errno.EROFS)(Path.unlink))
    monkeypatch.setattr(Path, "rename", refuse(errno.EROFS)(Path.rename))
    fill(tmp_path)
    assert list(held(tmp_path)) == DIGESTS[:4]


WRITER = """
import sys
from pathlib import Path
from fedmvp.model import feature_cache
from fedmvp.model.feature_cache import open_feature_cache
from fedmvp.model.sealed import sealed_bytes
folder, limit, pause = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3] == "pause"
feature_cache.FILE_BYTES = sealed_bytes(50, 100)
cache = open_feature_cache(folder / "cache", folder / "cache.key", max_gb=limit, dataset="ward")
cache.keep_only([i.to_bytes(32, "big") for i in range(400)])
rows = cache.open(bytes(32), 100, expected=400)
print("ready", flush=True)
sys.stdin.readline()
for i in range(400):
    digest, row = i.to_bytes(32, "big"), bytes([i % 251]) * 100
    if rows.read(digest) not in (None, row):
        sys.exit("a wrong row")
    rows.add(digest, row)
    if pause and i == 75:
        print("written", flush=True)
        sys.stdin.readline()
rows.close()
"""


@contextmanager
def writers(folder: Path, count: int, *, limit: float = 1.0, pause: bool = False) -> Iterator[list[Any]]:
    """Processes that have opened the cache and are told to fill it all at once."""
    arguments = [sys.executable, "-c", WRITER, str(folder), str(limit), "pause" if pause else ""]
    processes = [
        subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)
    ]
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()


def test_several_processes_may_write_and_read_at_once_within_the_bound(tmp_path):
    limit = sealed_bytes(900, 100) / 1e9  # more than two of them hold, less than three
    with writers(tmp_path, 3, limit=limit) as processes:
        while not (tmp_path / "cache").exists():
            time.sleep(0.01)
        while any(process.poll() is None for process in processes):
            assert size_of(tmp_path) <= limit * 1e9
            time.sleep(0.01)
        assert [process.returncode for process in processes] == [0, 0, 0]
    rows = sealed(tmp_path).open(bytes(32), 100, expected=400)
    assert all(rows.read(i.to_bytes(32, "big")) == bytes([i % 251]) * 100 for i in range(400))
    rows.close()


def test_what_a_killed_process_left_half_written_is_removed_and_what_it_completed_is_used(tmp_path):
    with writers(tmp_path, 1, pause=True) as (process,):
        assert process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(list((tmp_path / "cache").glob("*.sealing"))) == 1
    rows = sealed(tmp_path).open(bytes(32), 100, expected=400)
    assert sum(i.to_bytes(32, "big") in rows for i in range(400)) == 50
    rows.add(b"n" * 32, bytes(100))
    rows.close()
    assert list((tmp_path / "cache").glob("*.sealing")) == []
