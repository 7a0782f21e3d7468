"""What privacy costs a round: the charge, the ledger's verification, and the noise in the mean of four sites."""

from __future__ import annotations

import math
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedmvp.training.aggregate import ServerOptimizer, ServerState
from fedmvp.training.local import LocalTrainer, LocalTraining
from fedmvp.training.rounds import Site, run_rounds
from privacy.accountant import calibrate_noise_multiplier
from privacy.chain import EntryKind, encode_body, link
from privacy.ledger import Ledger
from privacy.mechanism import ADD_OR_REMOVE_ONE, Mode, NoiseShares, PrivacyParameters, Rounding
from privacy.renyi import calibrate_distributed
from privacy.spending import charge_body
from privacy.storage import Marker
from secure_agg.policy import SecureSumPolicy

CHARGED_ROUNDS = 60
LEDGER_ROWS = 10_000
SITES, COLLUDERS, DIMENSION, EPSILON, DELTA = 4, 1, 100_000, 8.0, 1e-5
LEARNING_RATE, BATCH_SIZE, MAX_GRAD_NORM, FRACTION_BITS = 1.0, 500.0, 1.0, 36
RING = SecureSumPolicy(
    colluders=COLLUDERS,
    min_cohort=3,
    min_honest=2,
    max_cohort=SITES,
    dimension=DIMENSION,
    ring_bits=64,
    fraction_bits=FRACTION_BITS,
    max_magnitude=2**60,
)
SHARES = RING.threshold(SITES) - COLLUDERS
GRID = MAX_GRAD_NORM * LEARNING_RATE / BATCH_SIZE * 2.0**FRACTION_BITS


def parameters(mode: Mode, *, noise_multiplier: float = 5.1, sample_rate: float = 0.5) -> PrivacyParameters:
    """The parameters of a study of one step a round."""
    shares = NoiseShares(dimension=DIMENSION, shares=SHARES, grid=GRID, clamp=2**40)
    return PrivacyParameters(
        mode=mode,
        unit="record",
        neighboring_relation=ADD_OR_REMOVE_ONE,
        sample_rate=sample_rate,
        noise_multiplier=noise_multiplier,
        max_grad_norm=MAX_GRAD_NORM,
        expected_batch_size=BATCH_SIZE,
        steps_per_round=1,
        delta=DELTA,
        noise_shares=shares if mode.is_distributed else None,
    )


