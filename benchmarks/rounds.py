"""One round of the secure sum in one process, every site and the server one after another, with its time by part.

Every site runs its whole session: it encodes, checks, masks, signs and reads the published sum by itself, and nothing
that one site computed is used by another. The register of releases is in memory. Every message is turned into bytes and
back for each recipient, as on a wire, or handed over as it is. Each site encodes into memory that it keeps from round
to round, and so does the receiving end of the wire.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from secure_agg.client import ClientSession
from secure_agg.context import RoundContext
from secure_agg.errors import LocalProtocolError
from secure_agg.keys import SigningKey
from secure_agg.messages import MaskedInput, PublishedSum
from secure_agg.policy import SecureSumPolicy
from secure_agg.result import AggregationResult
from secure_agg.ring import decode_sum, encode
from secure_agg.roster import Roster, RosterEntry
from secure_agg.server import ServerSession

VALUE_RANGE = 4.0
PIECE_BYTES = 2**20  # a vector travels in mebibytes, as over gRPC
Update = NDArray[np.float32]
Updates = Mapping[int, Update]


class MemoryReleases:
    """A register of released rounds that forgets with the process; a real site's is on disk."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}

    def mark(self, run_id: str, round_number: int) -> None:
        """Mark a round; LocalProtocolError if it was marked before."""
        if round_number <= self._last.get(run_id, 0):
            raise LocalProtocolError("the round was released before", remedy="take the next round")
        self._last[run_id] = round_number


@dataclass(frozen=True)
class Consortium:
    """What exists before a round: signing keys, roster, policy and the announced context."""

    signing_keys: Mapping[int, SigningKey]
    roster: Roster
    policy: SecureSumPolicy
    context: RoundContext
    _vectors: dict[int, NDArray[Any]] = field(default_factory=dict, repr=False)

    @classmethod
    def enrol(
        cls, clients: int, floats: int, *, colluders: int = 1, ring_bits: int = 32, dropout_permille: int = 50
    ) -> Self:
        """Enrol some sites for vectors of some floats; their signing keys are always the same ones."""
        keys = {
            site: SigningKey.from_bytes(hashlib.sha256(b"site %d" % site).digest()) for site in range(1, clients + 1)
        }
        entries = (
            RosterEntry(
                site, f"site-{site}", f"organisation-{site}", key.verify_key, hashlib.sha256(b"%d" % site).digest()
            )
            for site, key in keys.items()
        )
        roster = Roster(1, tuple(entries))
        policy = SecureSumPolicy.from_range(
            value_range=VALUE_RANGE,
            colluders=colluders,
            min_cohort=colluders + 2,
            min_honest=2,
            max_cohort=clients,
            dimension=floats,
            ring_bits=ring_bits,
            dropout_permille=dropout_permille,
        )
        context = RoundContext.under(
            policy,
            roster,
            run_id="benchmark",
            round=1,
            attempt=1,
            policy_hash=bytes(32),
            model_hash=bytes(32),
            cohort=roster.active_ids,
        )
        return cls(keys, roster, policy, context)

    @property
    def cohort(self) -> tuple[int, ...]:
        """The sites, ascending."""
        return self.context.cohort

    def client(self, site: int) -> ClientSession:
        """Start the session of one site."""
        return ClientSession(
            policy=self.policy,
            roster=self.roster,
            site_id=site,
            signing_key=self.signing_keys[site],
            context=self.context,
            ledger_head=bytes(32),
        )

    def vector(self, site: int) -> NDArray[Any]:
        """Where one site encodes its updates (policy.length,)."""
        if site not in self._vectors:
            self._vectors[site] = np.zeros(self.policy.length, dtype=self.policy.dtype)
        return self._vectors[site].view()  # what is made read-only with the message is this view

    def server(self) -> ServerSession:
        """Start the session of the server."""
        return ServerSession(policy=self.policy, roster=self.roster, context=self.context)


