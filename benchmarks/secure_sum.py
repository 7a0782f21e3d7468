"""The secure sum by itself, beside Flower's SecAgg+ on the same cores: seconds of a whole round, and its lower bound.

    python benchmarks/secure_sum.py [--peer-venv DIR] [--rows 1000000x5,5000000x10] [--runs 5] [--json]

Needs numpy and cryptography only. Every site and the server run one after another in one process: what a row counts is
everything between floats at the sites and the decoded sum at the server, and the exact sum is asserted after it. The
other parts, each with a switch of its own: masking against the cipher, bytes a float, the server's memory, and cohorts
of up to a thousand sites on the sparse graph.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a checkout is enough

from benchmarks.crowd import crowd_row  # noqa: E402
from benchmarks.floor import COUNTER_MODE, GCM, cipher_rate, masking_row, round_keystream_bytes  # noqa: E402
from benchmarks.peer import Peer, PeerLimitError, PeerMissingError  # noqa: E402
from benchmarks.rounds import Consortium, normal_update, run_round  # noqa: E402
from benchmarks.server_memory import memory_row  # noqa: E402
from benchmarks.tables import show  # noqa: E402

ROWS = "1000000x5,5000000x10,1000x100"
PEER_ONCE_CLIENTS = 50  # from here on the peer takes minutes a round and is run once
BYTES_ROWS = ((32, 4.05), (16, 2.05))  # ring bits, and the most bytes a float
MEMORY_CLIENTS = (5, 50)
MASKING_FLOATS = (1_000_000, 10_000_000)
MASKING_NEIGHBOURS = (0, 4, 9, 19)
CROWDS = (100, 300, 1_000)


@dataclass(frozen=True)
class Settings:
    """What holds for every row of one run."""

    runs: int
    cores: tuple[int, ...]
    wire: bool
    peer_environment: Path | None
    peer_limit_s: float

    def described(self) -> dict[str, Any]:
        """The settings and versions for the output."""
        return {
            "runs": self.runs,
            "cores": list(self.cores),
            "messages": "as bytes and back" if self.wire else "handed over in memory",
            "peer_limit_s": self.peer_limit_s,
            "python": platform.python_version(),
            "numpy": version("numpy"),
            "cryptography": version("cryptography"),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        }


def say(text: str) -> None:
    """Tell the person who waits."""
    print(text, file=sys.stderr, flush=True)


def round_row(floats: int, clients: int, settings: Settings) -> dict[str, Any]:
    """Run one row: ours and the peer in turns, medians of both."""
    consortium = Consortium.enrol(clients, floats)
    updates = {site: normal_update(site, floats) for site in consortium.cohort}
    threshold = consortium.context.threshold
    rate = max(cipher_rate(len(settings.cores), mode) for mode in (COUNTER_MODE, GCM))
    outcomes, answers = [], []
    row: dict[str, Any] = {"floats": floats, "clients": clients}
    with ExitStack() as stack:
        arguments = [f"--floats={floats}", f"--clients={clients}", f"--threshold={threshold}"]
        peer = start_peer(arguments, settings, stack)
        row["peer"] = peer.version if peer else None
        run_round(Consortium.enrol(3, 1_000), {site: normal_update(site, 1_000) for site in (1, 2, 3)})
        for number in range(settings.runs):
            say(f"{floats:,} floats, {clients} clients: run {number + 1} of {settings.runs}")
            outcomes.append(run_round(consortium, updates, wire=settings.wire))
            if peer is None or (number and clients >= PEER_ONCE_CLIENTS):
                continue
            try:
                answers.append(peer.round(settings.peer_limit_s))
            except PeerLimitError:
                say(f"the peer was stopped after {settings.peer_limit_s:g} s")
                row["peer_over_s"], peer = settings.peer_limit_s, None
                stack.close()
    peer_seconds = [answer["seconds"] for answer in answers]
    ours = [outcome.seconds for outcome in outcomes]
    keystream = round_keystream_bytes(clients, clients - 1, consortium.policy.length * consortium.policy.dtype.itemsize)
    row |= {
        "threshold": threshold,
        "ours_s": statistics.median(ours),
        "ours_spread_s": [min(ours), max(ours)],
        "ours_published_s": statistics.median(outcome.published_seconds for outcome in outcomes),
        "ours_parts_s": {name: statistics.median(o.parts[name] for o in outcomes) for name in outcomes[0].parts},
        "peer_s": statistics.median(peer_seconds) if peer_seconds and "peer_over_s" not in row else None,
        "peer_spread_s": [min(peer_seconds), max(peer_seconds)] if peer_seconds else None,
        "peer_runs": len(answers),
        "peer_bytes_per_float": answers[0]["bytes_per_float"] if answers else None,
        "ours_processor_s": statistics.median(outcome.processor_seconds for outcome in outcomes),
        "peer_processor_s": statistics.median(a["processor_seconds"] for a in answers) if answers else None,
        "floor_s": keystream / rate,
        "bytes_per_float": outcomes[0].bytes_sent / floats,
        "cipher_gigabytes_per_s": rate / 1e9,
    }
    row["ratio"] = row["peer_s"] / row["ours_s"] if row["peer_s"] else None
    row["processor_ratio"] = row["peer_processor_s"] / row["ours_processor_s"] if row["peer_s"] else None
    return row


def start_peer(arguments: list[str], settings: Settings, stack: ExitStack) -> Peer | None:
    """Start the peer for one row; None, said loudly, where it is missing."""
    if settings.peer_environment is None:
        say("NO PEER: nothing to compare with. Give --peer-venv a virtual environment that holds flwr 1.41.0.")
        return None
    try:
        return stack.enter_context(Peer(settings.peer_environment, arguments + ["--wire"] * settings.wire))
    except PeerMissingError as missing:
        say(f"NO PEER: {missing}. Make one with: python3 -m venv DIR && DIR/bin/pip install flwr==1.41.0")
        return None


def bytes_row(ring_bits: int, limit: float, floats: int = 1_000_000, clients: int = 20) -> dict[str, Any]:
    """Count everything that one site sends."""
    consortium = Consortium.enrol(clients, floats, ring_bits=ring_bits)
    outcome = run_round(consortium, {site: normal_update(site, floats) for site in consortium.cohort})
    return {
        "floats": floats,
        "clients": clients,
        "ring_bits": ring_bits,
        "bytes_per_float": outcome.bytes_sent / floats,
        "limit": limit,
    }


COLUMNS: dict[str, list[tuple[str, str, str]]] = {
    "rows": [
        ("floats", "floats", ",d"),
        ("clients", "clients", "d"),
        ("t", "threshold", "d"),
        ("ours s", "ours_s", ".3f"),
        ("Flower s", "peer_s", ".3f"),
        ("ratio", "ratio", ".1f"),
        ("of processor time", "processor_ratio", ".1f"),
        ("floor s", "floor_s", ".3f"),
        ("with publication s", "ours_published_s", ".3f"),
        ("bytes a float", "bytes_per_float", ".3f"),
    ],
    "masking": [
        ("floats", "floats", ",d"),
        ("masks", "masks", "d"),
        ("threads", "threads", "d"),
        ("masking s", "masking_s", ".4f"),
        ("cipher s", "floor_s", ".4f"),
        ("ratio", "ratio", ".2f"),
        ("of processor time", "processor_ratio", ".2f"),
        ("ratio to GCM", "ratio_to_gcm", ".2f"),
        ("GB/s", "gigabytes_per_s", ".2f"),
    ],
    "bytes": [
        ("floats", "floats", ",d"),
        ("clients", "clients", "d"),
        ("ring bits", "ring_bits", "d"),
        ("bytes a float, up", "bytes_per_float", ".4f"),
        ("at most", "limit", ".2f"),
    ],
    "memory": [
        ("floats", "floats", ",d"),
        ("clients", "clients", "d"),
        ("peak MB above the start", "peak_megabytes", ".1f"),
        ("in vectors", "peak_vectors", ".2f"),
    ],
    "sparse": [
        ("clients", "clients", "d"),
        ("graph", "graph", "s"),
        ("degree", "degree", "d"),
        ("dropped", "dropped", "d"),
        ("keys+shares ms", "keys_and_shares_ms", ".1f"),
        ("masks ms", "masks_ms", ".1f"),
        ("signature checks ms", "checks_ms", ".1f"),
        ("number", "checks", "d"),
        ("other ms", "other_ms", ".1f"),
        ("server s", "server_s", ".2f"),
        ("of it checks s", "server_checks_s", ".2f"),
        ("wall s", "wall_s", ".1f"),
    ],
}
TITLES = {
    "rows": "A whole round, every site and the server in turn (medians)",
    "masking": "Masking one vector against AES-256-CTR alone (medians, in turns)",
    "bytes": "Everything that one site sends",
    "memory": "The server's process, one client at a time beside it",
    "sparse": "Many simulated clients, 5 % of them dropping (processor time of one client)",
}


def parse_rows(text: str) -> list[tuple[int, int]]:
    """Read FLOATSxCLIENTS,..."""
    try:
        rows = [tuple(map(int, item.split("x"))) for item in text.split(",")]
        return [(floats, clients) for floats, clients in rows]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not like 1000000x5,1000x100") from None


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--rows", type=parse_rows, default=parse_rows(ROWS), help=f"floats x clients; default {ROWS}")
    made.add_argument("--runs", type=int, default=5, help="runs of each row; the median is shown")
    made.add_argument("--cores", type=int, help="cores that ours and the peer are both held to; default all")
    made.add_argument(
        "--in-memory",
        action="store_true",
        help="hand messages over as they are, on both sides, instead of turning each into bytes and back",
    )
    made.add_argument("--peer-venv", type=Path, help="virtual environment that holds flwr 1.41.0")
    made.add_argument("--peer-limit-s", type=float, default=600.0, help="longest round of the peer")
    made.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    made.add_argument("--masking", action="store_true", help="masking against the cipher instead of the rows")
    made.add_argument("--bytes", action="store_true", help="bytes a float at 32 and 16 bits instead of the rows")
    made.add_argument("--memory", action="store_true", help="the server's peak memory instead of the rows")
    made.add_argument("--sparse", action="store_true", help="cohorts of 100, 300 and 1,000 instead of the rows")
    made.add_argument("--sparse-clients", type=lambda text: tuple(map(int, text.split(","))), default=CROWDS)
    made.add_argument("--sparse-floats", type=int, default=100_000)
    made.add_argument("--all", action="store_true", help="every part")
    return made


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    every_core = sorted(os.sched_getaffinity(0))
    cores = tuple(every_core[-(options.cores or len(every_core)) :])
    settings = Settings(options.runs, cores, not options.in_memory, options.peer_venv, options.peer_limit_s)
    chosen = {name for name in ("masking", "bytes", "memory", "sparse") if getattr(options, name) or options.all}
    output: dict[str, Any] = {"settings": settings.described()}
    if options.all or not chosen:
        os.sched_setaffinity(0, cores)
        output["rows"] = [round_row(floats, clients, settings) for floats, clients in options.rows]
        os.sched_setaffinity(0, every_core)
    if "masking" in chosen:
        output["masking"] = [
            masking_row(floats, neighbours + 1, threads, options.runs)
            for floats in MASKING_FLOATS
            for threads in sorted({1, len(every_core)})
            for neighbours in MASKING_NEIGHBOURS
        ]
    if "bytes" in chosen:
        output["bytes"] = [bytes_row(ring_bits, limit) for ring_bits, limit in BYTES_ROWS]
    if "memory" in chosen:
        output["memory"] = [memory_row(clients, say) for clients in MEMORY_CLIENTS]
    if "sparse" in chosen:
        output["sparse"] = [crowd_row(n, options.sparse_floats, every_core, say) for n in options.sparse_clients]
    if options.json:
        print(json.dumps(output))
        return
    print(", ".join(f"{name} {value}" for name, value in output["settings"].items()))
    for name in (name for name in COLUMNS if name in output):
        print("\n" + show(TITLES[name], output[name], COLUMNS[name]))
        if name == "memory":
            few, many = (row["peak_vectors"] for row in output["memory"])
            print(f"difference: {many - few:.2f} vectors")


if __name__ == "__main__":
    main()
