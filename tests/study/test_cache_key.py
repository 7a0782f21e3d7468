from __future__ import annotations

import os
import stat

import pytest

from fedmvp.errors import ExitCode, UserError
from fedmvp.study import cache_key
from fedmvp.study.cache_key import load_cache_key


def test_the_key_is_made_at_first_use_readable_by_its_owner_alone_and_then_stays(tmp_path):
    path = tmp_path / "cache.key"
    first = load_cache_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_cache_key(path) == first
    assert first is not None
    assert first.secret.hex() not in repr(first)
    assert load_cache_key(tmp_path / "other.key") != first


def test_a_key_that_others_could_read_is_refused(tmp_path):
    path = tmp_path / "cache.key"
    load_cache_key(path)
    path.chmod(0o640)
    with pytest.raises(UserError, match="mode 0640") as caught:
        load_cache_key(path)
    assert caught.value.exit_code is ExitCode.IDENTITY


def test_a_file_that_is_no_key_is_refused_with_the_way_out(tmp_path):
    path = tmp_path / "cache.key"
    path.write_bytes(b"short")
    path.chmod(0o600)
    with pytest.raises(UserError, match="not a cache key") as caught:
        load_cache_key(path)
    assert "remove it" in caught.value.remedy


def test_where_no_key_can_be_written_there_is_none(tmp_path):
    (tmp_path / "file").touch()
    assert load_cache_key(tmp_path / "file" / "cache.key") is None


def test_of_two_processes_that_make_the_key_at_once_both_use_the_first_ones(tmp_path, monkeypatch):
    path = tmp_path / "cache.key"
    write = cache_key.write_private

    def beaten(target, _content):
        write(target, b"f" * 32)  # the other process, between the look and the write
        write(target, os.urandom(32))

    monkeypatch.setattr(cache_key, "write_private", beaten)
    held = load_cache_key(path)
    assert held is not None
    assert held.secret == b"f" * 32
