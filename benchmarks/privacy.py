"""Noise on one core: float64 normals against torch's own, and exact discrete Gaussians. What a round's privacy costs.

    python -m benchmarks.privacy [--draws 1000000] [--repeats 9] [--rounds 60] [--rows 10000] [--json]

Rates are in millions of draws a second of processor time, the fastest of the repeats; every generator is timed in turns
with torch.randn(dtype=float64), so that the ratio to it survives a busy machine. torch's generator is a fast one that
anybody who sees enough of it can predict; noise for privacy needs a cryptographic one.

Behind it: the time to charge a round durably, to verify a long ledger, and how much louder the mean of four sites is
where each adds all of its noise itself than where they share it, by theory and by the real code.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.privacy_rounds import CHARGED_ROUNDS, LEDGER_ROWS, print_rounds, rounds_report
from privacy.discrete_gaussian import TABLE_LIMIT, DiscreteGaussian
from privacy.noise import KeyStream, gaussian

Draw = Callable[[int], Any]

REFERENCE = "torch.randn float64"


def generators() -> dict[str, Draw]:
    """Every generator by name; each takes the number of draws."""
    laws = {f"discrete, table, sigma {sigma}": DiscreteGaussian(sigma) for sigma in (4, 64, TABLE_LIMIT)}
    laws |= {f"discrete, rejection, sigma {name}": DiscreteGaussian(s) for name, s in (("1e6", 1e6), ("2^40", 2**40))}
    return {
        REFERENCE: lambda size: torch.randn(size, dtype=torch.float64),
        "gaussian float64": lambda size: gaussian(size, 1.0),
        "AES-256-CTR words": key_stream,
        **{name: law.sample for name, law in laws.items()},
    }


def key_stream(size: int) -> None:
    """The random words alone, in blocks: no generator that takes one for each draw can be faster."""
    block = 16384
    stream = KeyStream(os.urandom, block)
    for start in range(0, size, block):
        stream.words(min(block, size - start))


def measure(draws: int, repeats: int) -> dict[str, float]:
    """Millions of draws a second by generator."""
    named = generators()
    fastest = dict.fromkeys(named, float("inf"))
    for draw in named.values():
        draw(1000)  # tables, and the first use of each library
    for _ in range(repeats):
        for name, draw in named.items():
            start = time.process_time()
            draw(draws)
            fastest[name] = min(fastest[name], time.process_time() - start)
    return {name: draws / seconds / 1e6 for name, seconds in fastest.items()}


def main() -> None:
    """Print the table, or the same figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=1_000_000, help="draws in each vector")
    parser.add_argument("--repeats", type=int, default=9, help="vectors of each kind")
    parser.add_argument("--rounds", type=int, default=CHARGED_ROUNDS, help="rounds to charge")
    parser.add_argument("--rows", type=int, default=LEDGER_ROWS, help="rows of the ledger that is verified")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rates = measure(arguments.draws, arguments.repeats)
    rows = {
        name: {"million_per_second": round(rate, 2), "ratio_to_torch_randn": round(rate / rates[REFERENCE], 3)}
        for name, rate in rates.items()
    }
    report = rounds_report(arguments.rounds, arguments.rows)
    if arguments.json:
        output = {"draws": arguments.draws, "repeats": arguments.repeats, "noise": rows, **report}
        print(json.dumps(output, indent=2))
        return
    print(f"{'generator':<34}{'M/s, one core':>15}{'to torch.randn':>16}")
    for name, row in rows.items():
        print(f"{name:<34}{row['million_per_second']:>15.1f}{row['ratio_to_torch_randn']:>16.2f}")
    print_rounds(report)


if __name__ == "__main__":
    main()