class Clock:
    """Adds up wall seconds by the part of the round that they were spent on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what runs inside as a part."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start


@dataclass(frozen=True)
class Outcome:
    """A finished round.

    Args:
        result: what the server ended with.
        seconds: wall time until the server holds the decoded sum.
        published_seconds: wall time until every site has checked and decoded the published sum too.
        processor_seconds: processor time until the server holds the decoded sum; a busy machine changes it little.
        parts: wall seconds by part.
        bytes_sent: content of everything that one site sent.
    """

    result: AggregationResult
    seconds: float
    published_seconds: float
    processor_seconds: float
    parts: Mapping[str, float]
    bytes_sent: int


def normal_update(site: int, floats: int) -> NDArray[np.float32]:
    """The update of one site (floats,), the same in every run."""
    return np.random.default_rng(site).normal(0.0, 0.1, floats).astype(np.float32)


class InProcess:
    """The sessions of a round on the complete graph in which nobody drops, moved phase by phase against one clock.

    Args:
        consortium: who takes part.
        updates: the update of every site.
        wire: whether every message is turned into bytes and back for its recipient.
    """

    def __init__(self, consortium: Consortium, updates: Updates, *, wire: bool) -> None:
        self._consortium, self._updates, self._link = consortium, updates, Link() if wire else None
        self._clock = Clock()
        self._sent: list[Any] = []  # what the first site sent

    def run(self) -> Outcome:
        """Run the round; the exact sum is asserted after the clock has stopped."""
        clock, begin, begin_processor = self._clock, time.perf_counter(), time.process_time()
        with clock.part("start"):
            server = self._consortium.server()
            clients = {site: self._consortium.client(site) for site in self._consortium.cohort}
        policy = self._consortium.policy
        self._collect("keys", clients, lambda client, _site: client.advertise_keys(), server.receive_advertise_keys)
        keys = self._close(server.close_advertise_keys)
        self._collect(
            "shares",
            clients,
            lambda client, _site: client.receive_peer_keys(self._carry(keys)),
            server.receive_share_keys,
        )
        inboxes = self._close(server.close_share_keys)

        def mask(client: ClientSession, site: int) -> MaskedInput:
            client.receive_peer_shares(self._carry(inboxes[site]))
            with clock.part("of that, encode"):
                vector = encode(policy, self._updates[site], out=self._consortium.vector(site))
            return client.masked_input(vector, MemoryReleases(), overwrite=True)

        self._collect("masked input", clients, mask, server.receive_masked_input)
        survivors = self._close(server.close_masked_inputs)
        self._collect(
            "confirm",
            clients,
            lambda client, _site: client.receive_survivors(self._carry(survivors)),
            server.receive_confirmation,
        )
        confirmations = self._close(server.close_confirmations)
        self._collect(
            "unmask",
            clients,
            lambda client, _site: client.receive_confirmations(self._carry(confirmations)),
            server.receive_unmask_shares,
        )
        result = self._close(server.close_unmask)
        self._close(lambda: decode_sum(policy, result.total, len(result.survivors)))
        seconds, processor = time.perf_counter() - begin, time.process_time() - begin_processor
        with clock.part("publish"):
            for client in clients.values():
                client.receive_result(self._carry(result.message))
        published = time.perf_counter() - begin
        assert_exact(self._consortium, result.message, self._updates.__getitem__)
        sent = sum(content_bytes(message) for message in self._sent)
        return Outcome(result, seconds, published, processor, dict(clock.seconds), sent)

    def _collect(
        self,
        name: str,
        clients: Mapping[int, ClientSession],
        answer: Callable[[ClientSession, int], Any],
        receive: Callable[[Any], None],
    ) -> None:
        """Let every site answer, and the server take each answer at once."""
        for site, client in clients.items():
            with self._clock.part(name):
                message = answer(client, site)
            if not self._sent or message.sender == self._sent[0].sender:
                self._sent.append(message)
            with self._clock.part("server"):
                receive(self._carry(message))

    def _close(self, close: Callable[[], Any]) -> Any:
        """Let the server end a phase."""
        with self._clock.part("server"):
            return close()

    def _carry(self, message: Any) -> Any:
        """Hand a message to its recipient."""
        return self._link.carry(message) if self._link else message


class Link:
    """Turns messages into bytes and back; a vector travels in pieces, which are put together at the receiving end."""

    def __init__(self) -> None:
        self._received = bytearray()

    def carry(self, message: Any) -> Any:
        """Carry one message; a vector in it lives until the next one is carried."""
        vectors: list[pickle.PickleBuffer] = []
        rest = pickle.dumps(message, protocol=5, buffer_callback=vectors.append)
        return pickle.loads(
            rest, buffers=[self._receive(pieces(vector.raw()), vector.raw().nbytes) for vector in vectors]
        )

    def _receive(self, parts: Iterator[bytes], size: int) -> memoryview:
        """Put pieces together."""
        if len(self._received) < size:
            self._received = bytearray(size)
        whole, filled = memoryview(self._received)[:size], 0
        for part in parts:
            whole[filled : filled + len(part)] = part
            filled += len(part)
        return whole


def pieces(vector: memoryview) -> Iterator[bytes]:
    """Copy a vector's bytes out, a piece at a time."""
    for start in range(0, vector.nbytes, PIECE_BYTES):
        yield bytes(vector[start : start + PIECE_BYTES])


def run_round(consortium: Consortium, updates: Updates, *, wire: bool = True) -> Outcome:
    """Run one round in this process; see :class:`InProcess`."""
    return InProcess(consortium, updates, wire=wire).run()


def assert_exact(consortium: Consortium, published: PublishedSum, update: Callable[[int], Update]) -> None:
    """Leave the program unless the total is the exact sum of the survivors' encoded updates."""
    expected = np.zeros(consortium.policy.length, dtype=consortium.policy.dtype)
    for site in published.survivors:
        expected += encode(consortium.policy, update(site))
    if not np.array_equal(published.total, expected):
        raise SystemExit("the sum is wrong")


def content_bytes(value: Any) -> int:
    """Count the content of a message: its bytes, and four for every integer; a wire format's framing comes on top."""
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, tuple):
        return sum(content_bytes(item) for item in value)
    if dataclasses.is_dataclass(value):
        return sum(content_bytes(getattr(value, field.name)) for field in dataclasses.fields(value))
    return 4
