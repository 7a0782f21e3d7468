"""A consortium on a network that loses, repeats, delays and changes messages, with everything it must never do watched.

Real sessions, an honest server program and honest site programs; what lies between them is a mailbox that a test plays
with. Each call of a session is held to the table of transitions, each sum to the integers, and releases are counted.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from enum import Enum
from typing import Any

import numpy as np

from secure_agg.client import ClientSession
from secure_agg.context import RoundContext, validate_context
from secure_agg.errors import AggregationAborted, LocalProtocolError, RemoteProtocolError
from secure_agg.graph import GraphParameters
from secure_agg.masks import Masker, add_masks
from secure_agg.messages import (
    AbortCode,
    Confirmations,
    MaskedInput,
    PeerKeys,
    PeerNonces,
    PublishedSum,
    ShareKind,
    Survivors,
)
from secure_agg.policy import SecureSumPolicy
from secure_agg.server import ServerSession
from secure_agg.transitions import TRANSITIONS, ClientEvent, ClientState, ServerEvent, ServerState
from tests.simulation.federation import (
    Releases,
    counter_randomness,
    make_context,
    make_policy,
    make_roster,
    signing_key,
)

SERVER = 0
DIMENSION = 4
MODULUS = 2**32

# What a site answers to which message, by the methods that take the two.
ANSWERS = {
    "receive_peer_keys": "receive_share_keys",
    "reveal_nonce": "receive_nonce",
    "receive_peer_nonces": "receive_share_keys",
    "receive_peer_shares": "receive_masked_input",
    "receive_survivors": "receive_confirmation",
    "receive_confirmations": "receive_unmask_shares",
}
# How the server ends each phase, and which method of a site takes what it then sends.
CLOSINGS = {
    ServerState.ADVERTISE_KEYS: ("close_advertise_keys", "receive_peer_keys"),
    ServerState.SHARE_KEYS: ("close_share_keys", "receive_peer_shares"),
    ServerState.MASKED_INPUT: ("close_masked_inputs", "receive_survivors"),
    ServerState.CONFIRM_SURVIVORS: ("close_confirmations", "receive_confirmations"),
    ServerState.UNMASK: ("close_unmask", "receive_result"),
}
SPARSE_CLOSINGS = {
    ServerState.ADVERTISE_KEYS_SPARSE: ("close_advertise_keys", "reveal_nonce"),
    ServerState.REVEAL_NONCES: ("close_nonces", "receive_peer_nonces"),
} | {state: methods for state, methods in CLOSINGS.items() if state is not ServerState.ADVERTISE_KEYS}


class SparsePolicy(SecureSumPolicy):
    """A policy that puts even five or six sites on a sparse graph; too small to be safe, large enough to be played."""

    def graph(self, n: int) -> GraphParameters:
        """Give each site four neighbours, and let one site stay away."""
        return GraphParameters(sparse=True, degree=4, share_threshold=4, key_floor=max(4, n - 1))


@dataclass(frozen=True)
class Envelope:
    """A message on its way, and the method that is to take it."""

    to: int
    method: str
    message: Any


@dataclass
class Site:
    """One site's machine: what is on its disk, and a session that a crash loses."""

    site_id: int
    releases: Releases
    attempt_seen: tuple[int, int] = (0, 0)
    session: ClientSession | None = None
    context: RoundContext | None = None
    starts: int = 0

    @property
    def last_round(self) -> int:
        """The newest round that a vector left for."""
        return max((number for _, number in self.releases.marked), default=0)


def observed(session: Any, event: Enum, call: Callable[[], Any]) -> Any:
    """Call a session and hold what becomes of its state to the table."""
    before = session.state
    try:
        answer = call()
    except LocalProtocolError:
        assert session.state is before
        assert isinstance(session, ClientSession)
        raise
    except RemoteProtocolError:
        assert session.state is (ClientState.DEAD if isinstance(session, ClientSession) else before)
        raise
    except AggregationAborted:
        assert (before, event) in TRANSITIONS
        assert session.state is ServerState.ABORTED
        raise
    assert session.state is TRANSITIONS[before, event], "a session moved outside the table"
    return answer


