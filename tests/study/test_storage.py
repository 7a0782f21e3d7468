from __future__ import annotations

import os
import stat

import pytest

from fedmvp.errors import ExitCode, UserError
from fedmvp.study.storage import install_folder, new_folder, read_private, write_atomic, write_private


@pytest.fixture
def full_disk(monkeypatch):
    def refuse(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)


def test_a_private_key_has_mode_0600_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        write_private(tmp_path / "a.key", b"secret")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.key").stat().st_mode) == 0o600


def test_a_private_key_is_never_written_over_another(tmp_path):
    write_private(tmp_path / "a.key", b"first")
    with pytest.raises(UserError, match="exists already"):
        write_private(tmp_path / "a.key", b"second")
    assert (tmp_path / "a.key").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["a.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o620, 0o601])
def test_a_private_key_that_others_could_touch_is_refused(tmp_path, mode):
    path = tmp_path / "a.key"
    write_private(path, b"secret")
    path.chmod(mode)
    with pytest.raises(UserError, match=f"has mode {mode:04o}") as caught:
        read_private(path, what="signing key")
    assert caught.value.exit_code is ExitCode.IDENTITY
    assert f"chmod 600 {path}" in caught.value.remedy


def test_a_private_key_is_read_when_only_its_owner_can(tmp_path):
    write_private(tmp_path / "a.key", b"secret")
    assert read_private(tmp_path / "a.key", what="signing key") == b"secret"


def test_a_folder_in_the_place_of_a_key_is_refused(tmp_path):
    (tmp_path / "a.key").mkdir(mode=0o700)
    with pytest.raises(UserError, match="not a plain file"):
        read_private(tmp_path / "a.key", what="signing key")


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(UserError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_a_failed_installation_leaves_the_old_folder(tmp_path, full_disk):
    target = tmp_path / "study"
    target.mkdir()
    (target / "policy.toml").write_bytes(b"old")
    with pytest.raises(UserError, match="No space left"):
        install_folder(target, {"policy.toml": b"new"})
    assert (target / "policy.toml").read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["study"]


def test_an_installation_replaces_the_folder_as_a_whole(tmp_path):
    target = tmp_path / "study"
    install_folder(target, {"a": b"1", "b": b"2"})
    install_folder(target, {"b": b"3"})
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {"b": b"3"}
    assert [item.name for item in tmp_path.iterdir()] == ["study"]


def test_a_new_folder_stays_empty_when_its_making_fails(tmp_path):
    def fail() -> None:
        with new_folder(tmp_path / "new") as staged:
            write_private(staged / "a.key", b"secret")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list((tmp_path / "new").iterdir()) == []


def test_a_folder_that_holds_something_is_not_taken(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"), new_folder(tmp_path):
        pytest.fail("the block must not run")
    assert [item.name for item in tmp_path.iterdir()] == ["notes.txt"]


def test_a_folder_whose_parent_is_a_file_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"), new_folder(tmp_path / "file" / "new"):
        pytest.fail("the block must not run")
