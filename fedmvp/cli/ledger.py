"""``fedmvp-client ledger``: what a site's records have spent, what is left, and the whole chain for others to check."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedmvp.cli.budget import plan_budget
from fedmvp.cli.presentation import plain, print_json, print_pairs, print_table
from fedmvp.cli.program import say, stdout
from fedmvp.errors import ExitCode, UserError
from fedmvp.study.config import ClientConfig
from fedmvp.study.credentials import load_study
from fedmvp.study.policy import StudyPolicy
from privacy.chain import LedgerEntry
from privacy.ledger import Ledger
from privacy.mechanism import Unit
from privacy.seeded import SEEDED_DATASET
from privacy.spending import terms

EXPORT_FORMAT = "fedmvp-ledger-export-v1"


def open_for_reading(path: Path) -> Ledger:
    """Open a ledger beside a running client; errors are the ledger's own."""
    return Ledger.open(path, read_only=True)


@contextmanager
def open_own_ledger(config: ClientConfig, policy: StudyPolicy | None) -> Iterator[Ledger]:
    """Open the ledger of a site's records for reading, and refuse one that the site or the study cannot use.

    Args:
        config: names the ledger and the records.
        policy: the study; None where only the records matter.

    Raises:
        UserError: it is of other records, or of another unit or delta than the study.
        privacy.errors.LedgerError: it is missing, damaged or rolled back.
    """
    with open_for_reading(config.privacy.ledger) as ledger:
        require_own_records(ledger, config)
        if policy is not None:
            require_same_terms(ledger, policy)
        yield ledger


def require_own_records(ledger: Ledger, config: ClientConfig) -> None:
    """Refuse the ledger of another data set than client.toml names."""
    if ledger.dataset_id != config.data.dataset_id:
        raise UserError(
            f"{config.privacy.ledger} belongs to data set {ledger.dataset_id!r}, client.toml names "
            f"{config.data.dataset_id!r}",
            remedy="give every data set its own ledger, or correct [data] dataset_id",
            exit_code=ExitCode.LEDGER,
        )


def require_same_terms(ledger: Ledger, policy: StudyPolicy) -> None:
    """Refuse a study whose epsilons are per another unit, or at another delta, than the ledger's."""
    study = (policy.privacy.unit, policy.privacy.delta)
    if (ledger.unit, ledger.delta) != study:
        raise UserError(
            f"the study protects one {study[0]} at delta {study[1]:g}, the ledger {ledger.path} was created for one "
            f"{ledger.unit} at delta {ledger.delta:g}",
            remedy="a ledger keeps both for life, because epsilons of different meaning do not add up: take part in a "
            "study of the same unit and delta, or with other records and their own ledger",
            exit_code=ExitCode.LEDGER,
        )


def print_ledger(config: ClientConfig, style: str) -> None:
    """Print the ledger's entries and the total, which is recomputed from the entries; the chain is verified first."""
    with open_own_ledger(config, None) as ledger:
        summary = {**describe(ledger), **_remaining(ledger, config)}
        entries = [_entry(entry) for entry in ledger.entries()]
    if style == "json":
        print_json({**summary, "entries": entries})
        return
    print_pairs((name.replace("_", " "), _text(value)) for name, value in summary.items())
    columns = ("#", "kind", "run", "round", "steps", "noise", "rate", "epsilon after", "time")
    keys = ("seq", "kind", "run_id", "round", "steps", "noise_multiplier", "sample_rate", "epsilon_after", "time")
    print_table("Entries", columns, ([entry.get(key) for key in keys] for entry in entries))


