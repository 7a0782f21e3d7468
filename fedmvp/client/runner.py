"""`fedmvp-client run`: stay connected, take part in every round that can be taken part in, stop for good reasons only.

The keyword arguments of :func:`run_client` are for tests, benchmarks and the demo; no configuration key, flag or
variable reaches them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from fedmvp.client.budget import budget_check, charged_dimension
from fedmvp.client.connection import Connection, RoundCall
from fedmvp.client.delta import require_small_delta
from fedmvp.client.errors import CoordinatorAwayError, RoundLostError
from fedmvp.client.invitation import read_invitation
from fedmvp.client.participant import SessionFactory, Site, take_part
from fedmvp.client.past import Past
from fedmvp.client.reach import explain_tls, require_safe, unreachable
from fedmvp.client.update_source import SourceFactory, load_trainer
from fedmvp.errors import ExitCode, UserError
from fedmvp.rpc.errors import WireError
from fedmvp.rpc.in_process import InProcessServer
from fedmvp.rpc.v1 import aggregation_pb2 as pb
from fedmvp.rpc.vectors import StateLayout
from fedmvp.study.config import ClientConfig
from fedmvp.study.credentials import load_site
from fedmvp.training.aggregate import ServerState
from privacy.ledger import Ledger
from privacy.receipt import make_receipt
from secure_agg.client import ClientSession
from secure_agg.errors import RemoteProtocolError

log = structlog.get_logger("fedmvp.client")

RECONNECT_SECONDS = 3600.0
"""How long a coordinator may be away before an operator should look: a reboot or an upgrade takes minutes."""

FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 15.0
"""Pauses between attempts to connect double up to this; a random part keeps sites from returning all at once."""

MAX_LOST_ROUNDS = 20
"""Attempts lost in a row after which this site stops: it trains, and nothing comes of it."""

Listener = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, eq=False)
class ClientOutcome:
    """How a site's run ended.

    Args:
        rounds_published: rounds this process took part in up to the verified sum.
        reason: what the coordinator said when the run was over.
        state: the last state this site verified, None if there was none.
        last_round: the round that led to it; 0 if there was none.
    """

    rounds_published: int
    reason: str
    state: ServerState | None
    last_round: int = 0


def run_client(
    config: ClientConfig,
    *,
    session_factory: SessionFactory = ClientSession,
    source_factory: SourceFactory = load_trainer,
    listener: Listener | None = None,
    reconnect_seconds: float = RECONNECT_SECONDS,
    server: InProcessServer | None = None,
) -> ClientOutcome:
    """Take part in a study until it is over.

    Args:
        config: a validated client.toml.
        session_factory: makes the sessions of the secure sum; replaced in tests only.
        source_factory: makes the source of updates; the real trainer by default.
        listener: hears what happens, for a live display.
        reconnect_seconds: how long the coordinator may be away.
        server: the coordinator of this very process, instead of one at the configured address.

    Returns:
        How it ended.

    Raises:
        UserError: something a person has to put right.
        PrivacyError: the budget is spent, or the ledger cannot be used.
    """
    require_safe(config)
    credentials = load_site(config)
    # The ledger's lock comes first: a second client started by mistake must not touch the first one's records.
    with _open_ledger(config) as ledger, closing(Past(config.state.dir)) as past:
        if past.own_ledger_head is not None:
            ledger.require_head(past.own_ledger_head)
        policy = credentials.study.policy
        if policy.privacy.unit == "site":  # records and patients are counted when the images are read
            require_small_delta(policy, len(credentials.study.roster.active_ids))
        expected = policy.privacy_parameters(charged_dimension(ledger, policy.study.run_id))
        budget_check(config, policy, ledger, expected)()  # a spent budget is said before the images are loaded
        source = source_factory(config, policy, ledger)
        site = Site(
            credentials=credentials,
            ledger=ledger,
            source=source,
            past=past,
            session_factory=session_factory,
            report=_reporter(listener),
            check_budget=budget_check(config, policy, ledger, policy.privacy_parameters(source.dimension)),
        )
        return _Runner(config, site, reconnect_seconds, server).run()


def _open_ledger(config: ClientConfig) -> Ledger:
    ledger = Ledger.open(config.privacy.ledger)
    if ledger.dataset_id != config.data.dataset_id:
        ledger.close()
        raise UserError(
            f"the ledger {config.privacy.ledger} is that of {ledger.dataset_id!r}, not of {config.data.dataset_id!r}",
            remedy="correct [privacy] ledger or [data] dataset_id: a ledger stays with its records",
            exit_code=ExitCode.LEDGER,
        )
    return ledger


def _reporter(listener: Listener | None) -> Callable[..., None]:
    def report(event: str, **fields: Any) -> None:
        log.info(event, **fields)
        if listener is not None:
            listener({"event": event, "time": time.time(), **fields})

    return report


class _Runner:
    """The loop of one process."""

    def __init__(
        self, config: ClientConfig, site: Site, reconnect_seconds: float, server: InProcessServer | None
    ) -> None:
        self._config = config
        self._server = server
        self._site = site
        self._reconnect_seconds = reconnect_seconds
        self._layout = StateLayout.of(ServerState.initial(_zeros(site.source.dimension)).tensors)
        self._published = 0
        self._lost = 0
        self._last_contact = time.monotonic()
        self._pause = FIRST_PAUSE_SECONDS
        self._state: ServerState | None = None
        self._last_round = 0

    def run(self) -> ClientOutcome:
        """Connect, and connect again when the connection breaks, until the run is over."""
        while True:
            connection = Connection(
                self._config.server.address,
                self._site.credentials,
                insecure=self._config.insecure,
                server=self._server,
            )
            try:
                reply = connection.join()
                self._contact()
                self._site.report("joined", site=reply.site_name, next_round=reply.next_round)
                finished = self._rounds(connection)
                self._site.report("finished", rounds=finished.rounds_completed, reason=finished.reason)
                return ClientOutcome(self._published, finished.reason, self._state, self._last_round)
            except CoordinatorAwayError as error:
                self._wait(str(error))
            finally:
                connection.close()

    def _rounds(self, connection: Connection) -> pb.Finished:
        """Take part in round after round on one connection."""
        while True:
            call = connection.await_round(self._site.ledger.last_round(self._run_id))
            try:
                for part in call:
                    self._contact()
                    kind = part.WhichOneof("part")
                    if kind == "finished":
                        return part.finished
                    if kind == "announcement":
                        self._round(connection, call, part.announcement)
                        break
                    self._site.report("waiting", here=part.keep_waiting.sites_waiting)
            except RoundLostError as error:
                self._count_lost(str(error))
            finally:
                call.leave()

    def _round(self, connection: Connection, call: RoundCall, announcement: pb.Announcement) -> None:
        """One announced attempt; the receipt follows whether or not it gave a sum."""
        deadlines = self._site.policy.deadlines
        try:
            invitation = read_invitation(announcement, call, self._layout)
        except (RemoteProtocolError, WireError) as error:
            raise UserError(
                f"the announcement of a round was refused: {error}",
                remedy="nothing was sent or charged; ask the consortium why the coordinator announces this",
                exit_code=ExitCode.PROTOCOL,
            ) from error
        context = invitation.context
        exchanges = connection.exchanges(
            context.round,
            context.attempt,
            training_seconds=deadlines.training_seconds,
            phase_seconds=deadlines.phase_seconds,
        )
        try:
            self._state = take_part(self._site, invitation, exchanges)
            self._last_round = context.round
            self._published += 1
            self._lost = 0
        finally:
            if self._site.ledger.last_round(self._run_id) == context.round:
                self._send_receipt(connection, context.round)

    def _send_receipt(self, connection: Connection, round_number: int) -> None:
        receipt = make_receipt(self._site.ledger, site_id=self._site.site_id, run_id=self._run_id, round=round_number)
        self._site.report(
            "spent",
            round=round_number,
            epsilon=receipt.epsilon,
            delta=receipt.delta,
            unit=receipt.unit,
            neighboring_relation=receipt.neighboring_relation,
            accountant=receipt.accountant,
        )
        try:
            connection.submit_receipt(receipt)
        except (CoordinatorAwayError, RoundLostError) as error:
            log.info("the receipt did not arrive; the next one says as much", reason=str(error))

    @property
    def _run_id(self) -> str:
        return self._site.policy.study.run_id

    def _contact(self) -> None:
        self._last_contact = time.monotonic()
        self._pause = FIRST_PAUSE_SECONDS

    def _count_lost(self, reason: str) -> None:
        self._lost += 1
        self._site.report("round-lost", reason=reason)
        if self._lost >= MAX_LOST_ROUNDS:
            raise UserError(
                f"{self._lost} attempts in a row were lost; the last one: {reason}",
                remedy="compare with round-aborted in the coordinator's events.jsonl",
                exit_code=ExitCode.PROTOCOL,
            )

    def _wait(self, reason: str) -> None:
        """Pause before the next attempt to connect; stop at once when waiting cannot help."""
        if self._server is None and not self._config.insecure:
            try:
                explain_tls(self._config)
            except UserError as error:
                if error.exit_code is not ExitCode.NETWORK:
                    raise
        away = time.monotonic() - self._last_contact
        if away > self._reconnect_seconds:
            raise unreachable(self._config.server.address, f"away for {away:.0f} s; {reason}")
        self._site.report("coordinator-away", reason=reason, retry_seconds=self._pause)
        time.sleep(self._pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load, hides nothing
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)


def _zeros(dimension: int) -> NDArray[np.float32]:
    return np.zeros(dimension, dtype=np.float32)
