"""A study's cells on the machines of a Ray cluster: actors that keep data and tower, results that the driver keeps.

Only the folder of --data has to be visible to every machine. A worker that is lost is started again, and so is the cell
that it was at; whatever had ended is on the driver's disk.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmvp import __version__
from fedmvp.errors import ExitCode, UserError
from fedmvp.experiments.results import Measurement
from fedmvp.experiments.run import POLL_SECONDS, StudyRun, log_errors_alone
from fedmvp.experiments.study import DataSection, Study, require_on_this_machine
from fedmvp.experiments.sweep import CellPlan
from fedmvp.extras import optional_module

MOST_LOSSES = 3
"""How often a lost process is replaced and its cell run again; then something is wrong with the machine or the cell."""

CLOSE_SECONDS = 10.0
"""For a worker to remove its scratch folder; one that takes longer is ended all the same."""

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker process is told once.

    Attributes:
        study: the study; attribute files by absolute path.
        root: the folder that --data names, absolute, or None.
        threads: of torch.
        sites_as_actors: whether each site of a cell is a process of its own.
        version: of the driver's fedmvp.
    """

    study: Study
    root: Path | None
    threads: int
    sites_as_actors: bool
    version: str = __version__


class RayEngine:
    """The machines of a Ray cluster.

    Args:
        address: the cluster's, as `ray.init` takes it; None takes that of RAY_ADDRESS, or starts one on this machine.
        workers: cells at once; 0 as many as the cluster has processors for.
        threads: of torch in each process.
        sites_as_actors: each site of a cell in a process of its own, which talks to the cell's server over the network.

    Raises:
        UserError: ray is not installed.
    """

    def __init__(
        self, address: str | None = None, workers: int = 0, threads: int = 1, *, sites_as_actors: bool = False
    ) -> None:
        _ray()
        self._address = address
        self._workers = workers
        self._threads = threads
        self._sites_as_actors = sites_as_actors

    def run(self, run: StudyRun, groups: Sequence[Sequence[CellPlan]], watch: Callable[[], None]) -> None:
        """As the protocol of engines says."""
        if self._sites_as_actors and not run.study.privacy.secure_sum:
            raise UserError(
                "[privacy] secure_sum = false adds up in the clear: there are no sites to be actors",
                remedy="set secure_sum = true, or leave --sites-as-actors away",
            )
        root = None if run.root is None else run.root.absolute()
        setup = WorkerSetup(_placed(run.study), root, self._threads, self._sites_as_actors)
        # What Ray says of a lost worker it prints to stdout, where a command's answer belongs.
        with redirect_stdout(sys.stderr), cluster(self._address, self._workers) as ray:
            count = min(len(groups), self._slots(ray, groups))
            options = {"num_cpus": 1, "max_restarts": MOST_LOSSES, "max_task_retries": MOST_LOSSES}
            workers = [ray.remote(**options)(CellHost).remote(setup) for _ in range(count)]
            try:
                _run_all(ray, workers, run, groups, watch)
                ray.wait([worker.close.remote() for worker in workers], num_returns=count, timeout=CLOSE_SECONDS)
            finally:
                for worker in workers:
                    ray.kill(worker)

    def _slots(self, ray: Any, groups: Sequence[Sequence[CellPlan]]) -> int:
        processors = int(ray.cluster_resources().get("CPU", 0))
        if not processors:
            raise UserError(
                "no machine of the Ray cluster offers a processor",
                remedy="start workers (ray start --address=HEAD:6379), or raise the replicas of the worker group",
                exit_code=ExitCode.COMPUTE,
            )
        if self._workers:
            return min(self._workers, processors)
        most_sites = max(plan.cell.sites for group in groups for plan in group) if self._sites_as_actors else 0
        return max(1, processors // (1 + most_sites))


class CellHost:
    """A worker process: runs cells one after the other, and reads data and tower once.

    Args:
        setup: the study, and how it is run.
    """

    def __init__(self, setup: WorkerSetup) -> None:
        log_errors_alone()
        self._setup = setup
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._bench: Any = None
        self._sites: list[Any] = []

    def run(self, plan: CellPlan) -> list[Measurement]:
        """Run one cell.

        Raises:
            UserError: it cannot be run; the message names it.
        """
        for _ in range(MOST_LOSSES):
            try:
                return self._run(plan)
            except UserError:
                raise
            except Exception as error:
                if not self._sites or not _is_loss(error):
                    raise
                self._dismiss()  # and once more with new sites, from the cell's first round
        raise UserError(
            f"{plan.cell.name}: a site's process was lost {MOST_LOSSES} times, perhaps for lack of memory",
            remedy="run again with fewer --workers, or with more memory for each process; finished cells are kept",
            exit_code=ExitCode.COMPUTE,
        )

    def close(self) -> None:
        """Remove what was written on this machine."""
        _ray().get([site.close.remote() for site in self._sites])
        if self._scratch is not None:
            self._scratch.cleanup()

    def _run(self, plan: CellPlan) -> list[Measurement]:
        if self._bench is None:
            self._bench = self._open()
        if self._setup.sites_as_actors and plan.trains and len(self._sites) != plan.cell.sites:
            self._dismiss()
            ray = _ray()
            from fedmvp.experiments.site_host import SiteHost  # noqa: PLC0415

            # No processor is reserved, so that a cell never waits for ever for its last site.
            actor = ray.remote(num_cpus=0, scheduling_strategy="SPREAD")(SiteHost)
            self._sites = [actor.remote(self._setup.threads) for _ in range(plan.cell.sites)]
        measured: list[Measurement] = self._bench.run(plan)
        return measured

    def _open(self) -> Any:
        setup = self._setup
        if setup.version != __version__:
            raise UserError(
                f"a worker has fedmvp {__version__}, and the study was started with {setup.version}",
                remedy="install the same version on every node",
            )
        require_on_this_machine([setup.root] if setup.root is not None else [])
        import torch  # noqa: PLC0415 - seconds

        from fedmvp.experiments.cell import Bench  # noqa: PLC0415
        from fedmvp.experiments.sites_apart import ApartBench  # noqa: PLC0415

        torch.set_num_threads(setup.threads)
        self._scratch = self._scratch or tempfile.TemporaryDirectory(prefix="fedmvp-scratch-")
        scratch = Path(self._scratch.name)
        if not setup.sites_as_actors:
            return Bench(setup.study, setup.root, scratch)
        host = _ray().util.get_node_ip_address()
        return ApartBench(setup.study, setup.root, scratch, host=host, call=self._call)

    def _call(self, site: int, method: str, argument: Any) -> Future[Any]:
        answer: Future[Any] = getattr(self._sites[site], method).remote(argument).future()
        return unwrapped(answer)

    def _dismiss(self) -> None:
        for site in self._sites:
            _ray().kill(site)
        self._sites = []


def unwrapped(answer: Future[Any]) -> Future[Any]:
    """Return a future that raises what was raised over there, and not Ray's wrapping of it."""
    plain: Future[Any] = Future()

    def pass_on(done: Future[Any]) -> None:
        error = done.exception()
        if error is None:
            plain.set_result(done.result())
        else:
            plain.set_exception(_cause(error))

    answer.add_done_callback(pass_on)
    return plain


@contextmanager
def cluster(address: str | None, processors: int = 0) -> Iterator[Any]:
    """Be connected to a cluster, and leave things as they were.

    Args:
        address: as for the engine.
        processors: of the cluster that is started where there is none; 0 takes those of the machine.

    Raises:
        UserError: ray is not installed, or the cluster cannot be reached.
    """
    local = address is None and not os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = _ray()
    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if local:
        # Without "local" Ray joins whatever cluster was last started on this machine.
        options |= {"address": "local", "include_dashboard": False, "_node_ip_address": LOOPBACK}
        options |= {"num_cpus": processors or None}
    else:
        options |= {"address": address}
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = "a Ray cluster cannot be started here" if local else f"the Ray cluster {address or ''} is not reached"
        raise UserError(
            f"{where}: {_first_line(error)}",
            remedy="check --ray-address with: ray status --address ADDRESS; docs/experiments-cluster.md",
            exit_code=ExitCode.NETWORK,
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _run_all(
    ray: Any, workers: Sequence[Any], run: StudyRun, groups: Sequence[Sequence[CellPlan]], watch: Callable[[], None]
) -> None:
    """Give every worker one cell after the other; those of a group to the same, which has their features."""
    waiting = deque(deque(group) for group in groups)
    free = deque(workers)
    busy: dict[Any, tuple[Any, CellPlan, deque[CellPlan]]] = {}

    def start(worker: Any, group: deque[CellPlan]) -> None:
        plan = group.popleft()
        busy[worker.run.remote(plan)] = worker, plan, group

    while waiting or busy:
        while free and waiting:
            start(free.popleft(), waiting.popleft())
        ended, _ = ray.wait(list(busy), num_returns=1, timeout=POLL_SECONDS)
        for answer in ended:
            worker, plan, group = busy.pop(answer)
            run.keep(plan, _result(ray, answer))
            if group:
                start(worker, group)
            else:
                free.append(worker)
        watch()


def _result(ray: Any, answer: Any) -> list[Measurement]:
    try:
        rows: list[Measurement] = ray.get(answer)
    except ray.exceptions.RayError as error:
        if _is_loss(error):
            raise UserError(
                f"a worker process was lost {MOST_LOSSES + 1} times, or could not start: {_first_line(error)}",
                remedy="the same fedmvp must be on every node, and each needs memory for the study's images; "
                "run again: finished cells are kept",
                exit_code=ExitCode.COMPUTE,
            ) from error
        raise _cause(error) from None
    return rows


def _cause(error: BaseException) -> BaseException:
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error


def _is_loss(error: BaseException) -> bool:
    """Whether a process ended, and not what it did."""
    exceptions = _ray().exceptions
    return isinstance(error, exceptions.RayActorError | exceptions.ActorUnschedulableError | exceptions.ObjectLostError)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _placed(study: Study) -> Study:
    """Attribute files by absolute path: a worker has another working directory."""

    def placed(section: DataSection) -> DataSection:
        path = Path(section.attributes)
        return section.model_copy(update={"attributes": str(path.absolute())}) if path.is_file() else section

    further = {name: tuple(map(placed, getattr(study, name))) for name in ("joint", "others")}
    return study.model_copy(update={"data": placed(study.data), **further})


def _ray() -> Any:
    return optional_module("ray", extra="ray", purpose="--engine ray")
