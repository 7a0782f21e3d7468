"""Rounds in one process, without network or secure sum: for baselines and for choosing settings on public images.

The arithmetic is the real system's, but for the fixed-point encoding: the same trainers, the same step on the sum.
Each round is reserved at every site's ledger before its update is used, as the client does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fedmvp.training.aggregate import ServerOptimizer, ServerState, apply_sum
from fedmvp.training.local import LocalTrainer
from privacy.ledger import Ledger
from privacy.mechanism import PrivacyParameters
from secure_agg.policy import SecureSumPolicy

AfterRound = Callable[[int, ServerState], None]
"""Called with (round from 1, the state after it)."""


@dataclass(frozen=True)
class Site:
    """A simulated site: its trainer and the ledger that trainer was built on."""

    trainer: LocalTrainer
    ledger: Ledger


def run_rounds(
    sites: Sequence[Site],
    state: ServerState,
    *,
    rounds: int,
    optimizer: ServerOptimizer,
    privacy: PrivacyParameters,
    run_id: str,
    secure_sum: SecureSumPolicy | None = None,
    after_round: AfterRound | None = None,
) -> ServerState:
    """Run rounds in which every site takes part, and return the final state.

    Args:
        sites: the sites; trainers may share one module.
        state: where to start.
        rounds: how many.
        optimizer: step rule on the sum.
        privacy: what each round is charged for; the same value the trainers have.
        run_id: name under which the ledgers are charged.
        secure_sum: the ring's limits; in the distributed modes, whose noise is drawn on its grid, and in them alone.
        after_round: called after each round.

    Raises:
        BudgetExceeded: a site's ledger refuses the next round.
        PolicyError: the number of sites is none that the secure sum allows.
        ValueError: a ring without a distributed mode, or the reverse.
    """
    if privacy.mode.is_distributed != (secure_sum is not None):
        raise ValueError("a distributed mode needs the ring of its secure sum, and no other mode has one")
    for round_number in range(1, rounds + 1):
        total = np.zeros(state.dimension, dtype=np.float64)
        for site in sites:
            if secure_sum is not None:
                honest_survivors = secure_sum.threshold(len(sites)) - secure_sum.colluders
                on_grid = site.trainer.train_on_grid(state.parameters, honest_survivors)
                update = on_grid * 2.0**-secure_sum.fraction_bits
            else:
                update = site.trainer.train_round(state.parameters)
            site.ledger.reserve(run_id, round_number, privacy, bytes(32)).consume()
            total += update
        state = apply_sum(state, total, len(sites), optimizer)
        if after_round is not None:
            after_round(round_number, state)
    return state
