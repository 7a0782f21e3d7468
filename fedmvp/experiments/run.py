"""Runs a study: the cells that are not there yet, each written whole or not at all, and one results file at the end."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import structlog

from fedmvp.errors import UserError
from fedmvp.experiments.facts import require_unseen, study_facts
from fedmvp.experiments.material import Material
from fedmvp.experiments.results import Measurement, Row, read_results, write_results
from fedmvp.experiments.study import Study
from fedmvp.experiments.sweep import CellPlan, plan_cells

RESULTS_FILE = "results.parquet"
CELLS_FOLDER = "cells"
POLL_SECONDS = 0.5

Progress = Callable[[int, int], None]
"""Called with (cells that are there, cells of the study)."""


@dataclass(frozen=True)
class StudyRun:
    """A study, its data and where its results go.

    Attributes:
        study: the study.
        root: the folder that --data names, or None.
        out: the run's folder.
        fingerprint: of the data, from `Material.fingerprint`; filled in when the run begins.
    """

    study: Study
    root: Path | None
    out: Path
    fingerprint: str = ""

    @property
    def scratch(self) -> Path:
        """Folder for packaged images."""
        return self.out / "scratch"

    def cell_file(self, plan: CellPlan) -> Path:
        """Where a cell's rows go."""
        return self.out / CELLS_FOLDER / f"{plan.cell.name}.parquet"

    def keep(self, plan: CellPlan, measured: Sequence[Measurement]) -> None:
        """Write a finished cell, whole or not at all."""
        facts = {"study": self.study.study.name, "digest": self._digest(plan)}
        write_results(self.cell_file(plan), facts, [(plan.cell, value) for value in measured])

    def _digest(self, plan: CellPlan) -> str:
        """A hash of all that decides a cell's result: a kept cell of another hash is of another study."""
        return hashlib.sha256(f"{plan.digest(self.study)}/{self.fingerprint}".encode()).hexdigest()

    def kept(self, plan: CellPlan) -> tuple[Row, ...] | None:
        """Return a finished cell's rows, or None.

        Raises:
            UserError: the file is of other settings, or cannot be read.
        """
        path = self.cell_file(plan)
        if not path.is_file():
            return None
        results = read_results(path)
        if results.facts.get("digest") != self._digest(plan):
            raise UserError(
                f"{path} was run with other settings, data or software than now",
                remedy="name another --out, or remove that folder's cells to run them again",
            )
        return results.rows


class Engine(Protocol):
    """Runs groups of cells that share what they compute."""

    def run(self, run: StudyRun, groups: Sequence[Sequence[CellPlan]], watch: Callable[[], None]) -> None:
        """Run all cells and keep each as it ends; call `watch` now and then.

        Raises:
            UserError: a cell cannot be run; those that have ended are kept.
        """


class LocalEngine:
    """Processes of this machine.

    Args:
        workers: at least 1; 1 runs in this process.
        threads: of torch in each.
    """

    def __init__(self, workers: int = 1, threads: int = 1) -> None:
        self._workers = workers
        self._threads = threads

    def run(self, run: StudyRun, groups: Sequence[Sequence[CellPlan]], watch: Callable[[], None]) -> None:
        """As the protocol says."""
        if self._workers == 1:
            run_groups(run, groups, self._threads, watch)
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self._workers, context, _open_bench, (run, self._threads)) as pool:
            waiting: list[Future[None]] = [pool.submit(_run_group, group) for group in groups]
            try:
                while waiting:
                    time.sleep(POLL_SECONDS)
                    watch()
                    for future in [future for future in waiting if future.done()]:
                        future.result()
                        waiting.remove(future)
            except BrokenProcessPool:
                raise UserError(
                    "a worker process ended unexpectedly, perhaps for lack of memory",
                    remedy="run again with fewer --workers; finished cells are kept",
                ) from None
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def run_groups(
    run: StudyRun, groups: Sequence[Sequence[CellPlan]], threads: int, watch: Callable[[], None] = lambda: None
) -> None:
    """Run groups of cells in this process, one after the other.

    Args:
        run: the study.
        groups: cells that share what they compute.
        threads: of torch.
        watch: called after each cell.
    """
    import torch  # noqa: PLC0415 - seconds

    from fedmvp.experiments.cell import Bench  # noqa: PLC0415

    torch.set_num_threads(threads)
    bench = Bench(run.study, run.root, run.scratch)
    for plan in (plan for group in groups for plan in group):
        run.keep(plan, bench.run(plan))
        watch()


def run_study(run: StudyRun, engine: Engine, progress: Progress = lambda _done, _total: None) -> Path:
    """Run what is missing of a study and write its results.

    Args:
        run: the study, its data, and the folder of the run; finished cells in it are not run again.
        engine: where cells run.
        progress: hears how many cells are there.

    Returns:
        The results file.

    Raises:
        UserError: anything wrong with study or data, before any training; or a cell that cannot be run.
    """
    require_unseen(run.study)
    material = Material(run.study, run.root, run.scratch)
    run = replace(run, fingerprint=material.fingerprint)
    for count in material.site_counts:
        for seed in run.study.study.seeds:
            material.deal(count, seed)
    plans = plan_cells(run.study, material.site_counts)
    kept = {plan.cell: run.kept(plan) for plan in plans}
    missing = [plan for plan in plans if kept[plan.cell] is None]
    done = len(plans) - len(missing)
    progress(done, len(plans))
    if missing:
        files = [run.cell_file(plan) for plan in missing]
        engine.run(run, list(_grouped(missing)), lambda: progress(done + sum(map(Path.is_file, files)), len(plans)))
        kept |= {plan.cell: run.kept(plan) for plan in missing}
    rows = [row for found in kept.values() for row in found or ()]
    facts: dict[str, Any] = study_facts(run.study, material, [plan.cell.name for plan in plans])
    path = run.out / RESULTS_FILE
    write_results(path, facts, rows)
    progress(len(plans), len(plans))
    return path


def _grouped(plans: Sequence[CellPlan]) -> Iterator[list[CellPlan]]:
    """Cells that share modules and features, one group after the other."""

    def key(plan: CellPlan) -> tuple[str, str, int, int]:
        return plan.entry.name, plan.cell.size, plan.cell.sites, plan.cell.seed

    order = {name: at for at, name in enumerate(dict.fromkeys(plan.entry.name for plan in plans))}
    ordered = sorted(plans, key=lambda plan: (order[plan.entry.name], key(plan)))
    for _, group in groupby(ordered, key):
        yield list(group)


def log_errors_alone() -> None:
    """Drop what hundreds of servers and sites log for operators; for a worker process."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))


_BENCH: Any = None
_RUN: StudyRun | None = None


def _open_bench(run: StudyRun, threads: int) -> None:
    """Make a worker process ready."""
    global _RUN  # noqa: PLW0603 - a worker process has one study
    import torch  # noqa: PLC0415

    log_errors_alone()
    torch.set_num_threads(threads)
    _RUN = run


def _run_group(group: Sequence[CellPlan]) -> None:
    global _BENCH  # noqa: PLW0603 - a worker process has one bench
    from fedmvp.experiments.cell import Bench  # noqa: PLC0415

    assert _RUN is not None  # noqa: S101 - set by the initialiser
    if _BENCH is None:  # here and not in the initialiser, whose errors a pool does not pass on
        _BENCH = Bench(_RUN.study, _RUN.root, _RUN.scratch)
    for plan in group:
        _RUN.keep(plan, _BENCH.run(plan))
