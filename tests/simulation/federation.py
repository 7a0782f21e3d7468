"""A small consortium in memory: real sessions joined by a link on which a test can drop, alter and record messages."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_agg.client import ClientSession
from secure_agg.context import RoundContext
from secure_agg.errors import LocalProtocolError
from secure_agg.keys import SigningKey
from secure_agg.masks import Masker, add_masks
from secure_agg.policy import SecureSumPolicy
from secure_agg.roster import Roster, RosterEntry
from secure_agg.server import AggregationResult, ServerSession


class Phase(IntEnum):
    """The phase before whose message a site falls silent; NEVER means it stays to the end.

    NONCE exists on a sparse graph only.
    """

    KEYS = 1
    NONCE = 2
    SHARES = 3
    INPUT = 4
    CONFIRMATION = 5
    UNMASK = 6
    NEVER = 7


class Releases:
    """A register of released rounds in memory."""

    def __init__(self) -> None:
        self.marked: list[tuple[str, int]] = []

    def mark(self, run_id: str, round_number: int) -> None:
        """Mark a round; refuse a second time."""
        if (run_id, round_number) in self.marked:
            raise LocalProtocolError("released before")
        self.marked.append((run_id, round_number))


def signing_key(site_id: int) -> SigningKey:
    """Return a site's fixed test key."""
    return SigningKey.from_bytes(hashlib.sha256(b"site %d" % site_id).digest())


def make_roster(n: int, *, revoked: tuple[int, ...] = ()) -> Roster:
    """A roster of n sites of n organisations, with ids 11, 12, ... so that an id is never its share index."""
    return Roster(
        1,
        tuple(
            RosterEntry(
                site_id=site_id,
                name=f"site-{site_id}",
                organisation=f"organisation-{site_id}",
                verify_key=signing_key(site_id).verify_key,
                tls_key_sha256=hashlib.sha256(b"tls %d" % site_id).digest(),
                revoked=site_id in revoked,
            )
            for site_id in range(11, 11 + n)
        ),
    )


def make_policy(
    n: int, *, dimension: int = 8, colluders: int = 1, ring_bits: int = 32, **other: Any
) -> SecureSumPolicy:
    """A policy for cohorts of 3 to n sites whose values reach far enough for 2^i inputs."""
    values = {"min_cohort": 3, "min_honest": 2, "max_cohort": n, "fraction_bits": 4, "max_magnitude": 2**10} | other
    return SecureSumPolicy(colluders=colluders, dimension=dimension, ring_bits=ring_bits, **values)


def make_context(policy: SecureSumPolicy, roster: Roster, **changed: Any) -> RoundContext:
    """The context an honest server announces for everybody active on the roster, with anything about it changed."""
    context = RoundContext.under(
        policy,
        roster,
        run_id="test-run",
        round=7,
        attempt=2,
        policy_hash=hashlib.sha256(b"policy").digest(),
        model_hash=hashlib.sha256(b"model").digest(),
        cohort=changed.pop("cohort", roster.active_ids),
    )
    return replace(context, **changed)


def counter_randomness(label: str) -> Callable[[int], bytes]:
    """A reproducible source of bytes: SHA-256 in counter mode."""
    calls: Iterator[int] = iter(range(2**32))

    def draw(size: int) -> bytes:
        out = b""
        while len(out) < size:
            out += hashlib.sha256(f"{label}/{next(calls)}".encode()).digest()
        return out[:size]

    return draw


