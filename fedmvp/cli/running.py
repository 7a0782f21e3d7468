"""The two long-running commands: start the server or the site, and leave the prompts file behind at the end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmvp.cli.program import say, stdout
from fedmvp.client.launch import launched
from fedmvp.client.runner import run_client
from fedmvp.server.app import run_server
from fedmvp.server.snapshot import read_snapshot
from fedmvp.study.config import ClientConfig, ServerConfig
from fedmvp.study.credentials import load_study
from fedmvp.study.policy import StudyPolicy
from fedmvp.study.prompts import write_prompts
from privacy.claim import Claim, make_claim
from privacy.ledger import Ledger

PROMPTS_FILE = "prompts.safetensors"


def serve(config: ServerConfig) -> None:
    """Run the coordinator; errors are those of ``run_server``."""
    over = run_server(config)
    snapshot = read_snapshot(config.server.state_dir)
    if snapshot is not None:
        policy = load_study(config.study).policy
        _leave_prompts(config.server.state_dir, snapshot.parameters, policy, round_number=snapshot.round)
    say(f"{over.rounds_completed} rounds completed: {over.reason}")


def participate(config: ClientConfig) -> None:
    """Take part as a site, or compute for the process that does; errors are those of ``run_client``."""
    launch = launched()
    if launch is None:
        outcome = run_client(config)
    else:
        from fedmvp.client.processes import compute, leading  # noqa: PLC0415 - loads torch

        if not launch.leads:
            compute(config, launch)
            return
        with leading(config, launch) as source_factory:
            outcome = run_client(config, source_factory=source_factory)
    if outcome.state is not None:
        policy = load_study(config.study).policy
        parameters = outcome.state.parameters
        with Ledger.open(config.privacy.ledger, read_only=True) as ledger:
            claim = make_claim(
                ledger,
                policy.privacy_parameters(len(parameters)),
                run_id=policy.study.run_id,
                rounds=policy.study.rounds,
            )
        _leave_prompts(config.state.dir, parameters, policy, round_number=outcome.last_round, claim=claim)
    say(f"took part in {outcome.rounds_published} published rounds: {outcome.reason}")


def _leave_prompts(
    folder: Path,
    parameters: NDArray[np.float32],
    policy: StudyPolicy,
    *,
    round_number: int,
    claim: Claim | None = None,
) -> None:
    path = folder / PROMPTS_FILE
    write_prompts(path, parameters, policy, round_number=round_number, claim=claim)
    stdout().print(str(path), soft_wrap=True)
