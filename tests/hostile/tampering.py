"""Changes every field of every message of a round on its way, and judges what the receiver makes of each change."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Any

import numpy as np

from secure_agg.context import RoundContext, validate_context
from secure_agg.errors import AggregationAborted, LocalProtocolError, RemoteProtocolError
from secure_agg.messages import PeerKeys, ShareKind, UnmaskShares
from secure_agg.policy import MAX_COHORT_SITES
from secure_agg.reconstruction import Reconstruction
from secure_agg.transitions import ClientState
from tests.hostile.rounds import Consortium, Round, Stage, ask, fork
from tests.simulation.federation import Releases

TO_SERVER, TO_SITE = "site to server", "server to site"
ORDER_OF_ED25519 = 2**252 + 27742317777372353535851937790883648493
STRANGER = 7777
NOT_SECRET = ("_site_id", "_randomness")


class Verdict(StrEnum):
    """What came of a change; the last four are failures of the program."""

    REFUSED_WHEN_MADE = "refused when made"
    REFUSED = "refused"
    OUT_OF_ORDER = "refused as out of order, untouched"
    FOUND_NEXT = "refused with the next message"
    NO_EFFECT = "no effect"
    NAMED = "the sum is right and the liar named"
    NO_SUM = "ended without a sum"
    ACCEPTED = "ACCEPTED"
    FOREIGN = "FOREIGN EXCEPTION"
    MISNAMED = "WRONG STEP OR PEER"
    HARMED = "THE ROUND WAS HARMED"

    @property
    def fine(self) -> bool:
        """Whether the program did as it should."""
        return not self.value.isupper()


@dataclass(frozen=True)
class Mutant:
    """One change of one message: ``target`` is the class, or the class and the field."""

    target: str
    how: str
    make: Callable[[], Any]


@dataclass(frozen=True)
class Outcome:
    """What came of one mutant."""

    graph: str
    direction: str
    target: str
    how: str
    verdict: Verdict
    detail: str


@dataclass
class World:
    """What values a change may put in place of others."""

    chance: random.Random
    ids: dict[str, int]
    items_of_a_list: int = 5  # so many items of a long list are changed, at places that chance names


Judgement = tuple[Verdict, str]


# -- changes


def mutants(message: Any, donors: Sequence[tuple[str, Any]], world: World) -> Iterator[Mutant]:
    """Yield each change of a message, down to the items of its lists.

    Args:
        message: the genuine message.
        donors: other messages of its class, each with where it comes from, whose fields are put in its place.
        world: further values.
    """
    for item in fields(message):
        value, target = getattr(message, item.name), f"{type(message).__name__}.{item.name}"
        others = [(how, getattr(donor, item.name)) for how, donor in donors]

        def put(new: Any, name: str = item.name) -> Any:
            return replace(message, **{name: new})

        changes = list_mutants(target, value, others, world) if isinstance(value, tuple) else ()
        for change in changes:
            yield Mutant(change.target, change.how, lambda change=change, put=put: put(change.make()))
        values = () if isinstance(value, tuple) else variants(value, world)
        for how, new in (*values, *others):
            if form(new) != form(value):
                yield Mutant(target, how, partial(put, new))


def list_mutants(target: str, items: tuple[Any, ...], others: Any, world: World) -> Iterator[Mutant]:
    """Yield changed lists: whole items missing, repeated, exchanged or moved, and changes within an item."""
    count = len(items)
    if count:
        lists = {
            "item missing": items[:-1],
            "first item missing": items[1:],
            "emptied": (),
            "item repeated": (*items, items[0]),
            "item in another's place": (*items[:-1], items[0]),
            "reordered": items[::-1],
            "oversized": items * (MAX_COHORT_SITES // count + 1),
            "as long as a list may be": (items * (MAX_COHORT_SITES // count + 1))[:MAX_COHORT_SITES],
        }
        for how, new in lists.items():
            yield Mutant(target, how, partial(tuple, new))
    for position in sorted(world.chance.sample(range(count), min(count, world.items_of_a_list))):
        donors = [("another sender's", items[(position + 1) % count])] if count > 1 else []
        donors += [(how, other[position]) for how, other in others if position < len(other)]
        for target_within, how, make in item_mutants(target, items[position], donors, world):
            before, after = items[:position], items[position + 1 :]
            yield Mutant(
                target_within,
                how,
                lambda make=make, before=before, after=after: (*before, make(), *after),
            )


def item_mutants(target: str, item: Any, donors: Any, world: World) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Yield changes of one item of a list: a message, a pair or an id."""
    if is_dataclass(item):
        for change in mutants(item, donors, world):
            yield change.target, change.how, change.make
    elif isinstance(item, tuple):
        for place, value in enumerate(item):
            given = [(how, donor[place]) for how, donor in donors]
            for how, new in (*variants(value, world), *given):
                if new != value:
                    yield target, how, partial(tuple, (*item[:place], new, *item[place + 1 :]))
    else:
        for how, new in variants(item, world):
            if new != item:
                yield target, how, partial(int, new)