@dataclass
class World:
    """n sites, a server, and the mailbox between them.

    ``calm`` says that nothing has happened for which the attempt could fail: then it must not.
    """

    n: int
    masker_of: Callable[[int], Masker] = lambda _site: add_masks
    new_register: Callable[[], Releases] = Releases
    sparse: bool = False
    tally: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.roster = make_roster(self.n)
        policy = make_policy(self.n, dimension=DIMENSION)
        self.policy = SparsePolicy(**asdict(policy)) if self.sparse else policy
        self.closings = SPARSE_CLOSINGS if self.sparse else CLOSINGS
        self.sites = {site_id: Site(site_id, self.new_register()) for site_id in self.roster.active_ids}
        self.mailbox: list[Envelope] = []
        self.round, self.attempt = 0, 0
        self.released: Counter[tuple[int, int]] = Counter()
        self.kinds: dict[tuple[bytes, int], set[ShareKind]] = {}
        self.next_round()

    # What the server's program does.

    def next_round(self) -> None:
        """Announce the next round to everybody."""
        self.round, self.attempt = self.round + 1, 0
        self.new_attempt()

    def new_attempt(self, left_out: int = 0) -> None:
        """Announce a new attempt, without one site if so many remain."""
        self.attempt += 1
        invited = tuple(site_id for site_id in self.sites if site_id != left_out or self.n == 3)
        self.context = make_context(self.policy, self.roster, round=self.round, attempt=self.attempt, cohort=invited)
        self.server = ServerSession(policy=self.policy, roster=self.roster, context=self.context)
        self.calm = not self.mailbox and all(
            self.sites[site_id].last_round < self.round
            and self.sites[site_id].attempt_seen < (self.round, self.attempt)
            for site_id in invited
        )
        for site_id in invited:
            self._send(site_id, "announce", self.context)

    @property
    def over(self) -> bool:
        """Whether the attempt has ended."""
        return self.server.state in (ServerState.DONE, ServerState.ABORTED)

    def comes_before(self, state: ServerState) -> bool:
        """Whether the attempt is running and has not come to a phase yet."""
        order = list(self.closings)
        return not self.over and order.index(self.server.state) < order.index(state)

    def advance_to(self, state: ServerState) -> None:
        """Play the phases before one, and deliver once, so that the answers of that one are on their way."""
        while self.comes_before(state):
            self.settle()
            self.close()
        self.deliver(len(self.mailbox))

    def go_on(self, phases: int) -> None:
        """Play some phases to their ends, as far as the attempt goes."""
        for _ in range(phases):
            self.settle()
            if not self.over:
                self.close()
        self.settle()

    def close(self, misled: int = 0) -> None:
        """End the server's phase; a misled site is shown a survivor set without the last other site."""
        method, onward = self.closings[self.server.state]
        calm = self.calm and not self.server.expected and not misled
        try:
            answer = observed(self.server, ServerEvent(method), getattr(self.server, method))
        except AggregationAborted as ended:
            assert not calm, "an undisturbed attempt ends in a sum"
            self.tally[f"ended at {ended.step}"] += 1
            return
        self.calm = calm
        match answer:
            case dict():
                for site_id, message in answer.items():
                    self._send(site_id, onward, message)
                return
            case PeerKeys():
                recipients = [item.sender for item in answer.adverts]
            case PeerNonces():
                recipients = [item.sender for item in answer.nonces]
            case Survivors():
                recipients = self.survivors = [item.sender for item in answer.inputs]
            case Confirmations():
                recipients = self.survivors
            case _:
                self._check_sum(self.context, answer.total, answer.survivors)
                self.tally["sums"] += 1
                self.tally["sums without some site"] += bool(answer.dropped)
                self.tally["sums of a later attempt"] += self.attempt > 1
                self.tally["sums after a fault"] += not calm
                recipients, answer = answer.survivors, answer.message
        for site_id in recipients:
            shown = answer
            if site_id == misled and isinstance(answer, Survivors):
                others = [item for item in answer.inputs if item.sender != misled]
                shown = Survivors(tuple(item for item in answer.inputs if item is not others[-1]))
            self._send(site_id, onward, shown)

    # What the network does.

    def deliver(self, count: int) -> None:
        """Hand over the oldest messages."""
        for _ in range(min(count, len(self.mailbox))):
            envelope = self.mailbox.pop(0)
            if envelope.to == SERVER:
                self._reach_server(envelope)
            else:
                self._reach_site(self.sites[envelope.to], envelope)

    def settle(self) -> None:
        """Hand over everything, answers too."""
        while self.mailbox:
            self.deliver(len(self.mailbox))

    def drop(self, index: int) -> None:
        """Lose a message."""
        self.calm = False
        self.mailbox.pop(index % len(self.mailbox))

    def duplicate(self, index: int) -> None:
        """Have a message arrive again, last."""
        self.mailbox.append(self.mailbox[index % len(self.mailbox)])

    def delay(self, index: int) -> None:
        """Have a message arrive last."""
        self.mailbox.append(self.mailbox.pop(index % len(self.mailbox)))

    def misdeliver(self, index: int, to: int) -> None:
        """Have a message for one site arrive at another one."""
        self.calm = False
        envelope = self.mailbox[index % len(self.mailbox)]
        if envelope.to != SERVER:
            self.mailbox.append(replace(envelope, to=to))

    def tamper(self, index: int, seed: int) -> None:
        """Change one thing in a message; what no message can hold is refused at the edge, and so lost."""
        self.calm = False
        index %= len(self.mailbox)
        envelope = self.mailbox[index]
        try:
            changed = tampered(envelope.message, random.Random(seed), tuple(self.sites))
        except (RemoteProtocolError, OverflowError):
            self.mailbox.pop(index)
        else:
            self.mailbox[index] = replace(envelope, message=changed)

    def restart(self, site_id: int) -> None:
        """Crash a site: its session is gone, what is on its disk stays."""
        self.calm = False
        self.sites[site_id].session = None

    # What must hold at any time.

    def check(self) -> None:
        """No round was released twice, and of no secret's owner both kinds of share were."""
        assert all(count == 1 for count in self.released.values()), "a site released twice in one round"
        assert all(len(kinds) == 1 for kinds in self.kinds.values()), "both kinds of one owner's shares were released"

    def input_of(self, site_id: int, round_number: int) -> list[int]:
        """A site's input to a round, small integers of either sign."""
        position = site_id - 11
        return [2**position, -(2**position), (site_id * round_number) % 1000, 1000 - position]

    def _check_sum(self, context: RoundContext, total: Any, survivors: tuple[int, ...]) -> None:
        """Compare a sum with the integers."""
        columns = zip(*(self.input_of(site_id, context.round) for site_id in survivors), strict=True)
        assert total.tolist() == [sum(column) % MODULUS for column in columns], "the sum is wrong"

    def _send(self, to: int, method: str, message: Any) -> None:
        self.mailbox.append(Envelope(to, method, message))

    def _reach_server(self, envelope: Envelope) -> None:
        """Hand a message to the server, which takes it or refuses it."""
        call = getattr(self.server, envelope.method)
        before = self.server.state
        try:
            if envelope.method == "receive_abort":
                call(envelope.message)
                assert self.server.state is before
            else:
                observed(self.server, ServerEvent(envelope.method), lambda: call(envelope.message))
        except RemoteProtocolError as refused:
            self.tally[f"server refused: {refused.reason}"] += 1

    def _reach_site(self, site: Site, envelope: Envelope) -> None:
        """Hand a message to a site, which answers, ignores it, or leaves with a complaint."""
        if envelope.method == "announce":
            self._invite(site, envelope.message)
            return
        session = site.session
        if session is None:
            return
        try:
            answer = self._ask(site, session, envelope)
        except LocalProtocolError:
            self.tally["a site ignored what was out of order"] += 1
        except RemoteProtocolError as refused:
            self.tally[f"site refused: {refused.reason}"] += 1
            notice = observed(session, ClientEvent.ABORT, lambda: session.abort(AbortCode.CHECK_FAILED))
            self._send(SERVER, "receive_abort", notice)
        else:
            if envelope.method in ANSWERS:
                self._send(SERVER, ANSWERS[envelope.method], answer)

    def _ask(self, site: Site, session: ClientSession, envelope: Envelope) -> Any:
        """Let a session take one message, and note what leaves it."""
        assert site.context is not None
        answer = observed(
            session,
            ClientEvent(envelope.method),
            lambda: getattr(session, envelope.method)(envelope.message),
        )
        if envelope.method == "receive_peer_shares":
            values = self.input_of(site.site_id, site.context.round)
            vector = np.array([value % MODULUS for value in values], dtype=self.policy.dtype)
            answer = observed(session, ClientEvent.MASKED_INPUT, lambda: session.masked_input(vector, site.releases))
            assert isinstance(answer, MaskedInput)
            self.released[site.site_id, site.context.round] += 1
        elif envelope.method == "receive_confirmations":
            for share in answer.shares:
                self.kinds.setdefault((site.context.hash, share.owner), set()).add(share.kind)
        elif envelope.method == "receive_result":
            assert isinstance(envelope.message, PublishedSum)
            self._check_sum(site.context, envelope.message.total, session.survivors)
            self.tally["sums that a site accepted"] += 1
        return answer

    def _invite(self, site: Site, context: RoundContext) -> None:
        """Let a site decide whether it joins an attempt, and start a session if so."""
        try:
            validate_context(
                context,
                self.policy,
                self.roster,
                site_id=site.site_id,
                run_id="test-run",
                policy_hash=self.context.policy_hash,
                model_hash=self.context.model_hash,
                last_round=2**63,
                last_round_released=site.last_round,
                last_attempt_seen=site.attempt_seen,
            )
        except RemoteProtocolError as refused:
            self.tally[f"site did not join: {refused.reason.split(' ', 1)[0]}"] += 1
            return
        site.attempt_seen, site.starts, site.context = (context.round, context.attempt), site.starts + 1, context
        session = site.session = ClientSession(
            policy=self.policy,
            roster=self.roster,
            site_id=site.site_id,
            signing_key=signing_key(site.site_id),
            context=context,
            ledger_head=hashlib.sha256(b"ledger").digest(),
            randomness=counter_randomness(f"site {site.site_id} start {site.starts}"),
            masker=self.masker_of(site.site_id),
        )
        advert = observed(session, ClientEvent.ADVERTISE_KEYS, session.advertise_keys)
        self._send(SERVER, "receive_advertise_keys", advert)


