"""`fedmvp-server run`: builds the coordinator from a configuration and serves until the study is done.

The keyword arguments of :func:`run_server` are for tests, benchmarks and the demo's display; no configuration key,
flag or variable reaches them.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fedmvp.errors import ExitCode, UserError
from fedmvp.rpc.channel import bind, server_options
from fedmvp.rpc.identity import CallerTable
from fedmvp.rpc.in_process import InProcessServer
from fedmvp.rpc.strict import StrictRequests
from fedmvp.rpc.v1.aggregation_pb2 import DESCRIPTOR
from fedmvp.rpc.v1.aggregation_pb2_grpc import add_AggregationServicer_to_server
from fedmvp.server.coordinator import Coordinator
from fedmvp.server.evaluator import PublicModel
from fedmvp.server.events import EventLog, Listener, steps_in
from fedmvp.server.folder_lock import lock_folder
from fedmvp.server.lobby import Lobby, RunOver
from fedmvp.server.reporter import Reporter
from fedmvp.server.run_state import RunState
from fedmvp.server.service import AggregationService
from fedmvp.server.tracker import PrivacyTracker
from fedmvp.study.config import ServerConfig, is_loopback, split_endpoint
from fedmvp.study.credentials import SignedStudy, TlsFiles, load_server, load_study
from secure_agg.masks import Masker, add_masks
from secure_agg.policy import MAX_COHORT_SITES

log = structlog.get_logger("fedmvp.server")

EVENTS_FILE = "events.jsonl"
SERVICE_NAME = DESCRIPTOR.services_by_name["Aggregation"].full_name

ROSTER_GRACE_SECONDS = 20.0
"""A process that was restarted, or starts beside the others, is back within this; nobody waits longer for one site."""

FAREWELL_SECONDS = 10.0
"""At the end of a run every connected site is told so before the port closes."""

MAX_CONCURRENT_CALLS = 4 * MAX_COHORT_SITES
"""Calls held at once: three a site for the largest cohort, and room to spare."""


@dataclass(frozen=True)
class _Seams:
    """What tests, benchmarks and the demo replace; see :func:`run_server`."""

    public_model: PublicModel | None
    masker: Masker
    interceptors: Sequence[grpc.aio.ServerInterceptor[Any, Any]]
    listener: Listener | None
    on_listening: Callable[[int], None]
    roster_grace_seconds: float


@dataclass(frozen=True)
class _Port:
    """A server with its port bound and no call accepted yet."""

    server: grpc.aio.Server
    host: str
    number: int
    secure: bool
    checks: Any

    async def open(self, service: AggregationService) -> None:
        """Accept calls."""
        add_AggregationServicer_to_server(service, self.server)
        health_pb2_grpc.add_HealthServicer_to_server(self.checks, self.server)
        await self.server.start()
        for name in ("", SERVICE_NAME):
            await self.checks.set(name, health_pb2.HealthCheckResponse.SERVING)
        log.info("listening", port=self.number, host=self.host, tls=self.secure)

    async def close(self) -> None:
        """Accept no further call."""
        await self.checks.enter_graceful_shutdown()
        await self.server.stop(grace=1.0)


@dataclass(frozen=True)
class _InProcessPort:
    """A server whose callers are threads of this process; they show certificates, as under TLS."""

    server: InProcessServer
    number: int = 0
    secure: bool = True

    async def open(self, service: AggregationService) -> None:
        """Accept calls."""
        add_AggregationServicer_to_server(service, cast("grpc.aio.Server", self.server))
        self.server.open()

    async def close(self) -> None:
        """Accept no further call."""
        self.server.close()


def run_server(
    config: ServerConfig,
    *,
    public_model: PublicModel | None = None,
    masker: Masker = add_masks,
    interceptors: Sequence[grpc.aio.ServerInterceptor[Any, Any]] = (),
    listener: Listener | None = None,
    on_listening: Callable[[int], None] = lambda _port: None,
    roster_grace_seconds: float = ROSTER_GRACE_SECONDS,
    in_process: InProcessServer | None = None,
) -> RunOver:
    """Serve a study until its last round, or until SIGINT or SIGTERM.

    Args:
        config: a validated server.toml.
        public_model: instead of the model that the policy names.
        masker: the mask generator; replaced in tests only.
        interceptors: see every call.
        listener: hears every event.
        on_listening: called with the bound port once calls are accepted.
        roster_grace_seconds: how long a missing site is waited for when enough others are here.
        in_process: serve threads of this process through it, and bind no port.

    Returns:
        How many rounds are done and why the run is over.

    Raises:
        UserError: files, keys or certificates are wrong, the port or the state folder is taken, or too few sites came.
    """
    if config.insecure and not is_loopback(config.server.listen):
        raise UserError(
            f"--insecure is refused: {config.server.listen} is not a loopback address",
            remedy="remove --insecure",
            exit_code=ExitCode.IDENTITY,
        )
    study, tls = (load_study(config.study), None) if config.insecure else load_server(config)
    seams = _Seams(public_model, masker, interceptors, listener, on_listening, roster_grace_seconds)
    if in_process is not None:
        try:
            return asyncio.run(_serve_locked(_InProcessPort(in_process), config, study, seams))
        finally:
            in_process.close()
    return asyncio.run(_serve(config, study, tls, seams))


async def _serve(config: ServerConfig, study: SignedStudy, tls: TlsFiles | None, seams: _Seams) -> RunOver:
    server = grpc.aio.server(
        interceptors=[StrictRequests(), *seams.interceptors],
        options=server_options(),
        maximum_concurrent_rpcs=MAX_CONCURRENT_CALLS,
    )
    number = bind(server, config.server.listen, tls)  # before anything slow or durable: a taken port is the first news
    host = split_endpoint(config.server.listen)[0]
    checks = health.aio.HealthServicer()  # type: ignore[attr-defined]  # the stubs do not know it
    return await _serve_locked(_Port(server, host, number, tls is not None, checks), config, study, seams)


async def _serve_locked(
    port: _Port | _InProcessPort, config: ServerConfig, study: SignedStudy, seams: _Seams
) -> RunOver:
    with lock_folder(config.server.state_dir):
        return await _serve_at(port, config, study, seams)


async def _serve_at(port: _Port | _InProcessPort, config: ServerConfig, study: SignedStudy, seams: _Seams) -> RunOver:
    model = (
        seams.public_model if seams.public_model is not None else await asyncio.to_thread(_load_model, config, study)
    )
    state_dir = config.server.state_dir
    state = RunState(state_dir, study.policy, study.roster, model.initial_parameters())
    events = EventLog(state_dir / EVENTS_FILE, listener=seams.listener)
    lobby = Lobby(study.roster.active_ids)
    tracker = PrivacyTracker(study.roster, study.policy.study.run_id, steps_in(state_dir / EVENTS_FILE))
    reporter = Reporter(events, model, tracker, lobby)
    coordinator = Coordinator(
        policy=study.policy,
        roster=study.roster,
        state=state,
        lobby=lobby,
        events=events,
        reporter=reporter,
        roster_grace_seconds=seams.roster_grace_seconds,
        masker=seams.masker,
    )
    service = AggregationService(
        policy=study.policy,
        roster=study.roster,
        callers=CallerTable(study.roster, insecure=not port.secure),
        coordinator=coordinator,
        lobby=lobby,
        tracker=tracker,
    )
    try:
        await port.open(service)
        await _announce_start(events, study, state, model)
        seams.on_listening(port.number)
        return await _run_to_the_end(coordinator, reporter, lobby, events)
    finally:
        await port.close()
        state.close()
        events.close()


def _load_model(config: ServerConfig, study: SignedStudy) -> PublicModel:
    from fedmvp.server.public_model import load_public_model  # noqa: PLC0415 - torch takes seconds to import

    return load_public_model(config, study.policy)


async def _announce_start(events: EventLog, study: SignedStudy, state: RunState, model: PublicModel) -> None:
    score = await asyncio.to_thread(model.score, state.parameters)
    events.emit(
        "run-started",
        run_id=study.policy.study.run_id,
        rounds=study.policy.study.rounds,
        next_round=state.next_attempt[0],
        rounds_completed=state.rounds_completed,
        resumed=state.resumed,
        dimension=state.secure_sum.dimension,
        mode=study.policy.privacy.mode,
        delta=study.policy.privacy.delta,
        sites={entry.site_id: entry.name for entry in study.roster.entries if not entry.revoked},
        accuracy=score.accuracy if score else None,
        accuracy_interval=[score.low, score.high] if score else None,
        public_images=score.images if score else 0,
    )


async def _run_to_the_end(coordinator: Coordinator, reporter: Reporter, lobby: Lobby, events: EventLog) -> RunOver:
    """Run the rounds beside the reports; stop early on a signal."""
    rounds = asyncio.create_task(coordinator.run())
    reports = asyncio.create_task(reporter.run())
    try:
        with _cancelled_by_signals(rounds):
            await asyncio.wait({rounds, reports}, return_when=asyncio.FIRST_COMPLETED)
            if reports.done():
                await reports  # it never ends by itself: this raises its error
            if rounds.cancelled():
                over = RunOver(coordinator.state.rounds_completed, "stopped by a signal", finished=False)
            else:
                over = await rounds
                lobby.close(over)
                await reporter.drain()
                await lobby.wait_until_told(FAREWELL_SECONDS)
    except UserError as error:
        events.emit("run-failed", reason=error.what, remedy=error.remedy)
        raise
    finally:
        rounds.cancel()
        reports.cancel()
        await asyncio.gather(rounds, reports, return_exceptions=True)
    score = reporter.last_score
    events.emit(
        "run-finished" if over.finished else "run-stopped",
        rounds_completed=over.rounds_completed,
        reason=over.reason,
        accuracy=score.accuracy if score else None,
    )
    return over


@contextmanager
def _cancelled_by_signals(task: asyncio.Task[RunOver]) -> Iterator[None]:
    """Cancel `task` on SIGINT or SIGTERM; without effect outside the main thread, where there are no signals."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    for number in numbers:
        loop.add_signal_handler(number, task.cancel)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