@dataclass
class Federation:
    """n client sessions and a server session, moved phase by phase.

    ``records`` keeps every message that reached the server, by phase name and site, also one that it then refused;
    ``held`` keeps, by holder and owner, the pair (mask key share, self mask share) that each site could open.
    """

    n: int = 4
    dimension: int = 8
    colluders: int = 1
    ring_bits: int = 32
    min_cohort: int = 3
    seeded: bool = False
    policy_changes: dict[str, Any] = field(default_factory=dict)
    client_masker: Callable[[int], Masker] = lambda _site: add_masks
    server_masker: Masker = add_masks
    inputs: dict[int, NDArray[Any]] = field(default_factory=dict)
    records: dict[str, dict[int, Any]] = field(default_factory=dict)
    releases: dict[int, Releases] = field(default_factory=dict)
    context_changes: dict[str, Any] = field(default_factory=dict)
    held: dict[int, dict[int, tuple[bytes, bytes]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.roster = make_roster(self.n)
        self.policy = make_policy(
            self.n,
            dimension=self.dimension,
            colluders=self.colluders,
            ring_bits=self.ring_bits,
            min_cohort=self.min_cohort,
            **self.policy_changes,
        )
        self.context = make_context(self.policy, self.roster, **self.context_changes)
        self.server = ServerSession(
            policy=self.policy, roster=self.roster, context=self.context, masker=self.server_masker
        )
        self.clients = {site_id: self.client(site_id) for site_id in self.context.cohort}
        for position, site_id in enumerate(self.context.cohort):
            # 2^i at site i, as far as the ring reaches: any input that is lost or counted twice shows in the sum.
            value = 2**position if position <= 10 else position
            self.inputs.setdefault(site_id, np.full(self.policy.length, value, dtype=self.policy.dtype))

    def client(self, site_id: int, **changed: Any) -> ClientSession:
        """A session of one site, with anything about it changed."""
        arguments: dict[str, Any] = {
            "policy": self.policy,
            "roster": self.roster,
            "site_id": site_id,
            "signing_key": signing_key(site_id),
            "context": self.context,
            "ledger_head": hashlib.sha256(b"ledger %d" % site_id).digest(),
            "masker": self.client_masker(site_id),
        }
        if self.seeded:
            arguments["randomness"] = counter_randomness(f"site {site_id}")
        return ClientSession(**(arguments | changed))

    def run(self, drops: Mapping[int, Phase] | None = None) -> AggregationResult:
        """Run a whole round in which each site falls silent before the phase given."""
        drops = drops or {}
        self.keys(drops)
        if self.context.graph == "harary":
            self.nonces(drops)
        self.shares(drops)
        self.masked(drops)
        self.confirm(drops)
        return self.unmask(drops)

    def keys(self, drops: Mapping[int, Phase] | None = None) -> None:
        """Phase 1: collect keys."""
        for site_id in self._alive(drops, Phase.KEYS, self.server.expected):
            self._note("keys", site_id, message := self.clients[site_id].advertise_keys())
            self.server.receive_advertise_keys(message)
        self.peer_keys = self.server.close_advertise_keys()

    def nonces(self, drops: Mapping[int, Phase] | None = None) -> None:
        """Phase 1b on a sparse graph: collect nonces."""
        for site_id in self._alive(drops, Phase.NONCE, self.server.expected):
            self._note("nonce", site_id, message := self.clients[site_id].reveal_nonce(self.peer_keys))
            self.server.receive_nonce(message)
        self.peer_nonces = self.server.close_nonces()

    def shares(self, drops: Mapping[int, Phase] | None = None) -> None:
        """Phase 2: collect sealed shares."""
        for site_id in self._alive(drops, Phase.SHARES, self.server.expected):
            client = self.clients[site_id]
            if self.context.graph == "harary":
                message = client.receive_peer_nonces(self.peer_nonces)
            else:
                message = client.receive_peer_keys(self.peer_keys)
            self._note("shares", site_id, message)
            self.server.receive_share_keys(message)
        self.peer_shares = self.server.close_share_keys()

    def masked(self, drops: Mapping[int, Phase] | None = None) -> None:
        """Phase 3: collect masked inputs."""
        for site_id in self._alive(drops, Phase.INPUT, self.server.expected):
            client = self.clients[site_id]
            client.receive_peer_shares(self.peer_shares[site_id])
            self.held[site_id] = dict(client._secrets._held)
            message = client.masked_input(self.inputs[site_id], self.releases.setdefault(site_id, Releases()))
            self._note("input", site_id, message)
            self.server.receive_masked_input(message)
        self.survivors = self.server.close_masked_inputs()

    def confirm(self, drops: Mapping[int, Phase] | None = None) -> None:
        """Phase 4: collect confirmations."""
        for site_id in self._alive(drops, Phase.CONFIRMATION, self.server.expected):
            self._note("confirmation", site_id, message := self.clients[site_id].receive_survivors(self.survivors))
            self.server.receive_confirmation(message)
        self.confirmations = self.server.close_confirmations()

    def unmask(self, drops: Mapping[int, Phase] | None = None) -> AggregationResult:
        """Phase 5: collect shares and open the sum."""
        for site_id in self._alive(drops, Phase.UNMASK, self.server.expected):
            self._note("unmask", site_id, message := self.clients[site_id].receive_confirmations(self.confirmations))
            self.server.receive_unmask_shares(message)
        self.result = self.server.close_unmask()
        return self.result

    def sum_of(self, sites: tuple[int, ...]) -> NDArray[Any]:
        """The exact sum of some sites' inputs, by Python integers."""
        modulus = 2**self.ring_bits
        columns = zip(*(self.inputs[site_id].tolist() for site_id in sites), strict=True)
        return np.array([sum(column) % modulus for column in columns], dtype=self.policy.dtype)

    def _note(self, name: str, site_id: int, message: object) -> None:
        self.records.setdefault(name, {})[site_id] = message

    @staticmethod
    def _alive(drops: Mapping[int, Phase] | None, phase: Phase, expected: tuple[int, ...]) -> list[int]:
        return [site_id for site_id in expected if (drops or {}).get(site_id, Phase.NEVER) > phase]
