"""A site process for tests: the real run_client with a synthetic source of updates and, where asked for, a fault.

What only a test may do happens here and not in the product: logging the quantised vector, leaving the masks out,
stopping in the middle of a round.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmvp.cli.program import as_user_error, configure_logging
from fedmvp.client.runner import run_client
from fedmvp.client.update_source import load_trainer
from fedmvp.study.config import ClientConfig, load_client_config
from fedmvp.study.policy import StudyPolicy
from privacy.ledger import Ledger
from secure_agg.client import ClientSession
from secure_agg.keystream import CipherName
from secure_agg.masks import MaskJob
from secure_agg.messages import Confirmations, MaskedInput, PeerKeys, PeerShares, Survivors
from tests.e2e.synthetic import SyntheticSource


def no_mask(vector: NDArray[Any], jobs: Iterable[MaskJob], *, cipher: CipherName) -> None:
    """A broken mask generator: adds nothing."""


def session_class(options: argparse.Namespace, source: SyntheticSource | None) -> Any:  # noqa: C901 - one override a step
    """The session with the faults that were asked for."""

    def stall(step: str) -> None:
        if options.stall_at == step:
            print(f"stalled {step}", flush=True)
            time.sleep(3600)

    class FaultySession(ClientSession):
        def __init__(self, **arguments: Any) -> None:
            if options.zero_masks:
                arguments["masker"] = no_mask
            super().__init__(**arguments)
            stall("advertise_keys")

        def receive_peer_keys(self, message: PeerKeys) -> Any:
            stall("share_keys")
            return super().receive_peer_keys(message)

        def receive_peer_shares(self, message: PeerShares) -> None:
            super().receive_peer_shares(message)
            stall("reserve")

        def masked_input(self, vector: NDArray[Any], *arguments: Any, **named: Any) -> MaskedInput:
            if options.log is not None:
                stem = f"{self._site_id}-{self._context.round}"
                np.save(options.log / f"{stem}.npy", vector)
                if source is not None:
                    source.log(options.log / f"{stem}.json")
            masked = super().masked_input(vector, *arguments, **named)
            stall("masked_input")
            return masked

        def receive_survivors(self, message: Survivors) -> Any:
            stall("confirm_survivors")
            return super().receive_survivors(message)

        def receive_confirmations(self, message: Confirmations) -> Any:
            stall("unmask")
            return super().receive_confirmations(message)

    return FaultySession


class Source(SyntheticSource):
    """A source that can be slow or go wrong."""

    options: argparse.Namespace

    def under(self, _config: ClientConfig, policy: StudyPolicy, _ledger: Ledger) -> Source:
        """This source, once the study is known."""
        self.privacy = policy.privacy_parameters(self.dimension)
        return self

    def train_round(self, parameters: NDArray[np.float32]) -> NDArray[np.float64]:
        if self.options.stall_at == "training":
            print("stalled training", flush=True)
            time.sleep(3600)
        time.sleep(self.options.seconds)
        update = super().train_round(parameters)
        return np.full_like(update, np.nan) if self.options.nan else update


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--server", default=None)
    parser.add_argument("--dimension", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=1_234_567)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--nan", action="store_true")
    parser.add_argument("--size", type=float, default=1.0, help="factor on what is trained; 0 leaves the noise alone")
    parser.add_argument("--log", type=Path, default=None)
    parser.add_argument("--stall-at", default="")
    parser.add_argument("--zero-masks", action="store_true")
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--insecure", action="store_true")
    parser.add_argument("--reconnect", type=float, default=60.0)
    return parser.parse_args()


def main() -> int:
    options = parse()
    configure_logging()
    print(f"pid {os.getpid()}", flush=True)
    source: Source | None = None
    if not options.real:
        source = Source(options.dimension, options.seed, options.samples)
        source.options = options
        source.size = options.size
    try:
        config = load_client_config(
            options.config,
            overrides={"server.address": options.server},
            environment={},
            insecure=options.insecure,
        )
        outcome = run_client(
            config,
            session_factory=session_class(options, source),
            source_factory=load_trainer if source is None else source.under,
            listener=lambda event: print(event["event"], event.get("round", ""), flush=True),
            reconnect_seconds=options.reconnect,
        )
    except Exception as error:  # noqa: BLE001 - as the command does
        shown = as_user_error(error)
        print(f"error: {shown.what}\nremedy: {shown.remedy}", file=sys.stderr)
        return int(shown.exit_code)
    print(f"outcome {outcome.rounds_published}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
