"""One round over the real path, without training: processes, mutual TLS, gRPC, ledgers, secure sum, snapshot.

Prints one table: milliseconds by phase for the demo's shape (4 sites, a vector of a few thousand floats) and for a
round of a million floats with 3 sites. Everything that a real round waits for is in it, the disk included; the update
of a site is a fixed vector. Run it with: python benchmarks/round_trip.py [--json] [--folder /dev/shm/bench]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmvp.client.runner import run_client
from fedmvp.server.app import run_server
from fedmvp.server.evaluator import PublicScore
from fedmvp.server.events import read_events
from fedmvp.study.config import load_client_config, load_server_config, split_endpoint
from fedmvp.study.policy import parse_policy
from fedmvp.study.site import SiteOptions
from fedmvp.study.workshop import create_study
from privacy.ledger import Ledger

ROOT = Path(__file__).resolve().parents[1]
DEMO_DIMENSION = 7_680
PHASES = ("training", "advertise_keys", "share_keys", "masked_input", "confirm_survivors", "unmask")
LABELS = {"training": "announce, model", "unmask": "unmask, publish"}


@dataclass(frozen=True)
class Shape:
    """One row of the table."""

    name: str
    sites: int
    dimension: int
    rounds: int


class FixedModel:
    """A model that is only a vector of zeros."""

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension

    def initial_parameters(self) -> NDArray[np.float32]:
        """Zeros (d,)."""
        return np.zeros(self.dimension, dtype=np.float32)

    def score(self, _parameters: NDArray[np.float32]) -> PublicScore | None:
        """Measures nothing."""
        return None


class FixedSource:
    """A site whose update costs nothing to compute."""

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self._update = np.linspace(-1.0, 1.0, dimension)

    def initial_parameters(self) -> NDArray[np.float32]:
        """Zeros (d,)."""
        return np.zeros(self.dimension, dtype=np.float32)

    def train_round(self, _parameters: NDArray[np.float32]) -> NDArray[np.float64]:
        """The one update (d,)."""
        return self._update


def policy_text(shape: Shape) -> str:
    """A policy for this shape. Without DP: the accountant is measured by benchmarks of its own."""
    return f"""
[study]
run_id = "round-trip-{shape.dimension}"
title = "round trip"
rounds = {shape.rounds}
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
classes = [{{ name = "a", attributes = ["x"] }}, {{ name = "b", attributes = ["y"] }}]
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
min_cohort = 3
min_honest = 2
max_cohort = 32
value_range = 4.0
server_optimizer = "adam"
server_learning_rate = 0.1
"""


def measure(shape: Shape, folder: Path) -> dict[str, Any]:
    """Run a study of this shape in processes of their own; medians over its rounds but the first, in milliseconds."""
    parse_policy(policy_text(shape).encode())
    options = [
        SiteOptions(f"site-{number}", f"Hospital {number}", folder, dataset_id=f"d{number}", epsilon_max=float("inf"))
        for number in range(1, shape.sites + 1)
    ]
    study = create_study(folder / "study", policy_text(shape), sites=options, listen=f"127.0.0.1:{free_port()}")
    for option in options:
        path = study.site_configs[option.name].parent / "ledger.sqlite"
        Ledger.create(path, dataset_id=option.dataset_id, delta=1e-5, epsilon_max=float("inf"), unsafe=True).close()
    roles = [("server", study.server_config), *(("site", path) for path in study.site_configs.values())]
    children = [
        subprocess.Popen(
            [sys.executable, __file__, "--role", role, str(path), str(shape.dimension)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for role, path in roles
    ]
    codes = [child.wait(600) for child in children]
    events = read_events(study.server_config.parent / "state" / "events.jsonl")
    rounds = [event for event in events if event["event"] == "round"]
    if any(codes) or len(rounds) != shape.rounds:
        raise SystemExit(f"the run failed: exit codes {codes}, {len(rounds)} of {shape.rounds} rounds")
    starts = [event["time"] for event in events if event["event"] == "phase" and event["phase"] == "training"]
    later = rounds[1:]
    phases = {name: 1000 * statistics.median(event["seconds_by_phase"][name] for event in later) for name in PHASES}
    return {
        "shape": shape.name,
        "sites": shape.sites,
        "dimension": shape.dimension,
        "rounds": len(later),
        "milliseconds_by_phase": phases,
        "round_milliseconds": 1000 * statistics.median(event["seconds"] for event in later),
        "round_to_round_milliseconds": 1000 * statistics.median(np.diff(starts)),
        "bytes_up_per_site": max(rounds[-1]["bytes_up_by_site"].values()),
        "bytes_up_per_float": max(rounds[-1]["bytes_up_by_site"].values()) / shape.dimension,
    }


def free_port() -> int:
    import socket  # noqa: PLC0415

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def play(role: str, path: Path, dimension: int) -> None:
    """Be one of the processes of a measured run."""
    if role == "server":
        config = load_server_config(path, environment={})
        split_endpoint(config.server.listen)
        run_server(config, public_model=FixedModel(dimension))
    else:
        run_client(load_client_config(path, environment={}), source_factory=lambda *_: FixedSource(dimension))


def table(results: list[dict[str, Any]]) -> str:
    """The results side by side."""
    heads = [f"{result['sites']} sites, {result['dimension']:,} floats" for result in results]
    rows = [(LABELS.get(name, name), [result["milliseconds_by_phase"][name] for result in results]) for name in PHASES]
    rows.append(("one round", [result["round_milliseconds"] for result in results]))
    rows.append(("round to round", [result["round_to_round_milliseconds"] for result in results]))
    lines = [f"{'median milliseconds':<22}" + "".join(f"{head:>28}" for head in heads)]
    lines += [f"{label:<22}" + "".join(f"{value:>28.1f}" for value in values) for label, values in rows]
    lines.append(f"{'bytes up a float':<22}" + "".join(f"{result['bytes_up_per_float']:>28.3f}" for result in results))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--dimension", type=int, default=DEMO_DIMENSION, help="floats of the demo's module")
    parser.add_argument("--rounds", type=int, default=21, help="rounds of the demo's shape; the first is not counted")
    parser.add_argument("--folder", type=Path, help="where the ledgers and snapshots lie; the disk is part of a round")
    parser.add_argument("--role", choices=["server", "site"], help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        play(options.role, Path(options.rest[0]), int(options.rest[1]))
        return
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    shapes = [
        Shape("demo", sites=4, dimension=options.dimension, rounds=options.rounds),
        Shape("a million floats", sites=3, dimension=1_000_000, rounds=6),
    ]
    results = []
    for shape in shapes:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            results.append(measure(shape, Path(folder)))
    print(json.dumps(results, indent=2) if options.json else table(results))


if __name__ == "__main__":
    main()
