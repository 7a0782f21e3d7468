"""One server at a time on one state folder, however the last one ended."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import NoReturn

import pytest

from fedmvp.errors import ExitCode, UserError
from fedmvp.server import app
from fedmvp.server.app import run_server
from fedmvp.server.folder_lock import FILE_NAME, lock_folder
from fedmvp.study.config import ServerConfig, load_server_config
from fedmvp.study.site import SiteOptions
from fedmvp.study.workshop import create_study
from tests.e2e.federation import policy_text
from tests.e2e.synthetic import SyntheticModel

HOLD = """
import sys
from pathlib import Path
from fedmvp.server.folder_lock import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def _holder(state_dir: Path) -> subprocess.Popen[str]:
    """A process that holds the folder until its standard input ends."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(state_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def _end(holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.communicate()


@pytest.fixture
def config(tmp_path: Path) -> ServerConfig:
    names = ("site-1", "site-2", "site-3")
    sites = [SiteOptions(name, name, tmp_path, dataset_id="d", epsilon_max=float("inf")) for name in names]
    text = policy_text(join_seconds=0.2)
    study = create_study(tmp_path / "study", text, sites=sites, listen="127.0.0.1:0")
    return load_server_config(study.server_config, environment={})


def _serve(config: ServerConfig) -> list[str]:
    """Run a server to which no site comes; what it said on the way, and what ended it."""
    said: list[str] = []
    with pytest.raises(UserError) as ended:
        run_server(
            config,
            public_model=SyntheticModel(4),
            on_listening=lambda _port: said.append("listening"),
            roster_grace_seconds=0.1,
        )
    return [*said, ended.value.what]


def test_a_second_server_on_another_port_is_refused_and_touches_nothing(config: ServerConfig) -> None:
    state_dir = config.server.state_dir
    holder = _holder(state_dir)
    try:
        (said,) = _serve(config)
    finally:
        _end(holder)
    assert said == f"the state folder {state_dir} is in use by another fedmvp-server"
    assert [file.name for file in state_dir.iterdir()] == [FILE_NAME]


def test_control_without_the_lock_the_second_server_starts_on_the_folder_of_the_first(
    config: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "lock_folder", lambda _folder: nullcontext())
    holder = _holder(config.server.state_dir)
    try:
        assert _serve(config)[0] == "listening"
    finally:
        _end(holder)
    assert (config.server.state_dir / "audit.jsonl").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_goes_with_a_killed_server(config: ServerConfig, number: signal.Signals) -> None:
    holder = _holder(config.server.state_dir)
    holder.send_signal(number)
    holder.wait()
    _end(holder)
    assert _serve(config)[0] == "listening"
    assert _serve(config)[0] == "listening"  # and with one that ended by itself


def test_a_server_holds_its_folder_while_it_serves(config: ServerConfig) -> None:
    refusals: list[UserError] = []

    def try_to_take_it(_port: int) -> None:
        with pytest.raises(UserError) as refused, lock_folder(config.server.state_dir):
            pytest.fail("two servers hold one folder")
        refusals.append(refused.value)

    with pytest.raises(UserError):
        run_server(config, public_model=SyntheticModel(4), on_listening=try_to_take_it, roster_grace_seconds=0.1)
    (refused,) = refusals
    assert refused.exit_code is ExitCode.CONFIG
    assert "stop that server first" in refused.remedy


def test_the_lock_is_one_for_every_name_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "other").symlink_to(tmp_path / "state")
    with lock_folder(tmp_path / "state"), pytest.raises(UserError, match="in use"), lock_folder(tmp_path / "other"):
        pytest.fail("two names of a folder were taken for two folders")


def test_the_lock_is_not_passed_on_to_programs_that_the_server_starts(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('here', flush=True); input()"]
    with lock_folder(tmp_path):
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False)
        assert child.stdout is not None
        assert child.stdout.readline() == b"here\n"  # until it runs, the kernel may not have closed its copy
    try:
        with lock_folder(tmp_path):
            assert child.poll() is None
    finally:
        child.communicate(b"\n")


def test_the_lock_file_is_its_owners_alone(tmp_path: Path) -> None:
    with lock_folder(tmp_path / "deep" / "state"):
        pass
    assert stat.S_IMODE((tmp_path / "deep" / "state" / FILE_NAME).stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("call", "number"),
    [
        ("pathlib.Path.mkdir", errno.EACCES),
        ("os.open", errno.EROFS),
        ("os.open", errno.ENOSPC),
        ("fcntl.flock", errno.ENOLCK),
        ("fcntl.flock", errno.EOPNOTSUPP),
    ],
)
def test_a_folder_that_cannot_be_locked_is_refused_not_used_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(call, refuse)
    with pytest.raises(UserError, match="cannot be locked") as refused, lock_folder(tmp_path):
        pytest.fail("a server went on without a lock")
    assert os.strerror(number) in refused.value.what
    assert "on a disk that can lock files" in refused.value.remedy


def test_a_file_in_the_place_of_the_folder_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "state"):
        with pytest.raises(UserError, match="cannot be locked"), lock_folder(folder):
            pytest.fail("a file was taken for a folder")


def test_a_refused_lock_leaves_no_file_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.ENOLCK, "No locks available")

    before = count()
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError), lock_folder(tmp_path):
        pytest.fail("a server went on without a lock")
    assert count() == before