def charging(rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds to charge a round, durably, after the check that a client makes before it trains; by mode."""
    found = {}
    for mode in (Mode.RECORD_LOCAL, Mode.RECORD_DISTRIBUTED):
        chosen = parameters(mode)
        checks, charges = [], []
        with (
            tempfile.TemporaryDirectory() as folder,
            Ledger.create(Path(folder) / "l.db", dataset_id="b", delta=DELTA, epsilon_max=50.0) as ledger,
        ):
            ledger.check_affordable(chosen)  # imports the accounting
            for number in range(1, rounds + 1):
                start = time.perf_counter()
                ledger.check_affordable(chosen)
                checked = time.perf_counter()
                ledger.reserve("run", number, chosen, bytes(32)).consume()
                charges.append(1e3 * (time.perf_counter() - checked))
                checks.append(1e3 * (checked - start))
        found[mode.value] = {
            "charge_median_ms": statistics.median(charges),
            "charge_worst_ms": max(charges),
            "check_before_training_median_ms": statistics.median(checks),
        }
    return found


def verification(rows: int) -> dict[str, float]:
    """Seconds to open a ledger of so many rows, which reads and verifies every one of them."""
    chosen = parameters(Mode.RECORD_DISTRIBUTED)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "l.db"
        with Ledger.create(path, dataset_id="b", delta=DELTA, epsilon_max=50.0) as ledger:
            entries = list(ledger.entries())
        while len(entries) < rows:
            number = len(entries)
            body = charge_body("run", number, chosen, policy_hash=bytes(32), after=1.0, accountant="none")
            entries.append(link(number, EntryKind.CHARGE, body, entries[-1].hash))
        connection = sqlite3.connect(path)
        with connection:  # at once; a client writes and syncs them one by one
            connection.executemany(
                "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)",
                [(e.seq, e.kind.value, encode_body(e.body), e.previous, e.hash, e.release_key) for e in entries[1:]],
            )
        connection.close()
        Marker(entries[-1].seq, entries[-1].hash).write(path)
        start, busy = time.perf_counter(), time.process_time()
        with Ledger.open(path, read_only=True) as ledger:
            seconds, busy = time.perf_counter() - start, time.process_time() - busy
            assert len(ledger.entries()) == rows
    return {"rows": rows, "seconds": seconds, "processor_seconds": busy}


def deviation_of_mean(chosen: PrivacyParameters, folder: Path) -> float:
    """Standard deviation of the noise in the mean of four sites without records, after one round of the real code."""

    def loss_per_sample(module: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return torch.as_tensor(module(batch[0])).squeeze(-1)

    layer = nn.Linear(DIMENSION, 1, bias=False)
    nn.init.zeros_(layer.weight)
    training = LocalTraining(learning_rate=LEARNING_RATE)
    none = (torch.zeros((0, DIMENSION)),)
    with tempfile.TemporaryDirectory(dir=folder) as ledgers:
        opened = [
            Ledger.create(Path(ledgers) / f"{i}.db", dataset_id="b", delta=DELTA, epsilon_max=500.0)
            for i in range(SITES)
        ]
        sites = [
            Site(LocalTrainer(layer, none, loss_per_sample, training=training, privacy=chosen, ledger=book), book)
            for book in opened
        ]
        after = run_rounds(
            sites,
            ServerState.initial(np.zeros(DIMENSION, dtype=np.float32)),
            rounds=1,
            optimizer=ServerOptimizer(),
            privacy=chosen,
            run_id="run",
            secure_sum=RING if chosen.mode.is_distributed else None,
        )
        for book in opened:
            book.close()
    return float(after.parameters.std())


def noise_in_the_mean(rounds: int) -> list[dict[str, Any]]:
    """How much louder the mean of four sites is in record-local than in record-distributed; predicted and measured.

    Theory: sqrt(t - c) where both have one noise multiplier, times the ratio of the multipliers where both have one
    epsilon, which each accountant gives for its mode.
    """
    rows = []
    for sample_rate in (1.0, 0.5):
        local = calibrate_noise_multiplier(EPSILON, DELTA, sample_rate, rounds)
        shared = calibrate_distributed(
            EPSILON,
            DELTA,
            sample_rate=sample_rate,
            steps=rounds,
            dimension=DIMENSION,
            shares=SHARES,
            grid=GRID,
            rounding=Rounding.DITHERED,
        )
        for same, ours in (("noise multiplier", local), ("epsilon", shared)):
            chosen = parameters(Mode.RECORD_LOCAL, noise_multiplier=local, sample_rate=sample_rate)
            pooled = parameters(Mode.RECORD_DISTRIBUTED, noise_multiplier=ours, sample_rate=sample_rate)
            with tempfile.TemporaryDirectory() as folder:
                measured = deviation_of_mean(chosen, Path(folder)) / deviation_of_mean(pooled, Path(folder))
            rows.append(
                {
                    "same": same,
                    "sample_rate": sample_rate,
                    "multiplier_local": local,
                    "multiplier_distributed": ours,
                    "ratio_predicted": math.sqrt(SHARES) * local / ours,
                    "ratio_measured": measured,
                }
            )
    return rows


def rounds_report(charged: int, rows: int) -> dict[str, Any]:
    """All figures of this module."""
    return {
        "charging": charging(charged),
        "verification": verification(rows),
        "noise_in_the_mean_of_four": noise_in_the_mean(CHARGED_ROUNDS),
    }


def print_rounds(report: dict[str, Any]) -> None:
    """The figures as tables."""
    print(f"\n{'charging a round, ms':<34}{'median':>10}{'worst':>10}{'check before training':>24}")
    for mode, row in report["charging"].items():
        print(
            f"{mode:<34}{row['charge_median_ms']:>10.1f}{row['charge_worst_ms']:>10.1f}"
            f"{row['check_before_training_median_ms']:>24.1f}"
        )
    verified = report["verification"]
    print(
        f"\na ledger of {verified['rows']} rows is read and verified in {verified['seconds']:.2f} s, "
        f"{verified['processor_seconds']:.2f} s of them on the processor"
    )
    print(f"\n{'local over distributed, noise in the mean':<44}{'rate':>6}{'predicted':>11}{'measured':>10}")
    for row in report["noise_in_the_mean_of_four"]:
        print(
            f"{'same ' + row['same']:<44}{row['sample_rate']:>6.2f}{row['ratio_predicted']:>11.3f}"
            f"{row['ratio_measured']:>10.3f}"
        )
