"""``fedmvp-experiment run``."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from fedmvp.cli.program import say, stdout
from fedmvp.client.progress import shown
from fedmvp.errors import ExitCode, UserError
from fedmvp.experiments.run import Engine, LocalEngine, StudyRun, run_study
from fedmvp.experiments.study import load_study


@dataclass(frozen=True)
class RunOptions:
    """What the command was asked for; each as its option says."""

    study: Path
    data: Path | None
    out: Path | None
    workers: int
    engine: str
    changes: tuple[str, ...] = ()
    ray_address: str | None = None
    sites_as_actors: bool = False


def run(options: RunOptions) -> None:
    """Run what is missing of a study.

    Raises:
        UserError: anything wrong with study or data, before any training; or a cell that cannot be run.
    """
    engine = _engine(options)
    study = load_study(options.study, options.changes)
    out = options.out or Path("runs") / study.study.name
    structlog.configure(processors=[_progress_alone, *structlog.get_config()["processors"]])
    with shown(study.study.title) as progress:
        results = run_study(StudyRun(study, options.data, out), engine, progress)
    say(f"look at it: fedmvp-experiment report {out} --out {out / 'report'}")
    stdout().print(results)


def _progress_alone(_logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Drop what hundreds of servers and sites log for operators; keep errors, and how far the study is."""
    if method in ("error", "critical", "exception") or {"done", "total"} <= set(event):
        return event
    raise structlog.DropEvent


def _engine(options: RunOptions) -> Engine:
    if options.engine == "ray":
        from fedmvp.experiments.engine_ray import RayEngine  # noqa: PLC0415

        return RayEngine(options.ray_address, options.workers, sites_as_actors=options.sites_as_actors)
    if options.ray_address is not None or options.sites_as_actors:
        raise UserError(
            "--ray-address and --sites-as-actors belong to a Ray cluster",
            remedy="add --engine ray",
            exit_code=ExitCode.USAGE,
        )
    return LocalEngine(options.workers or max(1, os.cpu_count() or 1))
