"""A site process for tests: the real run_client with a synthetic source of updates.

What only a test may do happens here and not in the product: the quantised vector is logged as it goes into the session.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmvp.cli.program import as_user_error, configure_logging
from fedmvp.client.runner import run_client
from fedmvp.study.config import load_client_config
from secure_agg.client import ClientSession
from secure_agg.messages import MaskedInput
from tests.e2e.synthetic import SyntheticSource


class LoggingSession(ClientSession):
    """Writes each vector it is given to a file that only tests read."""

    folder: Path

    def masked_input(self, vector: NDArray[Any]) -> MaskedInput:
        context = self._context
        np.save(self.folder / f"{self._site_id}-{context.round}.npy", vector)
        return super().masked_input(vector)


class Source(SyntheticSource):
    """A source that can be slow, or go wrong, in a given round."""

    def __init__(self, dimension: int, seed: int, *, seconds: float, nan: bool) -> None:
        super().__init__(dimension, seed)
        self.seconds = seconds
        self.nan = nan

    def train_round(self, parameters: NDArray[np.float32]) -> NDArray[np.float64]:
        time.sleep(self.seconds)
        update = super().train_round(parameters)
        return np.full_like(update, np.nan) if self.nan else update


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--server", default=None)
    parser.add_argument("--dimension", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--nan", action="store_true")
    parser.add_argument("--log", type=Path, default=None)
    parser.add_argument("--insecure", action="store_true")
    parser.add_argument("--reconnect", type=float, default=30.0)
    options = parser.parse_args()
    configure_logging()
    if options.log is not None:
        LoggingSession.folder = options.log
    source = Source(options.dimension, options.seed, seconds=options.seconds, nan=options.nan)
    try:
        config = load_client_config(
            options.config,
            overrides={"server.address": options.server},
            environment={},
            insecure=options.insecure,
        )
        outcome = run_client(
            config,
            session_factory=LoggingSession if options.log is not None else ClientSession,
            source_factory=lambda *_: source,
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
