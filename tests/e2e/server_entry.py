"""A coordinator process for tests: the real run_server with a synthetic model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fedmvp.cli.program import configure_logging
from fedmvp.errors import UserError
from fedmvp.server.app import run_server
from fedmvp.study.config import load_server_config
from tests.e2e.synthetic import SyntheticModel


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--dimension", type=int, default=64)
    parser.add_argument("--grace", type=float, default=20.0)
    parser.add_argument("--insecure", action="store_true")
    options = parser.parse_args()
    configure_logging()
    config = load_server_config(options.config, environment={}, insecure=options.insecure)
    try:
        run_server(
            config,
            public_model=SyntheticModel(options.dimension),
            on_listening=lambda port: print(f"listening {port}", flush=True),
            roster_grace_seconds=options.grace,
        )
    except UserError as error:
        print(f"error: {error.what}\nremedy: {error.remedy}", file=sys.stderr)
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
