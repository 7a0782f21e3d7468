"""What is written about spending: the body of a charge, and the sum of all charges."""
# ruff: noqa: A002 - "round" is the protocol's own word

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from privacy.chain import Value
from privacy.mechanism import DistributedGaussian, Mode, PrivacyParameters


def terms(delta: float, unit: str, accountant: str) -> str:
    """What an epsilon means, in words to be printed beside it.

    Args:
        delta: at which it is stated.
        unit: what one neighbour adds or removes.
        accountant: name and version of the accountant.
    """
    return f"at delta {delta:g}, adding or removing one {unit}; {accountant}"


@dataclass(frozen=True, slots=True)
class PrivacySpent:
    """What a dataset has spent in all its runs; never an epsilon without what it means.

    Args:
        epsilon: infinite as soon as one release had no differential privacy.
        delta: the delta at which epsilon is stated.
        neighboring_relation: which datasets count as neighbours.
        unit: what one neighbour adds or removes.
        accountant: name and version of the accountant of record.
        steps: noisy gradient steps charged.
        rounds: releases charged.
    """

    epsilon: float
    delta: float
    neighboring_relation: str
    unit: str
    accountant: str
    steps: int
    rounds: int


def charge_body(
    run_id: str, round: int, params: PrivacyParameters, *, policy_hash: bytes, after: float, accountant: str
) -> dict[str, Value]:
    """Everything a later reader needs to recompute and to judge one charge; no property of the records is in it."""
    body: dict[str, Value] = {
        "run_id": run_id,
        "round": round,
        "mode": params.mode.value,
        "unit": params.unit,
        "neighboring_relation": params.neighboring_relation,
        "sample_rate": float(params.sample_rate),
        "noise_multiplier": float(params.noise_multiplier),
        "steps": params.steps_per_round,
        "max_grad_norm": float(params.max_grad_norm),
        "expected_batch_size": float(params.expected_batch_size),
        "delta": float(params.delta),
        "epsilon_after": after,
        "accountant": accountant,
        "policy_hash": policy_hash.hex(),
        "time": now(),
    }
    mechanism = None if params.mode is Mode.UNSAFE_NO_DP else params.mechanism
    if isinstance(mechanism, DistributedGaussian):
        body |= {
            "accounted_sample_rate": float(mechanism.sample_rate),
            "dimension": mechanism.dimension,
            "shares": mechanism.shares,
            "grid": float(mechanism.grid),
            "rounding": mechanism.rounding.value,
        }
    return body


def now() -> str:
    """For the operator's eyes only: no decision depends on a clock."""
    return datetime.now(UTC).isoformat(timespec="seconds")