def tampered(value: Any, draw: random.Random, sites: tuple[int, ...]) -> Any:  # noqa: PLR0911 - a case a type
    """Return a message with one thing in it changed: a bit, a number, a site, or an item of a list."""
    match value:
        case bytes():
            return _flipped(value, draw)
        case np.ndarray():
            changed = value.copy()
            changed[draw.randrange(value.size)] ^= value.dtype.type(1 << draw.choice([0, 3, 8 * value.itemsize - 1]))
            return changed
        case Enum():
            return draw.choice([member for member in type(value) if member is not value])
        case str():
            return value + "x"
        case int():
            return draw.choice([*sites, value + 1, value ^ 1])
        case (int(site), bytes(content)):  # a pair, which the wire can neither cut nor turn round
            if draw.randrange(2):
                return tampered(site, draw, sites), content
            return site, tampered(content, draw, sites)
        case tuple():
            return _changed_items(value, draw, sites)
    assert is_dataclass(value)
    name = draw.choice([item.name for item in fields(value)])
    return replace(value, **{name: tampered(getattr(value, name), draw, sites)})


def _flipped(raw: bytes, draw: random.Random) -> bytes:
    """Flip one bit."""
    if not raw:
        return b"\x00"
    position = draw.randrange(8 * len(raw))
    changed = bytearray(raw)
    changed[position // 8] ^= 1 << position % 8
    return bytes(changed)


def _changed_items(items: tuple[Any, ...], draw: random.Random, sites: tuple[int, ...]) -> tuple[Any, ...]:
    """Leave out, repeat, swap or change an item."""
    if not items:
        return items
    index = draw.randrange(len(items))
    match draw.randrange(4):
        case 0:
            return items[:index] + items[index + 1 :]
        case 1:
            return (*items, items[index])
        case 2:
            return tuple(reversed(items))
    return (*items[:index], tampered(items[index], draw, sites), *items[index + 1 :])
