"""The secure sum in one process: milliseconds by phase, bytes a float, and masking as a share of the cipher's own rate.

    python benchmarks/secure_sum.py [--floats 1000000] [--rounds 5]

Every site and the server run one after another in one thread and the exact sum is asserted. Times are of the processor,
so that a busy machine changes them little. A phase's time at a site is that of one site, at the server that of all
sites' messages together; the fastest of the rounds is shown for each. Nothing is sent: a network's time is apart. The
last columns compare the rate at which masks are generated and added with that of AES-256-CTR alone, measured in turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from secure_agg.client import ClientSession
from secure_agg.context import RoundContext
from secure_agg.keys import SigningKey
from secure_agg.masks import CHUNK_BYTES, add_mask
from secure_agg.policy import SecureSumPolicy
from secure_agg.ring import encode
from secure_agg.roster import Roster, RosterEntry
from secure_agg.server import ServerSession

CASES = ((3, 0), (5, 0), (5, 1), (10, 0), (10, 1))  # sites, and how many of them drop before their masked input
SITE_PHASES = ("keys", "shares", "mask", "confirm", "unmask")


class Clock:
    """Adds up processor seconds under names."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def time(self, name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call something and add what it took to a name."""
        start = time.process_time()
        result = call(*arguments)
        self.seconds[name] += time.process_time() - start
        return result


def wire_bytes(value: Any) -> int:
    """Count the content of a message: its bytes, and four for every integer."""
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, tuple):
        return sum(wire_bytes(item) for item in value)
    if dataclasses.is_dataclass(value):
        return sum(wire_bytes(getattr(value, field.name)) for field in dataclasses.fields(value))
    return 4


def one_round(n: int, floats: int, drops: int) -> tuple[Clock, float]:
    """Run the whole protocol once; the last ``drops`` sites fall silent before their masked input."""
    signing = {site: SigningKey.generate() for site in range(1, n + 1)}
    entries = (
        RosterEntry(site, f"s{site}", f"o{site}", key.verify_key, hashlib.sha256(b"%d" % site).digest())
        for site, key in signing.items()
    )
    roster = Roster(1, tuple(entries))
    policy = SecureSumPolicy.from_range(
        value_range=4.0, colluders=1, min_cohort=3, min_honest=2, max_cohort=n, dimension=floats
    )
    zero = bytes(32)
    context = RoundContext(
        "bench", 1, 1, zero, roster.hash, zero, roster.active_ids, policy.threshold(n), 1, 32, floats
    )
    common = {"policy": policy, "roster": roster, "context": context}
    clients = {
        site: ClientSession(site_id=site, signing_key=key, ledger_head=zero, **common) for site, key in signing.items()
    }
    server, clock, sent = ServerSession(**common), Clock(), 0
    values = np.random.default_rng(0).normal(0, 0.1, floats)
    vector = clock.time("encode", encode, policy, values)

    def collect(phase: str, make: Callable[[int], Any], receive: Callable[[Any], None], sites: tuple[int, ...]) -> None:
        nonlocal sent
        for site in sites:
            message = clock.time(f"site {phase}", make, site)
            sent += wire_bytes(message) if site == 1 else 0
            clock.time(f"server {phase}", receive, message)

    collect("keys", lambda s: clients[s].advertise_keys(), server.receive_advertise_keys, server.expected)
    keys = clock.time("server keys", server.close_advertise_keys)
    collect("shares", lambda s: clients[s].receive_peer_keys(keys), server.receive_share_keys, server.expected)
    shares = clock.time("server shares", server.close_share_keys)

    def mask(site: int) -> Any:
        clients[site].receive_peer_shares(shares[site])
        return clients[site].masked_input(vector)

    alive = server.expected[: n - drops]
    collect("mask", mask, server.receive_masked_input, alive)
    survivors = clock.time("server mask", server.close_masked_inputs)
    collect("confirm", lambda s: clients[s].receive_survivors(survivors), server.receive_confirmation, alive)
    signed = clock.time("server confirm", server.close_confirmations)
    collect("unmask", lambda s: clients[s].receive_confirmations(signed), server.receive_unmask_shares, alive)
    result = clock.time("server unmask", server.close_unmask)
    expected = vector * np.uint32(n - drops)
    if not np.array_equal(result.total, expected):
        raise SystemExit("the sum is wrong")
    for phase in SITE_PHASES:
        answered = n if phase in ("keys", "shares") else n - drops
        clock.seconds[f"one site {phase}"] = clock.seconds[f"site {phase}"] / answered
    return clock, sent / floats


def rates(floats: int) -> tuple[float, float]:
    """Return the rate of masking and of AES-256-CTR alone, in GB/s, measured in turns."""
    vector, seed = np.zeros(floats, dtype=np.uint32), bytes(range(32))
    zeros, out = bytes(CHUNK_BYTES), bytearray(CHUNK_BYTES + 15)
    best = [float("inf"), float("inf")]
    for _ in range(15):
        start = time.perf_counter()
        add_mask(vector, seed)
        middle = time.perf_counter()
        cipher = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor()
        for _ in range(vector.nbytes // CHUNK_BYTES):
            cipher.update_into(zeros, out)
        end = time.perf_counter()
        best = [min(best[0], middle - start), min(best[1], end - middle)]
    whole = vector.nbytes // CHUNK_BYTES * CHUNK_BYTES
    return vector.nbytes / best[0] / 1e9, whole / best[1] / 1e9


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--floats", type=int, default=1_000_000, help="length of every vector")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each kind")
    arguments = parser.parse_args()
    site_heads = "".join(f"{phase:>9}" for phase in SITE_PHASES)
    print(f"secure sum of {arguments.floats:,} floats, processor milliseconds; one site | server for all sites")
    print(
        f"{'n':>3}{'drop':>5} |{site_heads} |{site_heads} |{'whole':>8}{'B/float':>9}{'mask':>7}{'AES':>6}{'ratio':>7}"
    )
    for n, drops in CASES:
        runs = [one_round(n, arguments.floats, drops) for _ in range(arguments.rounds)]
        up = runs[0][1]
        fastest = {name: min(run[0].seconds[name] for run in runs) for name in runs[0][0].seconds}
        masking, cipher = rates(arguments.floats)
        site = "".join(f"{fastest[f'one site {phase}'] * 1e3:9.1f}" for phase in SITE_PHASES)
        server = "".join(f"{fastest[f'server {phase}'] * 1e3:9.1f}" for phase in SITE_PHASES)
        figures = f"{total(fastest) * 1e3:8.0f}{up:9.4f}{masking:7.2f}{cipher:6.2f}{masking / cipher:7.2f}"
        print(f"{n:>3}{drops:>5} |{site} |{server} |{figures}")
    print("whole: all sites and the server one after another; mask, AES: GB/s; ratio: masking over AES-256-CTR alone")


def total(seconds: dict[str, float]) -> float:
    """Seconds of the whole protocol, every site and the server one after another."""
    return sum(seconds[f"{side} {phase}"] for side in ("site", "server") for phase in SITE_PHASES)


if __name__ == "__main__":
    main()
