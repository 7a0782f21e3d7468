"""A site's process up to its first DP-SGD step, timed part by part from the moment it was started.

    python -m benchmarks.first_step CLIENT.TOML

The child of `benchmarks.startup`: the parent says in a variable when it started this process.
"""

# ruff: noqa: PLC0415 - what is imported when is what is measured

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

Seconds = tuple[float, float]
"""Wall and processor."""

STARTED = "BENCHMARK_STARTED"
"""The variable with the time at which the process was started, in seconds since 1970."""


def first_step(path: Path) -> dict[str, Seconds]:
    """What `fedmvp.client.runner.run_client` does up to a site's first update, with the seconds of each part."""
    laps: dict[str, Seconds] = {}
    started = last = float(os.environ[STARTED])
    processor = 0.0

    def lap(name: str) -> None:
        nonlocal last, processor
        now, used = time.time(), time.process_time()
        laps[name], last, processor = (now - last, used - processor), now, used

    from fedmvp.client import runner  # noqa: F401 - what the process of a site loads first
    from fedmvp.client.budget import budget_check
    from fedmvp.study.config import load_client_config
    from fedmvp.study.credentials import load_site
    from privacy.ledger import Ledger

    lap("Python, gRPC, cryptography")
    config = load_client_config(path, environment={})
    policy = load_site(config).study.policy
    with Ledger.open(config.privacy.ledger) as ledger:
        budget_check(config, policy, ledger, policy.privacy_parameters(1))()
        lap("configuration, ledger, budget")
        from fedmvp.client.trainer import build_trainer

        lap("PyTorch, open_clip, Opacus")
        trainer = build_trainer(config, policy, ledger)
        lap("backbone, attributes, images, features")
        trainer.train_round(trainer.initial_parameters())
        lap("the step")
    laps["in all"] = (last - started, processor)
    return laps


if __name__ == "__main__":
    print(json.dumps(first_step(Path(sys.argv[1]))))
