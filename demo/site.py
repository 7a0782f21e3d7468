"""One site of the demo: the production client, with a session that writes down what it is about to send.

    python -m demo.site --config client.toml --log FOLDER [--die-in-round N]

The launcher reads these files after the run, to show that the published sums are the exact sums of the sites'
updates. A production client has no such session, and no flag, variable or key that could give it one.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmvp.cli.program import configure_logging, report
from fedmvp.client.runner import run_client
from fedmvp.study.config import load_client_config
from secure_agg.client import ClientSession
from secure_agg.messages import MaskedInput, PublishedSum
from secure_agg.ring import DecodedSum


class WrittenSession(ClientSession):
    """A session of the secure sum that keeps its input and the published sum in ``folder``.

    Args:
        folder: where ``sent-<round>.npy`` and ``published-<round>.npz`` go.
        die_in_round: in this round the process kills itself when it would send its vector; 0 never.
        session: what :class:`ClientSession` takes.
    """

    def __init__(self, folder: Path, die_in_round: int, **session: Any) -> None:
        super().__init__(**session)
        self._folder = folder
        self._dies = session["context"].round == die_in_round
        self._round = int(session["context"].round)

    def masked_input(self, vector: NDArray[Any], *arguments: Any, **options: Any) -> MaskedInput:
        """Write the input down, then mask it."""
        np.save(self._folder / f"sent-{self._round:05d}.npy", vector)
        masked = super().masked_input(vector, *arguments, **options)
        if self._dies:  # keys and shares are out, the budget is charged, nothing of the vector has left
            os.kill(os.getpid(), signal.SIGKILL)
        return masked

    def receive_result(self, message: PublishedSum) -> DecodedSum:
        """Write the published sum down, then check it."""
        survivors = np.asarray(message.survivors)
        np.savez(self._folder / f"published-{self._round:05d}.npz", total=message.total, survivors=survivors)
        return super().receive_result(message)


def main() -> None:
    """Run one site."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--die-in-round", type=int, default=0)
    arguments = parser.parse_args()
    arguments.log.mkdir(parents=True, exist_ok=True)

    def session(**values: Any) -> ClientSession:
        return WrittenSession(arguments.log, arguments.die_in_round, **values)

    configure_logging()
    try:
        run_client(load_client_config(arguments.config), session_factory=session)
    except Exception as error:  # noqa: BLE001 (shown as the production command shows it)
        sys.exit(report(error))


if __name__ == "__main__":
    main()
