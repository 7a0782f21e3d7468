"""A round of more than a hundred sites over gRPC: the coordinator's service and as many clients, in one process."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from fedmvp.client.connection import Connection
from fedmvp.client.errors import RoundLostError
from fedmvp.client.invitation import read_invitation
from fedmvp.client.participant import Site, take_part
from fedmvp.client.past import Past
from fedmvp.rpc.channel import server_options
from fedmvp.rpc.identity import CallerTable
from fedmvp.rpc.strict import StrictRequests
from fedmvp.rpc.v1.aggregation_pb2_grpc import add_AggregationServicer_to_server
from fedmvp.rpc.vectors import StateLayout
from fedmvp.server.coordinator import Coordinator
from fedmvp.server.events import EventLog, read_events
from fedmvp.server.lobby import Lobby
from fedmvp.server.reporter import Reporter
from fedmvp.server.run_state import RunState
from fedmvp.server.service import AggregationService
from fedmvp.server.tracker import PrivacyTracker
from fedmvp.study.credentials import SignedStudy, SiteCredentials, TlsFiles
from fedmvp.study.policy import parse_policy
from fedmvp.training.aggregate import ServerState
from privacy.ledger import Ledger
from secure_agg.client import ClientSession
from secure_agg.messages import GraphNonce, PeerKeys, PeerShares
from tests.e2e.federation import policy_text
from tests.e2e.synthetic import SyntheticModel
from tests.simulation.federation import make_roster, signing_key

SITES = 101
DIMENSION = 4
ROSTER = make_roster(SITES)
POLICY = parse_policy(policy_text(rounds=1).replace("max_cohort = 8", f"max_cohort = {SITES}").encode())
SILENT_BEFORE_ITS_NONCE, SILENT_BEFORE_ITS_INPUT = ROSTER.active_ids[3], ROSTER.active_ids[50]
LAYOUT = StateLayout.of(ServerState.initial(np.zeros(DIMENSION, dtype=np.float32)).tensors)
NO_TLS = TlsFiles(b"", b"", b"", bytes(32), 1)


class Silent(ClientSession):
    """A session that loses its round at the step that its site is to fall silent at."""

    def reveal_nonce(self, message: PeerKeys) -> GraphNonce:
        if self._site_id == SILENT_BEFORE_ITS_NONCE:
            raise RoundLostError("silent")
        return super().reveal_nonce(message)

    def receive_peer_shares(self, message: PeerShares) -> None:
        if self._site_id == SILENT_BEFORE_ITS_INPUT:
            raise RoundLostError("silent")
        super().receive_peer_shares(message)


@dataclass
class Source:
    """One update of a site, exact in fixed point."""

    site_id: int
    dimension: int = DIMENSION

    def initial_parameters(self) -> NDArray[np.float32]:
        return np.zeros(DIMENSION, dtype=np.float32)

    def train_round(self, parameters: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.arange(DIMENSION) + self.site_id / 128


@dataclass
class Outcome:
    """What a round left behind at the server and at the sites."""

    state: ServerState
    events: list[dict[str, Any]]
    states: dict[int, ServerState]
    charged: dict[int, int]


def play(site_id: int, folder: Path, port: int) -> tuple[ServerState | None, int]:
    """Be one site for one round: the state that it verified, and the last round that its ledger was charged for."""
    with Ledger.create(
        folder / "ledger.sqlite", dataset_id="d", delta=1e-5, epsilon_max=float("inf"), unsafe=True
    ) as ledger:
        past = Past(folder)
        credentials = SiteCredentials(
            SignedStudy(POLICY, ROSTER, bytes(32)), ROSTER.entry(site_id), signing_key(site_id), NO_TLS
        )
        site = Site(credentials, ledger, Source(site_id), past, Silent, lambda *_, **__: None, lambda: None)
        connection = Connection(f"127.0.0.1:{port}", credentials, insecure=True)
        call = connection.await_round(0)
        try:
            announcement = next(part.announcement for part in call if part.WhichOneof("part") == "announcement")
            invitation = read_invitation(announcement, call, LAYOUT)
            exchanges = connection.exchanges(1, invitation.context.attempt, training_seconds=60, phase_seconds=60)
            return take_part(site, invitation, exchanges), ledger.last_round(POLICY.study.run_id)
        except RoundLostError:
            return None, ledger.last_round(POLICY.study.run_id)
        finally:
            call.leave()
            connection.close()
            past.close()


async def run_round(folder: Path) -> Outcome:
    """Serve one round and let every site take part in it."""
    state = RunState(folder, POLICY, ROSTER, np.zeros(DIMENSION, dtype=np.float32))
    events, lobby = EventLog(folder / "events.jsonl"), Lobby(ROSTER.active_ids)
    tracker = PrivacyTracker(ROSTER, POLICY.study.run_id)
    coordinator = Coordinator(
        policy=POLICY,
        roster=ROSTER,
        state=state,
        lobby=lobby,
        events=events,
        reporter=Reporter(events, SyntheticModel(DIMENSION), tracker, lobby),
        roster_grace_seconds=60,
    )
    service = AggregationService(
        policy=POLICY,
        roster=ROSTER,
        callers=CallerTable(ROSTER, insecure=True),
        coordinator=coordinator,
        lobby=lobby,
        tracker=tracker,
    )
    # The sites of one process share one connection, which elsewhere is one site's own.
    options = dict(server_options()) | {"grpc.max_concurrent_streams": 4 * SITES}
    server = grpc.aio.server(interceptors=[StrictRequests()], options=list(options.items()))
    add_AggregationServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    folders = {site: folder / str(site) for site in ROSTER.active_ids}
    for one in folders.values():
        one.mkdir()
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(SITES) as threads:
        playing = [loop.run_in_executor(threads, play, site, one, port) for site, one in folders.items()]
        over = await coordinator.run()
        played = dict(zip(folders, await asyncio.gather(*playing), strict=True))
    await server.stop(None)
    events.close()
    state.close()
    assert over.rounds_completed == 1
    return Outcome(
        state.state,
        read_events(folder / "events.jsonl"),
        {site: verified for site, (verified, _) in played.items() if verified is not None},
        {site: charged for site, (_, charged) in played.items()},
    )


pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The one round of this file."""
    return asyncio.run(run_round(tmp_path_factory.mktemp("sparse")))


