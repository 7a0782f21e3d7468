"""The seeded rounds that the vectors describe, and their messages as plain dictionaries."""

from __future__ import annotations

import dataclasses
import hashlib
from copy import deepcopy
from functools import lru_cache
from typing import Any
from unittest.mock import patch

import numpy as np

from secure_agg import keys
from secure_agg.server import ServerSession
from tests.simulation.federation import Federation, Phase
from tests.simulation.naive import NaiveRound, borrowed_x25519, x25519

PHASES = {"keys": Phase.KEYS, "nonce": Phase.NONCE, "shares": Phase.SHARES, "input": Phase.INPUT}
PHASES |= {"confirmation": Phase.CONFIRMATION, "unmask": Phase.UNMASK}


def plain(value: Any) -> Any:
    """A message as dictionaries, lists, integers and bytes."""
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value


@dataclasses.dataclass
class BaseRound:
    """A whole seeded round: what every site sent, what the server sent, and the server before each phase."""

    federation: Federation
    drops: dict[int, Phase]
    servers: dict[str, ServerSession] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        federation = self.federation
        runs = {"keys": federation.keys, "nonce": federation.nonces, "shares": federation.shares}
        runs |= {"input": federation.masked, "confirmation": federation.confirm, "unmask": federation.unmask}
        # Every site checks the same signatures of everybody: they are remembered, or a hundred sites would take long.
        with patch.object(keys, "verify", lru_cache(maxsize=None)(keys.verify)):
            for phase, run in runs.items():
                if phase != "nonce" or federation.context.graph == "harary":
                    self.servers[phase] = deepcopy(federation.server)
                    run(self.drops)

    def answered(self) -> dict[str, list[int]]:
        """The sites that answered in each phase."""
        return {phase: sorted(messages) for phase, messages in self.federation.records.items()}


def seeded_bytes(label: str) -> Any:
    """SHA-256 of "label/0", "label/1", ... as far as each call needs; a call starts with a fresh hash."""
    calls = 0

    def draw(size: int) -> bytes:
        nonlocal calls
        out = b""
        while len(out) < size:
            out += hashlib.sha256(b"%s/%d" % (label.encode(), calls)).digest()
            calls += 1
        return out[:size]

    return draw


def second_program(base: BaseRound) -> NaiveRound:
    """The same round by the second program, from the sites' private values and the set of answers alone."""
    federation = base.federation
    context = dataclasses.asdict(federation.context)
    sites = federation.context.cohort
    return NaiveRound(
        roster=dataclasses.asdict(federation.roster),
        policy=dataclasses.asdict(federation.policy),
        announced={
            name: context[name] for name in ("run_id", "round", "attempt", "policy_hash", "model_hash", "cohort")
        },
        signing={site: hashlib.sha256(b"site %d" % site).digest() for site in sites},
        draw={site: seeded_bytes(f"site {site}") for site in sites},
        heads={site: hashlib.sha256(b"ledger %d" % site).digest() for site in sites},
        inputs={site: federation.inputs[site].tolist() for site in sites},
        answers=base.answered(),
        exchange=borrowed_x25519 if len(sites) > 4 else x25519,
    )


@lru_cache(maxsize=1)
def complete_4() -> BaseRound:
    """Four sites 11 to 14 on the complete graph; 14 falls silent after it has shared its keys."""
    return BaseRound(Federation(4, seeded=True), {14: Phase.INPUT})


@lru_cache(maxsize=1)
def weighted_4() -> BaseRound:
    """As complete_4, with weights, by ChaCha20 in the ring of 16 bits; nobody falls silent."""
    changes = {"max_weight": 5, "mask_cipher": "chacha20", "max_magnitude": 2**10}
    federation = Federation(4, ring_bits=16, dimension=7, seeded=True, policy_changes=changes)
    for position, vector in enumerate(federation.inputs.values()):
        vector[:] = [(-(2**8)) % 2**16, 0, 1, 2, 3, 4, 5 + position, position + 1]
    return BaseRound(federation, {})


@lru_cache(maxsize=1)
def ragged_13() -> BaseRound:
    """Thirteen sites in the ring of 64 bits, of which one falls silent before each phase."""
    drops = {12: Phase.KEYS, 19: Phase.SHARES, 15: Phase.INPUT, 14: Phase.CONFIRMATION, 17: Phase.UNMASK}
    return BaseRound(Federation(13, ring_bits=64, dimension=5, seeded=True), drops)


@lru_cache(maxsize=1)
def sparse_101() -> BaseRound:
    """Sites 11 to 111 on a sparse graph; 40 is silent after its keys, 28 after its shares, 77 at the end."""
    federation = Federation(101, seeded=True, policy_changes={"dropout_permille": 100})
    return BaseRound(federation, {40: Phase.NONCE, 28: Phase.INPUT, 77: Phase.UNMASK})


BASES = {"complete-4": complete_4, "weighted-4": weighted_4, "ragged-13": ragged_13, "sparse-101": sparse_101}
