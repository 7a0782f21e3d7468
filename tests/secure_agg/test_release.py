"""One release for a round, ever: the mark survives a killed process, a torn line and a full disk.

Where a process is to die, a real one does: a child is stopped with SIGKILL at a point inside ``mark`` or around it, and
what it had handed out by then is what it had written to a pipe.
"""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from secure_agg import release
from secure_agg.errors import LocalProtocolError
from secure_agg.release import FileReleases
from secure_agg.transitions import ClientState
from tests.simulation.federation import Federation, Releases

RUN = "test-run"
ROUND = 7

CHILD = """
import os, signal, sys
from pathlib import Path
from secure_agg import release
from tests.secure_agg.test_release import Forgetful, OneSite, hand_out

point, path, kind = sys.argv[1], Path(sys.argv[2]), sys.argv[3]

def die():
    os.kill(os.getpid(), signal.SIGKILL)

releases = release.FileReleases(path) if kind == "file" else Forgetful()
site = OneSite()
plain_mark, plain_fdopen, plain_fsync = releases.mark, os.fdopen, os.fsync

def before_write(*arguments):
    die()

def after_write(*arguments):
    file = plain_fdopen(*arguments)
    class Dying:
        def __enter__(self): return self
        def write(self, data): file.write(data[: len(data) // 2] if point == "half a write" else data); file.flush()
        def __exit__(self, *_): die()
    return Dying()

def after_fsync(descriptor):
    plain_fsync(descriptor)
    die()

def mark_then_die(*arguments):
    plain_mark(*arguments)
    die()

if point == "before the mark":
    releases.mark = before_write
elif point == "before the write":
    os.fdopen = before_write
elif point in ("half a write", "after the write"):
    os.fdopen = after_write
elif point == "before the fsync":
    os.fsync = before_write
elif point == "after the fsync":
    os.fsync = after_fsync
elif point == "before the message is handed out":
    releases.mark = mark_then_die
message = site.masked(releases)
hand_out(message)
die()
"""
POINTS = [
    "before the mark",
    "before the write",
    "half a write",
    "after the write",
    "before the fsync",
    "after the fsync",
    "before the message is handed out",
    "after the message is handed out",
]


class Forgetful:
    """The control: a register that forgets when its process ends."""

    def __init__(self):
        self.mark = Releases().mark


class OneSite:
    """Site 11 of a round, ready to mask."""

    def __init__(self):
        self.federation = Federation(3)
        self.federation.keys()
        self.federation.shares()
        self.client = self.federation.clients[11]
        self.client.receive_peer_shares(self.federation.peer_shares[11])

    def masked(self, releases):
        return self.client.masked_input(self.federation.inputs[11], releases)


def hand_out(message):
    """Send a message to the world, which is a pipe here."""
    os.write(1, message.digest)


