"""The server's peak memory in a process of its own, where one client at a time makes its vector and is done with it.

What a client needs for its vector is the same however many clients there are, and so is in every figure alike: the
difference between two cohorts is what the server keeps for each client.
"""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rounds import Consortium, MemoryReleases
from secure_agg.ring import encode

FLOATS = 5_000_000


def memory_row(clients: int, say: Callable[[str], None], floats: int = FLOATS) -> dict[str, Any]:
    """Measure one cohort in a fresh process."""
    say(f"memory: {clients} clients of {floats:,} floats")
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=run_and_report, args=(sender, clients, floats))
    process.start()
    sender.close()
    try:
        peak = receiver.recv()
    except EOFError:
        raise SystemExit("the process that measures memory died") from None
    finally:
        process.join()
    return {"floats": floats, "clients": clients, "peak_megabytes": peak / 1e6, "peak_vectors": peak / (4 * floats)}


def run_and_report(sender: Connection, clients: int, floats: int) -> None:
    """Run a round and send the peak of the resident memory above its start, in bytes."""
    page = resource.getpagesize()
    start = int(Path("/proc/self/statm").read_text().split()[1]) * page
    run(Consortium.enrol(clients, floats), floats)
    sender.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - start)


def run(consortium: Consortium, floats: int) -> None:
    """Run a round whose vectors exist one at a time; the exact sum is asserted."""
    server, policy = consortium.server(), consortium.policy
    clients = {site: consortium.client(site) for site in consortium.cohort}
    for client in clients.values():
        server.receive_advertise_keys(client.advertise_keys())
    keys = server.close_advertise_keys()
    for client in clients.values():
        server.receive_share_keys(client.receive_peer_keys(keys))
    inboxes, expected = server.close_share_keys(), 0
    for site, client in clients.items():
        client.receive_peer_shares(inboxes[site])
        vector = encode(policy, np.full(floats, site / 1024, dtype=np.float32))
        expected += int(vector[0])
        message = client.masked_input(vector, MemoryReleases(), overwrite=True)
        del vector
        server.receive_masked_input(message)
        del message
    survivors = server.close_masked_inputs()
    for client in clients.values():
        server.receive_confirmation(client.receive_survivors(survivors))
    confirmations = server.close_confirmations()
    for client in clients.values():
        server.receive_unmask_shares(client.receive_confirmations(confirmations))
    total = server.close_unmask().total
    if not (int(total.min()) == int(total.max()) == expected % 2**policy.ring_bits):
        raise SystemExit("the sum is wrong")
