"""A cell's federation with sites in other processes: the real server on a port, the real clients, mutual TLS."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from fedmvp.data.records import ImageRecord
from fedmvp.errors import UserError
from fedmvp.experiments.cell import Bench, Prepared
from fedmvp.experiments.federation import FederationOutcome, make_study
from fedmvp.experiments.material import Deal
from fedmvp.experiments.site_host import SiteReport, SiteTask, pack_folder
from fedmvp.experiments.study import Study
from fedmvp.experiments.sweep import CellPlan
from fedmvp.server.app import SERVICE_NAME, run_server
from fedmvp.server.evaluator import PublicModel
from fedmvp.study.config import load_client_config, load_server_config
from fedmvp.study.policy import StudyPolicy
from fedmvp.study.workshop import Study as StudyFolder

Call = Callable[[int, str, Any], "Future[Any]"]
"""Calls a method of a `SiteHost` elsewhere: (position of the site, method, argument)."""


class ApartBench(Bench):
    """A bench whose cells have sites in other processes; what they hold is not read here.

    Args:
        study: the study.
        root: the folder that --data names, or None.
        scratch: folder for packaged images.
        host: address of this machine, under which sites reach it.
        call: reaches the sites.

    Raises:
        UserError: anything wrong with the data or the tower.
    """

    def __init__(self, study: Study, root: Path | None, scratch: Path, *, host: str, call: Call) -> None:
        self._call = call
        self._host = f"[{host}]" if ":" in host else host
        self._root = root
        self._scratch = scratch
        super().__init__(study, root, scratch)

    def records(self, deal: Deal) -> list[ImageRecord]:
        """Return what of a deal is kept in memory here: what is measured on."""
        return [record for test in deal.tests for record in test.images.records]

    def federate(
        self, plan: CellPlan, policy: StudyPolicy, prepared: Prepared, history: PublicModel
    ) -> FederationOutcome:
        """Carry out a cell's rounds with sites in other processes."""
        deal = prepared.deal
        with tempfile.TemporaryDirectory(prefix="fedmvp-cell-") as name:
            names = tuple(part.name for part in deal.sites)
            made = make_study(Path(name) / "study", policy, names, listen=f"{self._host}:0")
            tasks = [
                SiteTask(
                    folder=pack_folder(made.site_configs[part.name].parent),
                    study=self.study,
                    plan=plan,
                    deal=replace(deal, sites=(part,), tests=()),
                    objective=prepared.objective,
                    root=self._root,
                    scratch=self._scratch,
                )
                for part in deal.sites
            ]
            finish([self._call(at, "prepare", task) for at, task in enumerate(tasks)])
            return self._serve(made, history)

    def _serve(self, made: StudyFolder, history: PublicModel) -> FederationOutcome:
        """Start the server, then the sites; whichever fails first ends all."""
        server, names = _Server(made, history), tuple(made.site_configs)
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="server") as pool:
            serving = pool.submit(server.run)
            running: list[Future[Any]] = [serving]
            try:
                address = f"{self._host}:{server.port(serving)}"
                running += [self._call(at, "take_part", address) for at in range(len(names))]
                finish(running)
            except BaseException:
                server.stop()
                wait(running)
                raise
        reports = dict(zip(names, (site.result() for site in running[1:]), strict=True))
        return _outcome(made, reports, server.meter)


def finish(running: list[Future[Any]]) -> None:
    """Wait for all, or for the first that fails, and raise its error."""
    done, _ = wait(running, return_when=FIRST_EXCEPTION)
    for future in done:
        future.result()