def variants(value: Any, world: World) -> Iterator[tuple[str, Any]]:
    """Yield a field's value with one thing wrong about it."""
    if isinstance(value, ShareKind):
        yield from (("the other kind", ShareKind(3 - value)), ("wrong kind", 0), ("wrong kind", 3))
    elif isinstance(value, StrEnum):
        yield from (("another word", word) for word in type(value) if word is not value)
        yield from (("unknown word", "no-such-word"), ("unknown word", ""))
    elif isinstance(value, str):
        yield from (("another word", "other"), ("unknown word", ""), ("unknown word", value + "\u00e9"))
        yield "extended", value + " "
    elif isinstance(value, bytes):
        yield from changed_bytes(value, world)
    elif isinstance(value, int):
        yield from (("id 0", 0), ("negative", -1), ("beyond 32 bits", 2**32), ("beyond 64 bits", 2**64))
        yield from (("one more", value + 1), ("one less", value - 1))
        yield from world.ids.items()
    else:
        yield from changed_arrays(value, world)


def changed_bytes(value: bytes, world: World) -> Iterator[tuple[str, bytes]]:
    """Yield changed bytes."""
    size = len(value)
    if not size:
        yield from (("extended", bytes(1)), ("filled in", bytes(32)), ("filled in", world.chance.randbytes(32)))
        return
    bits = {0, 7, 8 * size - 8, 8 * size - 1, *(world.chance.randrange(8 * size) for _ in range(2))}
    for bit in sorted(bits):
        flipped = value[bit // 8] ^ (1 << bit % 8)
        yield "bit flipped", value[: bit // 8] + bytes([flipped]) + value[bit // 8 + 1 :]
    yield from (("truncated", value[:-1]), ("emptied", b""), ("extended", value + bytes(1)))
    yield from (("zeros", bytes(size)), ("ones", b"\xff" * size), ("reversed", value[::-1]))
    if size == 64:  # a signature (R, S): S plus the order of the group satisfies the same equation
        malleated = int.from_bytes(value[32:], "little") + ORDER_OF_ED25519
        yield "malleated", value[:32] + malleated.to_bytes(32, "little")


def changed_arrays(value: Any, world: World) -> Iterator[tuple[str, Any]]:
    """Yield changed vectors."""
    bits = 8 * value.dtype.itemsize
    for place in (0, value.size - 1, world.chance.randrange(value.size)):
        for bit in (0, bits - 1, world.chance.randrange(bits)):
            flipped = value.copy()
            flipped[place] ^= value.dtype.type(1 << bit)
            yield "bit flipped", flipped
    yield from (("truncated", value[:-1]), ("emptied", value[:0]), ("extended", np.append(value, value[:1])))
    yield from (("zeros", np.zeros_like(value)), ("moved by one", np.roll(value, 1) + value.dtype.type(1)))
    for wrong in ("u1", "u2", "u4", "u8", "i4", "i8", "f4", "f8", "c16", "?", "O", "S8", "M8[s]"):
        if np.dtype(wrong) != value.dtype:
            yield f"retyped to {wrong}", np.zeros(value.size, wrong) if wrong in ("M8[s]", "?") else value.astype(wrong)
    yield "bytes the other way round", value.astype(value.dtype.newbyteorder(">"))
    yield from (("a row", value[None, :]), ("a column", value[:, None]), ("a number", value[0:1].reshape(())))


def form(value: Any) -> Any:
    """What of a value has a meaning: the order of a list has none."""
    if is_dataclass(value):
        return type(value).__name__, tuple(form(getattr(value, item.name)) for item in fields(value))
    if isinstance(value, tuple):
        return tuple(sorted((form(item) for item in value), key=repr))
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    return value


# -- the round under attack


@dataclass
class Gauntlet(Round):
    """A round in which everything one site sends and is sent arrives in every changed form first.

    The changed messages reach the server that goes on to finish the round, and copies of the site.

    Args:
        victim: the site.
        donors: finished rounds of the same sites, each with what it is.
        seed: decides what is sampled.
    """

    victim: int = 0
    donors: Sequence[tuple[str, Round]] = ()
    seed: int = 0
    outcomes: list[Outcome] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Choose the values that changes may use."""
        peer = next(site for site in self.federation.context.cohort if site != self.victim)
        revoked = self.federation.context.cohort[-1] + 1
        ids = {"unknown": STRANGER, "revoked": revoked, "self": self.victim, "a peer": peer}
        self._world = World(random.Random(self.seed), ids, items_of_a_list=2 if self.federation.sparse else 5)

    def order(self, stage: Stage) -> list[int]:
        """Let the victim answer last."""
        return sorted(super().order(stage), key=lambda site_id: site_id == self.victim)

    def before_stage(self, stage: Stage) -> None:
        """Try changed announcements before the first stage."""
        if stage.name == "keys":
            donors = [(how, donor.federation.context) for how, donor in self.donors]
            for mutant in mutants(self.federation.context, donors, self._world):
                self._note(TO_SITE, mutant, *self._announced(mutant))

    def before_site(self, stage: Stage, site_id: int, message: Any) -> None:
        """Try what the server could send the victim instead."""
        if site_id != self.victim or stage.name == "keys":
            return
        client = self.federation.clients[site_id]
        donors = self._donors(stage, "received", message)
        replays = (Mutant(type(donor).__name__, f"whole: {how}", partial(_given, donor)) for how, donor in donors)
        for mutant in (*mutants(message, donors, self._world), *replays):
            self._note(TO_SITE, mutant, *self._asked(client, stage, message, mutant))
        for other in self.stages:
            late = self.donors[0][1].received.get((other.name, site_id))
            if other is not stage and late is not None:
                mutant = Mutant(type(late).__name__, "of another phase", partial(_given, late))
                self._note(TO_SITE, mutant, *self._asked_out_of_order(client, other, late))

    def before_server(self, stage: Stage, site_id: int, message: Any) -> None:
        """Try what could reach the server instead of the victim's answer."""
        if site_id != self.victim:
            return
        donors = self._donors(stage, "sent", message)
        replays = (Mutant(type(donor).__name__, f"whole: {how}", partial(_given, donor)) for how, donor in donors)
        for mutant in (*mutants(message, donors, self._world), *replays):
            self._note(TO_SERVER, mutant, *self._answered(stage, stage.receives, message, mutant))
        for other in self.stages:
            if other is not stage and other.receives:
                late = self.donors[0][1].sent[other.name, site_id]
                mutant = Mutant(type(late).__name__, "of another phase", partial(_given, late))
                step = replace(stage, answered_step=other.answered_step)
                self._note(TO_SERVER, mutant, *self._answered(step, other.receives, None, mutant))
        if stage.name in ("shares", "input"):
            notice = fork(self.federation.clients[site_id]).abort("refused")
            peers = [(how, fork(self._client_of(how)).abort("refused")) for how in ("a peer's", "another attempt's")]
            for mutant in mutants(notice, peers, self._world):
                step = replace(stage, answered_step="")
                self._note(TO_SERVER, mutant, *self._answered(step, "receive_abort", notice, mutant))

    def after_server(self, stage: Stage, site_id: int, message: Any) -> None:
        """Send the answer once more."""
        if site_id == self.victim:
            again = Mutant(type(message).__name__, "duplicated", partial(_given, message))
            self._note(TO_SERVER, again, *self._answered(stage, stage.receives, None, again))

    def _client_of(self, how: str) -> Any:
        if how == "a peer's":
            return self.federation.clients[self._world.ids["a peer"]]
        return self.donors[0][1].federation.client(self.victim)

    def _donors(self, stage: Stage, kept: str, genuine: Any) -> list[tuple[str, Any]]:
        """Other messages of the class: a peer's in this round, the victim's own in other rounds."""
        peer = getattr(self, kept).get((stage.name, self._world.ids["a peer"]))
        found = [("a peer's", peer)] + [
            (how, getattr(donor, kept).get((stage.name, self.victim))) for how, donor in self.donors
        ]
        return [(how, message) for how, message in found if message is not None and form(message) != form(genuine)]

    def _note(self, direction: str, mutant: Mutant, verdict: Verdict, detail: str = "") -> None:
        graph = self.federation.context.graph
        self.outcomes.append(Outcome(graph, direction, mutant.target, mutant.how, verdict, detail))

    # -- judgements

    def _announced(self, mutant: Mutant) -> Judgement:
        """A site that was announced something else: refuses now, or the keys that it is sent then."""
        genuine: RoundContext = self.federation.context

        def announce() -> RoundContext:
            context = mutant.make()
            validate_context(
                context,
                self.federation.policy,
                self.federation.roster,
                site_id=self.victim,
                run_id=genuine.run_id,
                policy_hash=genuine.policy_hash,
                model_hash=genuine.model_hash,
                last_round=genuine.round,
                last_round_released=genuine.round - 1,
                last_attempt_seen=(genuine.round, genuine.attempt - 1),
            )
            return context

        context, raised = attempt(announce)
        if isinstance(raised, RemoteProtocolError):
            right = (raised.step, raised.peer) == ("announce", None)
            return (Verdict.REFUSED if right else Verdict.MISNAMED), str(raised)
        if raised:
            return Verdict.FOREIGN, repr(raised)
        client = self.federation.client(self.victim, context=context)
        own = client.advertise_keys()
        others = (
            fork(other).advertise_keys() for site, other in self.federation.clients.items() if site != self.victim
        )
        keys = Mutant(mutant.target, mutant.how, partial(PeerKeys, (own, *others)))
        return self._asked(client, self.stages[1], None, keys)

    def _asked(self, client: Any, stage: Stage, genuine: Any, mutant: Mutant) -> Judgement:
        """A site's answer to a changed message: it must die at the step, erase its keys, and blame no peer."""
        message, raised = attempt(mutant.make)
        if raised:
            return not_made(raised)
        twin = fork(client)
        answer, raised = attempt(ask, twin, stage, message)
        if isinstance(raised, RemoteProtocolError):
            kept = [name for name, value in vars(twin._secrets).items() if value and name not in NOT_SECRET]
            right = (twin.state, kept, raised.peer, raised.step) == (ClientState.DEAD, [], None, stage.asked_step)
            return (Verdict.REFUSED if right else Verdict.MISNAMED), str(raised)
        if raised:
            return Verdict.FOREIGN, repr(raised)
        if form(message) == form(genuine):
            return Verdict.NO_EFFECT, ""
        return (Verdict.ACCEPTED, "") if genuine is None else self._followed(twin, stage, client, genuine, answer)

    def _followed(self, twin: Any, stage: Stage, client: Any, genuine: Any, answer: Any) -> Judgement:
        """What a site cannot know to be false, such as that fewer answered: its next answer gives it away."""
        if stage.name == "unmask":  # any t confirmations will do, for the same shares
            same = answer == ask(fork(client), stage, genuine)
            return (Verdict.NO_EFFECT if same else Verdict.ACCEPTED), ""
        if stage.name == "input":  # on a sparse graph a site cannot check the commitments of strangers: T2 does
            answer = twin.masked_input(self.federation.inputs[self.victim], Releases())
        server = fork(self.server)

        def go_on() -> None:
            getattr(server, stage.receives)(answer)
            if stage.name == "nonce":
                ask(twin, self.stages[2], server.close_nonces())

        _, raised = attempt(go_on)
        if raised and not isinstance(raised, RemoteProtocolError):
            return Verdict.FOREIGN, repr(raised)
        return (Verdict.FOUND_NEXT if raised else Verdict.ACCEPTED), str(raised)

    def _asked_out_of_order(self, client: Any, stage: Stage, message: Any) -> Judgement:
        """A site that is handed the message of another phase does not move."""
        twin = fork(client)
        _, raised = attempt(ask, twin, stage, message)
        if not isinstance(raised, LocalProtocolError):
            return (Verdict.FOREIGN if raised else Verdict.ACCEPTED), repr(raised)
        return (Verdict.OUT_OF_ORDER if snapshot(twin) == snapshot(client) else Verdict.HARMED), str(raised)

    def _answered(self, stage: Stage, receives: str, genuine: Any, mutant: Mutant) -> Judgement:
        """The server's answer to a changed message: a refusal that names its sender and changes nothing."""
        message, raised = attempt(mutant.make)
        if raised:
            return not_made(raised)
        twin = fork(self.server)
        _, raised = attempt(getattr(twin, receives), message)
        if isinstance(raised, RemoteProtocolError):
            return self._refused(stage, receives, message, raised), str(raised)
        if raised:
            return Verdict.FOREIGN, repr(raised)
        if genuine is not None and form(message) == form(genuine):
            return Verdict.NO_EFFECT, ""
        if isinstance(message, UnmaskShares) and genuine is not None:
            return self._opened(twin, message, genuine)
        return Verdict.ACCEPTED, ""

    def _refused(self, stage: Stage, receives: str, message: Any, refused: RemoteProtocolError) -> Verdict:
        """The server that goes on refuses it too, and is as it was."""
        before = snapshot(self.server)
        _, again = attempt(getattr(self.server, receives), message)
        if str(again) != str(refused) or snapshot(self.server) != before:
            return Verdict.HARMED
        right = refused.peer == message.sender and refused.step == (stage.answered_step or message.step)
        return Verdict.REFUSED if right else Verdict.MISNAMED

    def _opened(self, server: Any, message: UnmaskShares, genuine: UnmaskShares) -> Judgement:
        """Shares carry no signature; what is wrong with them must show when the secrets are recovered."""

        def recover() -> Any:
            if self.federation.sparse:
                changed = [new.owner for new, old in zip(message.shares, genuine.shares, strict=True) if new != old]
                return recover_some(server, changed[:2])
            if genuine.sender in server.expected:
                server.receive_unmask_shares(genuine)
            result = server.close_unmask()
            right = np.array_equal(result.total, self.federation.sum_of(result.survivors))
            return result.complaints if right else None

        complaints, raised = attempt(recover)
        if isinstance(raised, AggregationAborted):
            return (Verdict.NO_SUM if raised.step == "unmask" else Verdict.MISNAMED), str(raised)
        if raised:
            return Verdict.FOREIGN, repr(raised)
        if complaints is None:
            return Verdict.ACCEPTED, "a wrong sum"
        named = {complaint.holder for complaint in complaints}
        return (Verdict.NAMED if named == {message.sender} else Verdict.MISNAMED), repr(complaints)


def attempt(call: Callable[..., Any], *arguments: Any) -> tuple[Any, Exception | None]:
    """Make a call; return what it returned, or whatever it raised."""
    try:
        return call(*arguments), None
    except Exception as raised:  # noqa: BLE001 - a foreign exception is what is looked for
        return None, raised


def not_made(raised: Exception) -> Judgement:
    """What to think of a message that could not be made."""
    refused = isinstance(raised, RemoteProtocolError)
    return (Verdict.REFUSED_WHEN_MADE if refused else Verdict.FOREIGN), repr(raised)


def recover_some(server: Any, owners: Sequence[int]) -> list[Any]:
    """Recover the secrets of a few sites as the server would of all; return the complaints."""
    reconstruction = Reconstruction(
        context=server._context,
        roster=server._roster,
        keys_hash=server._keys_hash,
        mask_keys={site_id: advert.mask_key for site_id, advert in server._adverts.items()},
        commitments={site_id: message.commitment for site_id, message in server._shares.items()},
        messages=server._unmask,
    )
    for owner in owners:
        if owner in server._inputs:
            reconstruction.self_mask(owner)
        else:
            reconstruction.mask_key(owner)
    return reconstruction.complaints


def snapshot(session: Any) -> dict[str, Any]:
    """Everything a session remembers."""
    frozen = {}
    for name, value in vars(session).items():
        if isinstance(value, np.ndarray):
            frozen[name] = value.tobytes()
        elif isinstance(value, dict | set):
            frozen[name] = value.copy()
        elif name == "_secrets":
            frozen[name] = snapshot(value)
        else:
            frozen[name] = value
    return frozen


def _given(message: Any) -> Any:
    return message


def donor_rounds(make: Callable[..., Consortium], **silent: Any) -> list[tuple[str, Round]]:
    """Finished rounds like the one under attack, but for one thing each."""
    found = []
    for how, changed in {
        "another attempt's": {"attempt": 1},
        "another round's": {"round": 8},
        "another run's": {"run_id": "other"},
        "another model's": {"model_hash": b"m" * 32},
    }.items():
        other = Round(make(context_changes=changed), **silent)
        other.run()
        found.append((how, other))
    return found
