"""Whole rounds driven message by message with a place to step in before each, and copies of sessions to try on."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from unittest.mock import patch

import numpy as np

from secure_agg import keys, server
from secure_agg.client import ClientSession
from secure_agg.dealing import AttemptSecrets
from secure_agg.server import ServerSession
from tests.simulation import federation as simulation
from tests.simulation.federation import Federation, Releases, counter_randomness

SPARSE_SITES = 101
MAKE_ROSTER = simulation.make_roster


@dataclass(frozen=True)
class Stage:
    """One exchange: what the server sends a site, the call that takes it, and the call that takes the answer."""

    name: str
    asks: str  # the site's method that takes the server's message, or makes the first one
    receives: str  # the server's method that takes the answer; empty after the last
    closes: str
    asked_step: str  # the step at which a site refuses
    answered_step: str  # the step at which the server refuses


COMPLETE = (
    Stage("keys", "advertise_keys", "receive_advertise_keys", "close_advertise_keys", "", "advertise_keys"),
    Stage("shares", "receive_peer_keys", "receive_share_keys", "close_share_keys", "advertise_keys", "share_keys"),
    Stage("input", "receive_peer_shares", "receive_masked_input", "close_masked_inputs", "share_keys", "masked_input"),
    Stage(
        "confirmation",
        "receive_survivors",
        "receive_confirmation",
        "close_confirmations",
        "confirm_survivors",
        "confirm_survivors",
    ),
    Stage("unmask", "receive_confirmations", "receive_unmask_shares", "close_unmask", "unmask", "unmask"),
    Stage("publish", "receive_result", "", "", "publish", ""),
)
SPARSE = (
    COMPLETE[0],
    Stage("nonce", "reveal_nonce", "receive_nonce", "close_nonces", "advertise_keys", "reveal_nonces"),
    Stage("shares", "receive_peer_nonces", "receive_share_keys", "close_share_keys", "reveal_nonces", "share_keys"),
    *COMPLETE[2:],
)


class Consortium(Federation):
    """A federation on whose roster there is one revoked site more, and whose sites draw the same in every run.

    What they draw differs from one context to another.
    """

    def __post_init__(self) -> None:
        """Build it as a federation is built, with the longer roster."""

        def longer(n: int) -> Any:
            return MAKE_ROSTER(n + 1, revoked=(11 + n,))

        with patch.object(simulation, "make_roster", longer):
            super().__post_init__()

    def client(self, site_id: int, **changed: Any) -> ClientSession:
        """A session of one site, with anything about it changed."""
        context = changed.get("context", self.context)
        randomness = counter_randomness(f"site {site_id} in {context.hash.hex()}")
        return super().client(site_id, **({"randomness": randomness} | changed))

    @property
    def sparse(self) -> bool:
        """Whether the attempt has a sparse graph."""
        return self.context.graph == "harary"


def fork(session: Any) -> Any:
    """A copy of a session that shares nothing that changes."""
    twin = copy.copy(session)
    for name, value in vars(session).items():
        if isinstance(value, dict | set | np.ndarray):
            setattr(twin, name, value.copy())
        elif isinstance(value, AttemptSecrets):
            setattr(twin, name, fork(value))
    return twin


def fork_all(federation: Federation) -> Any:
    """A copy of a federation of which every session can be moved on by itself."""
    twin = copy.copy(federation)
    twin.server = fork(federation.server)
    twin.clients = {site_id: fork(client) for site_id, client in federation.clients.items()}
    twin.records = {name: dict(messages) for name, messages in federation.records.items()}
    twin.releases = {}
    return twin


@contextmanager
def remembered_signatures() -> Iterator[None]:
    """Check no signature twice: a hundred sites would check the same hundred, which says nothing new."""
    remembered = lru_cache(maxsize=None)(keys.verify)  # what fails is not remembered
    with patch.object(keys, "verify", remembered), patch.object(server, "verify", remembered):
        yield


@dataclass
class Round:
    """A round of honest sites, each message of which is kept.

    Args:
        federation: the sites and the server.
        silent: the stage at whose answer a site falls silent, by site.
    """

    federation: Consortium
    silent: Mapping[int, str] = field(default_factory=dict)
    sent: dict[tuple[str, int], Any] = field(default_factory=dict)  # to the server, by stage and site
    received: dict[tuple[str, int], Any] = field(default_factory=dict)  # from the server

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The exchanges of this round, in their order."""
        return SPARSE if self.federation.sparse else COMPLETE

    @property
    def server(self) -> ServerSession:
        """The server's session."""
        return self.federation.server

    def run(self) -> Any:
        """Drive the round to its end; return its result."""
        outgoing: Any = None
        result: Any = None
        for stage in self.stages:
            self.before_stage(stage)
            for site_id in self.order(stage):
                message = outgoing[site_id] if stage.name == "input" else outgoing
                self.received[stage.name, site_id] = message
                self.before_site(stage, site_id, message)
                answer = self.answer(stage, site_id, message)
                if not stage.receives:
                    continue
                self.sent[stage.name, site_id] = answer
                self.before_server(stage, site_id, answer)
                getattr(self.server, stage.receives)(answer)
                self.after_server(stage, site_id, answer)
            if stage.closes:
                outgoing = getattr(self.server, stage.closes)()
            if stage.name == "unmask":
                result, outgoing = outgoing, outgoing.message
        return result

    def order(self, stage: Stage) -> list[int]:
        """Who answers in a stage, in this order."""
        sites = self.server.expected if stage.receives else tuple(self.federation.clients)
        names = [other.name for other in self.stages]
        gone = {site_id for site_id, last in self.silent.items() if names.index(stage.name) >= names.index(last)}
        return [site_id for site_id in sites if site_id not in gone]

    def answer(self, stage: Stage, site_id: int, message: Any) -> Any:
        """What an honest site does with a message of the server."""
        client = self.federation.clients[site_id]
        answer = ask(client, stage, message)
        if stage.name == "input":
            return client.masked_input(self.federation.inputs[site_id], Releases())
        return answer

    def before_stage(self, stage: Stage) -> None:
        """Step in before a stage."""

    def before_site(self, stage: Stage, site_id: int, message: Any) -> None:
        """Step in before a site takes a message."""

    def before_server(self, stage: Stage, site_id: int, message: Any) -> None:
        """Step in before the server takes a message."""

    def after_server(self, stage: Stage, site_id: int, message: Any) -> None:
        """Step in after the server took a message."""


def ask(client: ClientSession, stage: Stage, message: Any) -> Any:
    """Hand a message of the server to a site."""
    method = getattr(client, stage.asks)
    return method() if stage.name == "keys" else method(message)


@dataclass
class StagedRound(Round):
    """A round that keeps a copy of all sessions before each stage."""

    copies: dict[str, Consortium] = field(default_factory=dict)

    def before_stage(self, stage: Stage) -> None:
        """Keep a copy."""
        self.copies[stage.name] = fork_all(self.federation)

    def at(self, stage: str) -> Consortium:
        """A fresh copy of all sessions as they were before a stage."""
        return fork_all(self.copies[stage])