def killed_at(point, path, kind="file"):
    """Run a site in a process of its own until it is killed; return what left it."""
    ended = subprocess.run(
        [sys.executable, "-c", CHILD, point, path, kind],
        capture_output=True,
        cwd=Path(__file__).parent.parent.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    return ended.stdout


def releases_again(releases):
    """Whether a site that was started again could send a vector for the same round."""
    try:
        return OneSite().masked(releases) is not None
    except LocalProtocolError as refused:
        if "may have left" not in str(refused) or not refused.remedy:
            raise
        return False


@pytest.mark.parametrize("point", POINTS)
def test_a_site_killed_anywhere_sends_at_most_one_vector_for_a_round(tmp_path, point):
    left = killed_at(point, tmp_path / "releases")
    assert len(left) == (32 if point == "after the message is handed out" else 0)
    releases = FileReleases(tmp_path / "releases")
    again = releases_again(releases)
    releases.close()
    assert again == (point in ("before the mark", "before the write", "half a write"))
    assert not (left and again)


def test_a_register_that_forgets_fails_the_same_check(tmp_path):
    left = killed_at("after the message is handed out", tmp_path / "none", kind="forgetful")
    assert left
    assert releases_again(Forgetful())


def test_a_mark_is_written_and_forced_to_disk_before_the_message_is_handed_out(tmp_path, monkeypatch):
    order = []
    plain = os.fsync
    releases = FileReleases(tmp_path / "releases")

    def noted(descriptor):
        order.append((tmp_path / "releases").read_text())
        plain(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    OneSite().masked(releases)
    releases.close()
    assert order == ["7 test-run\n"]


def test_rounds_count_up_in_every_run_of_its_own(tmp_path):
    releases = FileReleases(tmp_path / "releases")
    for run, number in (("one", 1), ("two", 1), ("one", 5)):
        releases.mark(run, number)
    for again in (releases, None):
        register = again or FileReleases(tmp_path / "releases")
        assert [register.last_round(run) for run in ("one", "two", "three")] == [5, 1, 0]
        for number in (1, 4, 5):
            with pytest.raises(LocalProtocolError, match="may have left"):
                register.mark("one", number)
        register.close()


def test_the_file_is_for_its_owner_alone(tmp_path):
    FileReleases(tmp_path / "releases").close()
    assert stat.S_IMODE((tmp_path / "releases").stat().st_mode) == 0o600


def test_the_name_of_a_new_file_is_forced_to_disk(tmp_path, monkeypatch):
    forced, plain = [], os.fsync

    def noted(descriptor):
        forced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        plain(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    FileReleases(tmp_path / "releases").close()
    assert forced == [tmp_path]


@pytest.mark.parametrize("run", ["", "two words", "line\nbreak", "übung", "tab\t"])
def test_a_run_whose_name_would_break_the_file_is_refused_and_not_marked(tmp_path, run):
    releases = FileReleases(tmp_path / "releases")
    with pytest.raises(LocalProtocolError, match="printable") as caught:
        releases.mark(run, 1)
    assert caught.value.remedy
    assert releases.last_round(run) == 0
    releases.close()
    assert (tmp_path / "releases").read_bytes() == b""


@pytest.mark.parametrize("torn", ["8", "8 ", "8 test-ru", "8 test-run"])
def test_a_line_torn_by_a_crash_is_cut_off_and_the_marks_before_it_stand(tmp_path, torn):
    (tmp_path / "releases").write_text(f"3 other\n7 test-run\n{torn}")
    releases = FileReleases(tmp_path / "releases")
    assert (releases.last_round("test-run"), releases.last_round("other")) == (7, 3)
    releases.mark("test-run", 8)
    releases.close()
    assert (tmp_path / "releases").read_text() == "3 other\n7 test-run\n8 test-run\n"


@pytest.mark.parametrize(
    "content",
    [b"hello\n", b"7 test-run\n\n", b"7\n", b"seven test-run\n", b"-7 x\n", b"7 a b\n", b"\xff\xfe\n", b"7 x\r\n"],
)
def test_a_file_that_holds_anything_else_is_refused_and_left_as_it_is(tmp_path, content):
    (tmp_path / "releases").write_bytes(content)
    with pytest.raises(LocalProtocolError, match="not a release mark") as caught:
        FileReleases(tmp_path / "releases")
    assert caught.value.remedy
    assert (tmp_path / "releases").read_bytes() == content
    (tmp_path / "releases").write_bytes(b"")
    FileReleases(tmp_path / "releases").close()  # the lock was given back


OPEN = (
    "import sys; from pathlib import Path; from secure_agg.release import FileReleases; FileReleases(Path(sys.argv[1]))"
)


def test_a_second_process_is_kept_out_until_the_first_lets_go(tmp_path):
    def second():
        return subprocess.run(
            [sys.executable, "-c", OPEN, tmp_path / "releases"], stderr=subprocess.PIPE, text=True, check=False
        )

    releases = FileReleases(tmp_path / "releases")
    refused = second()
    assert refused.returncode == 1
    assert "is in use by another process; stop the other client" in refused.stderr
    releases.close()
    assert second().returncode == 0


def test_a_second_register_of_one_process_is_kept_out_too(tmp_path):
    releases = FileReleases(tmp_path / "releases")
    with pytest.raises(LocalProtocolError, match="in use") as caught:
        FileReleases(tmp_path / "releases")
    assert caught.value.remedy
    releases.mark(RUN, ROUND)
    releases.close()


class FullDisk:
    """A file on a disk with room for a few bytes."""

    def __init__(self, descriptor, room):
        self.descriptor, self.room = descriptor, room

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.descriptor)

    def write(self, data):
        os.write(self.descriptor, data[: self.room])
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("failing", ["write", "half a write", "fsync"])
def test_a_disk_that_does_not_take_the_mark_ends_the_attempt_without_a_message(tmp_path, monkeypatch, failing):
    def refuse(_descriptor):
        raise OSError(5, "Input/output error")

    site = OneSite()
    releases = FileReleases(tmp_path / "releases")
    with monkeypatch.context() as patched:
        if failing == "fsync":
            patched.setattr(release.os, "fsync", refuse)
        else:
            patched.setattr(release.os, "fdopen", lambda fd, _mode: FullDisk(fd, 4 if "half" in failing else 0))
        with pytest.raises(OSError, match=r"No space|Input/output"):
            site.masked(releases)
    assert site.client.state is ClientState.DEAD
    assert not any(vars(site.client._secrets)[name] for name in ("_self_mask", "_mask_secrets", "_mask_key", "_held"))
    with pytest.raises(LocalProtocolError, match="not possible"):
        site.masked(releases)
    assert not releases_again(releases)  # this process does not try the round again, whatever the disk holds
    releases.close()
    after = FileReleases(tmp_path / "releases")
    assert after.last_round(RUN) == (ROUND if failing == "fsync" else 0)
    after.close()


@pytest.mark.parametrize("room", range(10))
def test_after_half_a_line_nothing_is_marked_until_the_file_is_opened_again(tmp_path, monkeypatch, room):
    releases = FileReleases(tmp_path / "releases")
    releases.mark(RUN, ROUND - 1)
    with monkeypatch.context() as patched:
        patched.setattr(release.os, "fdopen", lambda fd, _mode: FullDisk(fd, room))
        with pytest.raises(OSError, match="No space"):
            releases.mark(RUN, ROUND)
    with pytest.raises(LocalProtocolError, match="did not reach") as caught:
        releases.mark(RUN, ROUND + 1)
    assert caught.value.remedy
    releases.close()
    after = FileReleases(tmp_path / "releases")
    assert after.last_round(RUN) == ROUND - 1  # the half line never permitted anything
    after.mark(RUN, ROUND + 1)
    after.close()
    again = FileReleases(tmp_path / "releases")
    assert again.last_round(RUN) == ROUND + 1
    again.close()


def test_a_refused_release_leaves_the_session_ready_and_no_message_was_handed_out(tmp_path):
    releases = FileReleases(tmp_path / "releases")
    releases.mark(RUN, ROUND)
    site = OneSite()
    with pytest.raises(LocalProtocolError, match="may have left"):
        site.masked(releases)
    assert site.client.state is ClientState.READY
    releases.close()


def test_a_release_is_marked_only_when_nothing_else_can_refuse(tmp_path):
    site, releases = OneSite(), FileReleases(tmp_path / "releases")
    with pytest.raises(LocalProtocolError):
        site.client.masked_input(site.federation.inputs[11][:-1], releases)
    assert releases.last_round(RUN) == 0
    site.masked(releases)
    assert releases.last_round(RUN) == ROUND
    releases.close()
