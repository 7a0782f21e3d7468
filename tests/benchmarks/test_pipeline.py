from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.pipeline import TINY, measure_batches, measure_tower, write_photographs


def test_the_benchmark_of_the_pipeline_runs_and_names_what_it_measures(tmp_path: Path) -> None:
    arguments = argparse.Namespace(injection="input", device="cpu", repeats=1, compile=False)
    assert set(measure_tower(TINY, arguments)) == {"plain", "channels last"}
    dataset = write_photographs(tmp_path, 3)
    rates = measure_batches(TINY, dataset, tmp_path, arguments)
    assert set(rates) == {"from memory", "from the cache", "from files", "bytes a row"}
    assert all(value > 0 for value in rates.values())
    assert list((tmp_path / "cache").glob("*.sealed"))
