"""A federation of real processes on loopback: made, started, killed and read by the end-to-end tests."""

from __future__ import annotations

import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmvp.study.site import SiteOptions
from fedmvp.study.workshop import Study, create_study
from privacy.ledger import Ledger

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 100.0

POLICY = """
[study]
run_id = "test-run"
title = "a study for tests"
rounds = {rounds}

[model]
backbone = "fedmvp-tiny"
pretrained = "embedded"
variant = "narrow"
injection = "last-block"
n_prompts = 4
n_heads = 2
bottleneck_width = 4
neutral_start = "anchor"
consistency_weight = 1.0
flip = false

[task]
kind = "single-label"
template = "a photo of a {{name}}, which has {{attribute}}"
classes = [{{ name = "red", attributes = ["red colour"] }}, {{ name = "blue", attributes = ["blue colour"] }}]

[training]
local_steps = 1
learning_rate = 0.5

[privacy]
mode = "UNSAFE-no-dp"
unit = "record"
neighboring_relation = "add-or-remove-one"
sample_rate = 0.5
noise_multiplier = 0.0
max_grad_norm = 1.0
expected_batch_size = 8.0
delta = 1e-5
epsilon_max = inf

[aggregation]
colluders = 1
min_cohort = {min_cohort}
min_honest = 2
max_cohort = 8
ring_bits = 32
value_range = 4.0
server_optimizer = "{optimizer}"
server_learning_rate = 1.0

[deadlines]
training_seconds = {training_seconds}
phase_seconds = {phase_seconds}
join_seconds = {join_seconds}
"""

PRIVATE = {
    'mode = "UNSAFE-no-dp"': 'mode = "record-local"',
    "noise_multiplier = 0.0": "noise_multiplier = 2.0",
    "epsilon_max = inf": "epsilon_max = 8.0",
}

RECORD_DISTRIBUTED = {
    'mode = "UNSAFE-no-dp"': 'mode = "record-distributed"',
    "noise_multiplier = 0.0": "noise_multiplier = 3.0",
    "epsilon_max = inf": "epsilon_max = 8.0",
    "ring_bits = 32": "ring_bits = 64",
}
SILO_DISTRIBUTED = {
    **RECORD_DISTRIBUTED,
    'mode = "UNSAFE-no-dp"': 'mode = "silo-distributed"',
    'unit = "record"': 'unit = "site"',
    "local_steps = 1": "local_steps = 3\nmomentum = 0.5",
}


def policy_text(
    *,
    rounds: int = 2,
    min_cohort: int = 3,
    optimizer: str = "sgd",
    training_seconds: float = 30.0,
    phase_seconds: float = 20.0,
    join_seconds: float = 40.0,
    private: bool = False,
    changes: Mapping[str, str] | None = None,
) -> str:
    """A small policy; `private` makes it one with DP, and `changes` replaces lines of its text."""
    text = POLICY.format(**{name: value for name, value in locals().items() if name not in {"private", "changes"}})
    for old, new in {**(PRIVATE if private else {}), **(changes or {})}.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