def test_a_round_on_a_sparse_graph_gives_the_exact_mean_of_the_survivors_at_the_server_and_at_every_site(
    outcome: Outcome,
) -> None:
    survivors = set(ROSTER.active_ids) - {SILENT_BEFORE_ITS_NONCE, SILENT_BEFORE_ITS_INPUT}
    mean = np.mean([Source(site).train_round(np.zeros(0, dtype=np.float32)) for site in survivors], axis=0)

    assert outcome.states.keys() == survivors
    assert np.array_equal(outcome.state.parameters, mean.astype(np.float32))
    assert {state.hash for state in outcome.states.values()} == {outcome.state.hash}


def test_whoever_falls_silent_before_its_input_is_charged_nothing_and_everybody_else_one_round(
    outcome: Outcome,
) -> None:
    silent = {SILENT_BEFORE_ITS_NONCE, SILENT_BEFORE_ITS_INPUT}

    assert outcome.charged == {site: int(site not in silent) for site in ROSTER.active_ids}


def test_the_nonces_are_a_phase_of_their_own_on_a_sparse_graph(outcome: Outcome) -> None:
    phases = {event["phase"]: set(event["sites"]) for event in outcome.events if event["event"] == "phase"}
    everybody = set(ROSTER.active_ids)

    assert list(phases)[1:4] == ["advertise_keys", "reveal_nonces", "share_keys"]
    assert phases["reveal_nonces"] == everybody
    assert phases["share_keys"] == everybody - {SILENT_BEFORE_ITS_NONCE}
