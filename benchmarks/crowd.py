"""Cohorts of up to a thousand simulated sites with dropouts, spread over the cores; what each part costs one site.

The sessions of the sites live in worker processes, one for each core; the server's lives in this one. Messages go
through pipes one at a time, so that no more than a few masked vectors exist at once. Times are of the processor.
Signature checks are shown apart: a site makes about three for every site of the cohort, whatever the graph.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any

import secure_agg.keys as both_sides
import secure_agg.server as server_side
from benchmarks.rounds import Consortium, MemoryReleases, assert_exact, normal_update
from secure_agg.client import ClientSession
from secure_agg.messages import PublishedSum
from secure_agg.ring import encode
from secure_agg.server import ServerSession

DROPOUT_PERMILLE = 50
COLLUDER_PERMILLE = 50
SAY_EVERY_S = 10.0
VERIFY = "verify"  # the signature check, replaced here by one that is counted
DROP_SEED = 2020
DROP_PHASES = ("keys", "nonce", "shares", "input", "confirm", "unmask")  # one is that a dropping site no longer answers


class Meter:
    """Adds up processor seconds by part, with signature checks taken out of the part they happen in."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.checks = 0
        self._lock = threading.Lock()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what runs inside as a part."""
        start, checks = time.process_time(), self.seconds["checks"]
        yield
        self.seconds[name] += time.process_time() - start - (self.seconds["checks"] - checks)

    def checking(self, verify: Callable[..., None]) -> Callable[..., None]:
        """Wrap a signature check so that it is counted apart."""

        def counted(*arguments: Any) -> None:
            start = time.thread_time()
            try:
                verify(*arguments)
            finally:
                with self._lock:
                    self.seconds["checks"] += time.thread_time() - start
                    self.checks += 1

        return counted


class Progress:
    """Says now and then how much of the work is done and how long the rest takes."""

    def __init__(self, work: float, say: Callable[[str], None]) -> None:
        self._work, self._say = work, say
        self._done = 0.0
        self._start = self._said = time.monotonic()

    def add(self, name: str, work: float) -> None:
        """Count some work as done."""
        self._done += work
        now = time.monotonic()
        if now - self._said >= SAY_EVERY_S:
            self._said = now
            left = (now - self._start) * (self._work - self._done) / self._done
            self._say(f"  {name}: {self._done / self._work:.0%}, about {left:.0f} s left")


def dropouts(clients: int, *, sparse: bool) -> dict[int, str]:
    """Choose the sites that fall silent and the phase of each: as many in each phase, shuffled by a fixed seed."""
    count = clients * DROPOUT_PERMILLE // 1000
    phases = [phase for phase in DROP_PHASES if sparse or phase != "nonce"]
    shuffled = random.Random(DROP_SEED)
    sites = shuffled.sample(range(1, clients + 1), count)
    shuffled.shuffle(phases)
    return {site: phases[number % len(phases)] for number, site in enumerate(sites)}


def enrol(clients: int, floats: int) -> Consortium:
    """The same consortium in every process."""
    colluders = max(1, clients * COLLUDER_PERMILLE // 1000)
    return Consortium.enrol(clients, floats, colluders=colluders, dropout_permille=DROPOUT_PERMILLE)


class Site:
    """One simulated site: its session and what it answers in each phase."""

    def __init__(self, consortium: Consortium, site: int, meter: Meter) -> None:
        self._policy, self._site, self._meter = consortium.policy, site, meter
        self._sparse = consortium.context.graph == "harary"
        with meter.part("keys and shares"):
            self._session: ClientSession = consortium.client(site)

    def answer(self, phase: str, message: Any) -> Any:
        """Answer what the server sent in a phase."""
        session = self._session
        if phase == "input":
            return self._masked_input(message[self._site])
        share = session.receive_peer_nonces if self._sparse else session.receive_peer_keys
        calls: dict[str, Callable[[], Any]] = {
            "keys": session.advertise_keys,
            "nonce": lambda: session.reveal_nonce(message),
            "shares": lambda: share(message),
            "confirm": lambda: session.receive_survivors(message),
            "unmask": lambda: session.receive_confirmations(message),
            "publish": lambda: session.receive_result(message).weight,
        }
        with self._meter.part("keys and shares" if phase in ("keys", "nonce", "shares") else "other"):
            return calls[phase]()

    def _masked_input(self, inbox: Any) -> Any:
        with self._meter.part("keys and shares"):
            self._session.receive_peer_shares(inbox)
        update = normal_update(self._site, self._policy.dimension)
        with self._meter.part("masks"):
            return self._session.masked_input(encode(self._policy, update), MemoryReleases(), overwrite=True)


def work(connection: Connection, core: int, clients: int, floats: int, sites: list[int]) -> None:
    """Be the sites of one core: answer every phase for those of them that still do."""
    os.sched_setaffinity(0, {core})
    meter = Meter()
    setattr(both_sides, VERIFY, meter.checking(getattr(both_sides, VERIFY)))
    consortium = enrol(clients, floats)
    crowd = {site: Site(consortium, site, meter) for site in sites}
    while True:
        phase, answering, message = connection.recv()
        if phase == "end":
            connection.send((dict(meter.seconds), meter.checks))
            return
        for site in answering:
            connection.send(crowd[site].answer(phase, message))


class Crowd:
    """The workers of one cohort; use it in a ``with`` statement."""

    def __init__(self, clients: int, floats: int, cores: list[int], progress: Progress) -> None:
        context = multiprocessing.get_context("spawn")
        self._progress = progress
        self._drops = dropouts(clients, sparse=enrol(clients, floats).context.graph == "harary")
        self._gone: set[int] = set()
        self._workers: list[tuple[Any, Connection, list[int]]] = []
        for number, core in enumerate(cores):
            sites = list(range(1 + number, clients + 1, len(cores)))
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs, core, clients, floats, sites), daemon=True)
            process.start()
            theirs.close()
            self._workers.append((process, ours, sites))

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_failure: object) -> None:
        for process, connection, _ in self._workers:
            connection.close()
            process.terminate()
            process.join()

    def ask(self, phase: str, message: Any, work_of_one: float) -> Iterator[Any]:
        """Yield the answer of every site that still answers in a phase, as they come; one at a time from each core."""
        self._gone |= {site for site, last in self._drops.items() if last == phase}
        waiting: dict[Connection, int] = {}
        for _, connection, sites in self._workers:
            answering = [site for site in sites if site not in self._gone]
            if phase == "input":
                connection.send((phase, answering, {site: message[site] for site in answering}))
            else:
                connection.send((phase, answering, message))
            waiting[connection] = len(answering)
        while waiting := {connection: left for connection, left in waiting.items() if left}:
            ready = wait(list(waiting))
            for connection in (connection for connection in waiting if connection in ready):
                yield connection.recv()
                waiting[connection] -= 1
                self._progress.add(phase, work_of_one)

    def costs(self) -> tuple[Mapping[str, float], int]:
        """End the workers; return the processor seconds of all sites by part, and their signature checks."""
        seconds: Counter[str] = Counter()
        checks = 0
        for _, connection, _ in self._workers:
            connection.send(("end", [], None))
            of_one, made = connection.recv()
            seconds.update(of_one)
            checks += made
        return seconds, checks


def crowd_row(clients: int, floats: int, cores: list[int], say: Callable[[str], None]) -> dict[str, Any]:
    """Run one round of a cohort in which 5 % drop, spread over the phases; the exact sum is asserted."""
    consortium = enrol(clients, floats)
    context, meter = consortium.context, Meter()
    say(f"{clients} clients on the {context.graph} graph of degree {context.degree}: about {3 * clients**2:,} checks")
    begin, plain_verify = time.monotonic(), getattr(both_sides, VERIFY)
    progress = Progress(clients * (3.0 * clients + 4 * context.degree + 2), say)
    try:
        server = consortium.server()
        with Crowd(clients, floats, cores, progress) as crowd:
            for module in (both_sides, server_side):
                setattr(module, VERIFY, meter.checking(plain_verify))
            published = run(crowd, server, meter, clients, context.degree, sparse=context.graph == "harary")
            seconds, checks = crowd.costs()
    finally:
        for module in (both_sides, server_side):
            setattr(module, VERIFY, plain_verify)
    wall = time.monotonic() - begin
    assert_exact(consortium, published, lambda site: normal_update(site, floats))
    one = {name: 1000 * seconds[name] / clients for name in ("keys and shares", "masks", "checks", "other")}
    return {
        "clients": clients,
        "floats": floats,
        "graph": context.graph,
        "degree": context.degree,
        "share_threshold": context.share_threshold,
        "colluders": context.colluders,
        "dropped": len(dropouts(clients, sparse=context.graph == "harary")),
        "keys_and_shares_ms": one["keys and shares"],
        "masks_ms": one["masks"],
        "checks_ms": one["checks"],
        "checks": round(checks / clients),
        "other_ms": one["other"],
        "server_s": meter.seconds["server"] + meter.seconds["checks"],
        "server_checks_s": meter.seconds["checks"],
        "wall_s": wall,
    }


def run(crowd: Crowd, server: ServerSession, meter: Meter, clients: int, degree: int, *, sparse: bool) -> PublishedSum:
    """Move the round phase by phase; return what the server publishes, which every site left has checked."""

    def collect(phase: str, message: Any, work_of_one: float, receive: Callable[[Any], None]) -> None:
        for answer in crowd.ask(phase, message, work_of_one):
            with meter.part("server"):
                receive(answer)

    def close(call: Callable[[], Any]) -> Any:
        with meter.part("server"):
            return call()

    collect("keys", None, 1, server.receive_advertise_keys)
    message = close(server.close_advertise_keys)
    if sparse:
        collect("nonce", message, clients, server.receive_nonce)
        message = close(server.close_nonces)
        collect("shares", message, 2 * degree, server.receive_share_keys)
    else:
        collect("shares", message, clients + 2 * degree, server.receive_share_keys)
    collect("input", close(server.close_share_keys), 2 * degree, server.receive_masked_input)
    collect("confirm", close(server.close_masked_inputs), clients, server.receive_confirmation)
    collect("unmask", close(server.close_confirmations), clients, server.receive_unmask_shares)
    published: PublishedSum = close(server.close_unmask).message
    for _ in crowd.ask("publish", published, 1):
        pass
    return published