class Process:
    """A child process whose lines of output can be waited for."""

    def __init__(self, name: str, arguments: Sequence[str | Path]) -> None:
        self.name = name
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        self._child = subprocess.Popen(
            [sys.executable, "-u", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        self.lines: list[str] = []
        self._fresh: queue.Queue[str | None] = queue.Queue()
        self._error: list[str] = []
        self._readers = [
            threading.Thread(target=self._read_output, daemon=True),
            threading.Thread(target=self._read_error, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def errors(self) -> str:
        """What was written to stderr; complete once the process has ended."""
        return "".join(self._error)

    def _read_output(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            self._fresh.put(line.strip())
        self._fresh.put(None)

    def _read_error(self) -> None:
        assert self._child.stderr is not None
        self._error.extend(self._child.stderr)

    def wait_for(self, start: str) -> str:
        """The first line from here on that starts with `start`."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            line = self._fresh.get(timeout=max(0.1, deadline - time.monotonic()))
            if line is None:
                raise AssertionError(
                    f"{self.name} ended before {start!r}:\n{self.lines}\n{self.finish()}\n{self.errors}"
                )
            self.lines.append(line)
            if line.startswith(start):
                return line

    def finish(self) -> int:
        """Wait for the end; the exit code."""
        code = self._child.wait(PATIENCE_SECONDS)
        for reader in self._readers:
            reader.join(PATIENCE_SECONDS)
        while (line := self._fresh.get()) is not None:
            self.lines.append(line)
        self._fresh.put(None)
        return code

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._child.kill()
        self._child.wait(PATIENCE_SECONDS)

    def terminate(self) -> None:
        """SIGTERM."""
        self._child.terminate()

    def close(self) -> None:
        """Make sure that it is gone and its pipes are closed."""
        if self._child.poll() is None:
            self._child.kill()
        self._child.wait(PATIENCE_SECONDS)
        for reader in self._readers:
            reader.join(PATIENCE_SECONDS)
        for pipe in (self._child.stdout, self._child.stderr):
            if pipe is not None:
                pipe.close()


@dataclass
class Federation:
    """A study on disk and the processes that were started on it."""

    study: Study
    dimension: int
    port: int
    processes: list[Process] = field(default_factory=list)

    @property
    def server_folder(self) -> Path:
        return self.study.server_config.parent

    @property
    def state_dir(self) -> Path:
        return self.server_folder / "state"

    def site_folder(self, name: str) -> Path:
        return self.study.site_configs[name].parent

    def start(self, name: str, arguments: Sequence[str | Path]) -> Process:
        process = Process(name, arguments)
        self.processes.append(process)
        return process

    def start_server(
        self, *extra: str | Path, module: str = "tests.e2e.server_entry", listening: bool = True
    ) -> Process:
        process = self.start(
            "server", ["-m", module, self.study.server_config, "--dimension", str(self.dimension), *extra]
        )
        if listening:
            process.wait_for("listening")
        return process

    def start_site(self, name: str, *extra: str | Path, module: str = "tests.e2e.site_entry") -> Process:
        seed = list(self.study.site_configs).index(name) + 1
        return self.start(
            name,
            [
                "-m",
                module,
                self.study.site_configs[name],
                "--dimension",
                str(self.dimension),
                "--seed",
                str(seed),
                *extra,
            ],
        )

    def start_sites(self, *extra: str | Path) -> dict[str, Process]:
        return {name: self.start_site(name, *extra) for name in self.study.site_configs}

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        path = self.state_dir / "events.jsonl"
        text = path.read_text() if path.exists() else ""
        events = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        return [event for event in events if kind is None or event["event"] == kind]

    def wait_for_event(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            for event in self.events():
                if condition(event):
                    return event
            time.sleep(0.01)
        raise AssertionError(f"no such event; there are {[event['event'] for event in self.events()]}")

    def ledger(self, name: str) -> Ledger:
        return Ledger.open(self.site_folder(name) / "ledger.sqlite", read_only=True)

    def close(self) -> None:
        for process in self.processes:
            process.close()


def make_federation(
    folder: Path,
    *,
    sites: int = 4,
    dimension: int = 64,
    policy: str | None = None,
    epsilon_max: float = float("inf"),
    budgets: Mapping[str, float] | None = None,
    evaluation_images: Path | None = None,
) -> Federation:
    """Found a study, enrol its sites and create their ledgers."""
    port = free_port()
    options = [
        SiteOptions(
            f"site-{number}",
            f"Hospital {number}",
            folder / "data",
            dataset_id=f"records-{number}",
            epsilon_max=(budgets or {}).get(f"site-{number}", epsilon_max),
        )
        for number in range(1, sites + 1)
    ]
    study = create_study(
        folder / "study",
        policy or policy_text(),
        sites=options,
        listen=f"127.0.0.1:{port}",
        evaluation_images=evaluation_images,
    )
    for option in options:
        Ledger.create(
            study.site_configs[option.name].parent / "ledger.sqlite",
            dataset_id=option.dataset_id,
            delta=study.policy.privacy.delta,
            epsilon_max=option.epsilon_max,
            unit=study.policy.privacy.unit,
            unsafe=option.epsilon_max == float("inf"),
        ).close()
    return Federation(study, dimension, port)


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
