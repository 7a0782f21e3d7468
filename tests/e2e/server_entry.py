"""A coordinator process for tests: the real run_server with a synthetic model."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from fedmvp.cli.program import as_user_error, configure_logging
from fedmvp.server.app import run_server
from fedmvp.study.config import load_server_config
from secure_agg.masks import add_masks
from tests.e2e.site_entry import no_mask
from tests.e2e.synthetic import SyntheticModel


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--dimension", type=int, default=64)
    parser.add_argument("--grace", type=float, default=20.0)
    parser.add_argument("--record", type=Path, default=None)
    parser.add_argument("--zero-masks", action="store_true")
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--insecure", action="store_true")
    return parser.parse_args()


def serve(options: argparse.Namespace, **seams: Any) -> int:
    configure_logging()
    print(f"pid {os.getpid()}", flush=True)
    try:
        config = load_server_config(options.config, environment={}, insecure=options.insecure)
        run_server(
            config,
            public_model=None if options.real else SyntheticModel(options.dimension),
            on_listening=lambda port: print(f"listening {port}", flush=True),
            roster_grace_seconds=options.grace,
            masker=no_mask if options.zero_masks else add_masks,
            **seams,
        )
    except Exception as error:  # noqa: BLE001 - as the command does
        shown = as_user_error(error)
        print(f"error: {shown.what}\nremedy: {shown.remedy}", file=sys.stderr)
        return int(shown.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(serve(parse()))
