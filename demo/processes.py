"""The demo's processes: the installed server command and four site processes, each with its own folder and log file."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from fedmvp.errors import ExitCode, UserError

# One core each: five processes share what the machine has, and idle threads of one would stall another.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "FEDMVP_LOG_FORMAT": "json", "PYTHONUNBUFFERED": "1"}
STOP_SECONDS = 15.0


def free_port() -> int:
    """A port that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Processes:
    """Every process of one demo.

    Args:
        folder: where the logs go.
    """

    folder: Path
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start_server(self, config: Path) -> None:
        """Start ``fedmvp-server run``, as an operator would."""
        self._start("server", [str(Path(sys.executable).with_name("fedmvp-server")), "run", "--config", str(config)])

    def start_site(self, name: str, config: Path, *, die_in_round: int = 0) -> None:
        """Start one site."""
        command = [
            sys.executable,
            "-m",
            "demo.site",
            "--config",
            str(config),
            "--log",
            str(self.folder / "sums" / name),
        ]
        self._start(name, [*command, "--die-in-round", str(die_in_round)] if die_in_round else command)

    def was_killed(self, name: str) -> bool:
        """Whether a process ended by SIGKILL."""
        return self.running[name].poll() == -signal.SIGKILL

    def check(self, *, may_be_killed: str) -> None:
        """Raise when a process has ended with an error.

        Raises:
            UserError: it says where the process's own words are.
        """
        for name, process in self.running.items():
            code = process.poll()
            if code not in {None, 0} and not (name == may_be_killed and code == -signal.SIGKILL):
                raise UserError(
                    f"{name} ended with exit code {code}: {self._last_words(name)}",
                    remedy=f"read {self.log(name)}",
                    exit_code=ExitCode.INTERNAL,
                )

    def wait(self, timeout_seconds: float) -> None:
        """Wait until every process has ended by itself.

        Raises:
            UserError: one failed, or goes on.
        """
        deadline = time.monotonic() + timeout_seconds
        for name, process in self.running.items():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.check(may_be_killed="")  # another process's failure is why this one still waits
                raise UserError(
                    f"{name} did not end with the run", remedy=f"read {self.log(name)}", exit_code=ExitCode.INTERNAL
                ) from None

    def stop(self) -> None:
        """Stop whatever still runs."""
        for process in self.running.values():
            if process.poll() is None:
                process.terminate()
        for process in self.running.values():
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()

    def log(self, name: str) -> Path:
        """Where a process's standard error goes."""
        return self.folder / "logs" / f"{name}.log"

    def _start(self, name: str, command: list[str]) -> None:
        self.log(name).parent.mkdir(parents=True, exist_ok=True)
        with self.log(name).open("ab") as log:
            self.running[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **ENVIRONMENT},
            )

    def _last_words(self, name: str) -> str:
        lines = self.log(name).read_text(encoding="utf-8", errors="replace").splitlines()
        return " | ".join(lines[-2:])[:400] or "nothing was logged"