class ByteMeter(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs alone
    """Adds up the messages of the service as they are serialised, by the caller's certificate.

    Attributes:
        sent: bytes of the requests of each caller.
        received: bytes of the replies to each caller.
    """

    def __init__(self) -> None:
        self.sent: Counter[bytes] = Counter()
        self.received: Counter[bytes] = Counter()

    async def intercept_service(self, continuation: Any, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return the method's handler, which counts."""
        handler = await continuation(handler_call_details)
        if handler is None or not str(handler_call_details.method).startswith(f"/{SERVICE_NAME}/"):
            return handler
        if handler.unary_stream is not None:
            return handler._replace(unary_stream=self._streaming(handler.unary_stream))
        if handler.stream_unary is not None:
            return handler._replace(stream_unary=self._collecting(handler.stream_unary))
        return handler._replace(unary_unary=self._answering(handler.unary_unary))

    def _answering(self, method: Any) -> Any:
        async def answer(request: Any, context: Any) -> Any:
            caller = _caller(context)
            self.sent[caller] += request.ByteSize()
            reply = await method(request, context)
            self.received[caller] += reply.ByteSize()
            return reply

        return answer

    def _collecting(self, method: Any) -> Any:
        async def collect(requests: AsyncIterator[Any], context: Any) -> Any:
            caller = _caller(context)

            async def counted() -> AsyncIterator[Any]:
                async for request in requests:
                    self.sent[caller] += request.ByteSize()
                    yield request

            reply = await method(counted(), context)
            self.received[caller] += reply.ByteSize()
            return reply

        return collect

    def _streaming(self, method: Any) -> Any:
        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            caller = _caller(context)
            self.sent[caller] += request.ByteSize()
            async with aclosing(method(request, context)) as replies:
                async for reply in replies:
                    self.received[caller] += reply.ByteSize()
                    yield reply

        return stream


class _Server:
    """The cell's server in a thread."""

    def __init__(self, made: StudyFolder, model: PublicModel) -> None:
        self.meter = ByteMeter()
        self._made = made
        self._model = model
        self._bound: Future[int] = Future()
        self._task: tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]] | None = None

    def run(self) -> None:
        run_server(
            load_server_config(self._made.server_config, environment={}),
            public_model=self._model,
            interceptors=[self.meter],
            on_listening=self._listening,
        )

    def port(self, serving: Future[None]) -> int:
        """Wait until calls are accepted and return the port; raise what keeps the server from it."""
        either: list[Future[Any]] = [serving, self._bound]
        wait(either, return_when=FIRST_COMPLETED)
        if not self._bound.done():
            serving.result()
        return self._bound.result()

    def stop(self) -> None:
        if self._task is not None:
            loop, task = self._task
            if not loop.is_closed():
                loop.call_soon_threadsafe(task.cancel)

    def _listening(self, port: int) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - called in the server's event loop
        self._task = asyncio.get_running_loop(), task
        self._bound.set_result(port)


def _caller(context: Any) -> bytes:
    return b"".join(context.auth_context().get("x509_pem_cert", ())).strip()


def _outcome(made: StudyFolder, reports: Mapping[str, SiteReport], meter: ByteMeter) -> FederationOutcome:
    rounds, everyone = made.policy.study.rounds, len(reports)
    if any(report.sums.contributors != [everyone] * rounds for report in reports.values()):
        raise UserError(
            f"{made.policy.study.run_id}: not every site was in the sum of each of the {rounds} rounds",
            remedy="run the study again: finished cells are kept; on slow machines start fewer --workers",
        )
    certificates = {
        name: load_client_config(path, environment={}).identity.certificate.read_bytes().strip()
        for name, path in made.site_configs.items()
    }
    return FederationOutcome(
        parameters=next(iter(reports.values())).parameters,
        epsilons={name: report.epsilon for name, report in reports.items()},
        bytes_up={name: meter.sent[certificate] for name, certificate in certificates.items()},
        bytes_down={name: meter.received[certificate] for name, certificate in certificates.items()},
        rounds=rounds,
        sum_error=_sum_error(reports),
    )


def _sum_error(reports: Mapping[str, SiteReport]) -> float:
    """Largest difference between what was published and what was put in, each added up over all rounds."""
    worst = 0.0
    for report in reports.values():
        difference = report.sums.totals.copy()  # type: ignore[union-attr]  # at least one round was published
        for other in reports.values():
            difference -= other.sums.inputs
        signed = np.dtype(f"i{difference.dtype.itemsize}")
        worst = max(worst, float(np.abs(difference.view(signed).astype(float)).max()))
    return worst