def create_ledger(config: ClientConfig, *, unsafe: bool, unit: str | None = None) -> None:
    """Create the ledger that client.toml names, at the unit and delta of the signed policy.

    Args:
        config: names the ledger and the records.
        unsafe: permit releases without privacy.
        unit: what the person believes to be protected; None takes the study's unit.

    Raises:
        UserError: the study is not installed or protects another unit, or --unsafe-no-dp and epsilon_max = inf do not
            come together.
        privacy.errors.LedgerExists: there is one already.
    """
    policy = load_study(config.study).policy
    if unit is not None and unit != policy.privacy.unit:
        raise UserError(
            f"--unit {unit} does not fit: the study protects one {policy.privacy.unit}",
            remedy=f"leave --unit out, or ask the consortium for a study of unit {unit}; a ledger keeps its unit for "
            "life",
            exit_code=ExitCode.USAGE,
        )
    if config.data.dataset_id.startswith(SEEDED_DATASET):
        raise UserError(
            f"[data] dataset_id {config.data.dataset_id!r} is a name of studies, whose noise can be taken away again",
            remedy=f"choose a name that does not start with {SEEDED_DATASET}",
        )
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
        meaning = terms(ledger.delta, ledger.unit, policy.accountant)
        protected = _protected(Unit(ledger.unit))
    say(f"created {config.privacy.ledger} for {config.data.dataset_id}: epsilon at most {limit:g} {meaning}")
    say(f"protected is {protected}")


def verify_ledger(config: ClientConfig) -> None:
    """Check the whole chain and print its head."""
    with open_for_reading(config.privacy.ledger) as ledger:
        stdout().print(ledger.head.hex(), soft_wrap=True)
        say(f"{len(ledger.entries())} entries, every link holds")


def export_ledger(config: ClientConfig, path: Path) -> None:
    """Write every entry with all its fields and both its hashes to a new file; prints the path.

    Args:
        config: names the ledger.
        path: ends in .json or .csv, and does not exist.

    Raises:
        UserError: another ending, or something is there already.
    """
    if path.suffix.lower() not in {".json", ".csv"}:
        raise UserError(
            f"{path} ends in neither .json nor .csv", remedy="name a file of one kind", exit_code=ExitCode.USAGE
        )
    with open_for_reading(config.privacy.ledger) as ledger:
        entries = ledger.entries()
        content = _as_json(ledger) if path.suffix.lower() == ".json" else _as_csv(entries)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise UserError(
            f"{path} exists already, and an export overwrites nothing",
            remedy="name another file, or move this one away",
            exit_code=ExitCode.USAGE,
        ) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    stdout().print(str(path), soft_wrap=True)
    say(f"{len(entries)} entries, every link holds; head {entries[-1].hash.hex()}")


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
        "chain": f"{len(ledger.entries())} entries, every link holds",
    }


def _remaining(ledger: Ledger, config: ClientConfig) -> dict[str, Any]:
    """Rounds of the installed study that the budget still allows; nothing where no study that fits is installed."""
    try:
        policy = load_study(config.study).policy
        require_same_terms(ledger, policy)
    except UserError as error:
        return {"rounds_remaining": f"not known: {error.what}"}
    plan = plan_budget(ledger, policy, epsilon_max=config.privacy.epsilon_max)
    return {"rounds_remaining": plan.affordable_round - plan.last_round}


def _protected(unit: Unit) -> str:
    return {
        Unit.RECORD: "one record: a patient with k images has k times as much",
        Unit.PATIENT: "one patient, with all images",
        Unit.SITE: "the whole site",
    }[unit]


def _entry(entry: LedgerEntry) -> dict[str, Any]:
    return {"seq": entry.seq, "kind": str(entry.kind), **entry.body, "hash": entry.hash.hex()}


def _as_json(ledger: Ledger) -> bytes:
    """The chain as a document from which every hash can be computed again."""
    entries = [
        {
            "seq": entry.seq,
            "kind": str(entry.kind),
            "body": dict(entry.body),
            "previous": entry.previous.hex(),
            "hash": entry.hash.hex(),
        }
        for entry in ledger.entries()
    ]
    document = {"format": EXPORT_FORMAT, "total": describe(ledger), "entries": entries}
    return json.dumps(plain(document), indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _as_csv(entries: tuple[LedgerEntry, ...]) -> bytes:
    """One line an entry; the columns between kind and previous are the fields of all bodies."""
    names = sorted({name for entry in entries for name in entry.body})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["seq", "kind", *names, "previous", "hash"])
    for entry in entries:
        body = [entry.body.get(name, "") for name in names]
        writer.writerow([entry.seq, str(entry.kind), *body, entry.previous.hex(), entry.hash.hex()])
    return text.getvalue().encode()


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
