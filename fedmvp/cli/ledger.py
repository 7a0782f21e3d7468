"""``fedmvp-client ledger``: what a site's records have spent."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from fedmvp.cli.presentation import print_json, print_pairs, print_table
from fedmvp.cli.program import say, stdout
from fedmvp.errors import ExitCode, UserError
from fedmvp.study.config import ClientConfig
from fedmvp.study.credentials import load_study
from privacy.ledger import Ledger


def open_for_reading(path: Path) -> Ledger:
    """Open a ledger beside a running client; errors are the ledger's own."""
    return Ledger.open(path, read_only=True)


def print_ledger(config: ClientConfig, style: str) -> None:
    """Print the ledger's entries and the total, which is recomputed from the entries."""
    with open_for_reading(config.privacy.ledger) as ledger:
        summary = describe(ledger)
        entries = [_entry(entry) for entry in ledger.entries()]
    if style == "json":
        print_json({**summary, "entries": entries})
        return
    print_pairs((name.replace("_", " "), _text(value)) for name, value in summary.items())
    columns = ("#", "kind", "run", "round", "steps", "noise", "rate", "epsilon after", "time")
    keys = ("seq", "kind", "run_id", "round", "steps", "noise_multiplier", "sample_rate", "epsilon_after", "time")
    print_table("Entries", columns, ([entry.get(key) for key in keys] for entry in entries))


def create_ledger(config: ClientConfig, *, unsafe: bool) -> None:
    """Create the ledger that client.toml names, at the delta of the signed policy.

    Raises:
        UserError: the study is not installed, or --unsafe-no-dp and epsilon_max = inf do not come together.
        privacy.errors.LedgerExists: there is one already.
    """
    policy = load_study(config.study).policy
    limit = config.privacy.epsilon_max
    if unsafe != math.isinf(limit):
        raise UserError(
            "--unsafe-no-dp and [privacy] epsilon_max = inf belong together",
            remedy="private records: a finite epsilon_max, and no --unsafe-no-dp; public data only: both",
            exit_code=ExitCode.USAGE,
        )
    if unsafe:
        say("warning: this ledger permits releases without any privacy, for good")
    with Ledger.create(
        config.privacy.ledger,
        dataset_id=config.data.dataset_id,
        delta=policy.privacy.delta,
        epsilon_max=limit,
        unit=policy.privacy.unit,
        unsafe=unsafe,
    ) as ledger:
        stdout().print(ledger.head.hex(), soft_wrap=True)
    say(f"created {config.privacy.ledger} for {config.data.dataset_id}: epsilon at most {limit:g}")


def verify_ledger(config: ClientConfig) -> None:
    """Check the whole chain and print its head."""
    with open_for_reading(config.privacy.ledger) as ledger:
        stdout().print(ledger.head.hex(), soft_wrap=True)
        say(f"{len(ledger.entries())} entries, every link holds")


def describe(ledger: Ledger) -> dict[str, Any]:
    """The ledger's totals, JSON-ready; never an epsilon without what it means."""
    spent = ledger.spent()
    return {
        "dataset_id": ledger.dataset_id,
        "epsilon": spent.epsilon,
        "epsilon_max": ledger.epsilon_max,
        "delta": spent.delta,
        "unit": spent.unit,
        "neighboring_relation": spent.neighboring_relation,
        "accountant": spent.accountant,
        "rounds": spent.rounds,
        "steps": spent.steps,
        "head": ledger.head.hex(),
    }


def _entry(entry: Any) -> dict[str, Any]:
    return {"seq": entry.seq, "kind": str(entry.kind), **entry.body, "hash": entry.hash.hex()}


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
