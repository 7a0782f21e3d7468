"""The order of effects of one attempt: real sessions and a real ledger, joined to a server without a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedmvp.client.connection import Publication
from fedmvp.client.errors import RoundLostError
from fedmvp.client.invitation import Invitation
from fedmvp.client.participant import LedgerReleases, Site, take_part
from fedmvp.client.past import Past
from fedmvp.errors import ExitCode, UserError
from fedmvp.rpc.vectors import model_hash
from fedmvp.study.credentials import SignedStudy, SiteCredentials, TlsFiles
from fedmvp.study.policy import parse_policy
from fedmvp.training.aggregate import ServerState, apply_sum
from fedmvp.training.from_policy import server_optimizer_of
from privacy.errors import AlreadyReleased, BudgetExceeded
from privacy.ledger import Ledger
from secure_agg.client import ClientSession
from secure_agg.context import RoundContext
from secure_agg.encoding import vector_digest
from secure_agg.keys import SigningKey
from secure_agg.messages import Abort
from secure_agg.ring import decode_sum, encode
from secure_agg.roster import Roster, RosterEntry
from secure_agg.server import ServerSession
from tests.e2e.federation import policy_text
from tests.simulation.federation import Releases

DIMENSION = 6
POLICY = parse_policy(policy_text().encode())
SUM = POLICY.secure_sum(DIMENSION)
KEYS = {site: SigningKey.generate() for site in (1, 2, 3)}
ROSTER = Roster(
    1,
    tuple(RosterEntry(site, f"site-{site}", f"o{site}", KEYS[site].verify_key, bytes([site] * 32)) for site in KEYS),
)
UPDATE = np.linspace(-1, 1, DIMENSION)
STATE = ServerState.initial(np.zeros(DIMENSION, dtype=np.float32))
CONTEXT = RoundContext(
    run_id=POLICY.study.run_id,
    round=1,
    attempt=1,
    policy_hash=POLICY.hash,
    roster_hash=ROSTER.hash,
    model_hash=STATE.hash,
    cohort=(1, 2, 3),
    threshold=3,
    colluders=1,
    ring_bits=32,
    length=DIMENSION,
    graph="complete",
    degree=2,
    share_threshold=3,
)


class Coordinator:
    """Stands for the network: a server session and the two other sites; notes when each message of site 1 comes."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self.note = note
        self.server = ServerSession(policy=SUM, roster=ROSTER, context=CONTEXT)
        self.others = [
            ClientSession(
                policy=SUM, roster=ROSTER, site_id=site, signing_key=KEYS[site], context=CONTEXT, ledger_head=bytes(32)
            )
            for site in (2, 3)
        ]
        self.lie = False
        self.other_round = False
        self.aborts: list[Abort] = []

    def advertise_keys(self, message: Any) -> Any:
        self.note("advertise_keys")
        self.advertised = message
        for advert in (message, *(other.advertise_keys() for other in self.others)):
            self.server.receive_advertise_keys(advert)
        self.peer_keys = self.server.close_advertise_keys()
        return self.peer_keys

    def share_keys(self, message: Any) -> Any:
        self.note("share_keys")
        for shares in (message, *(other.receive_peer_keys(self.peer_keys) for other in self.others)):
            self.server.receive_share_keys(shares)
        inboxes = self.server.close_share_keys()
        for site, other in zip((2, 3), self.others, strict=True):
            other.receive_peer_shares(inboxes[site])
        return inboxes[1]

    def submit_masked_input(self, message: Any) -> Any:
        self.note("submit_masked_input")
        for masked in (message, *(other.masked_input(encode(SUM, UPDATE), Releases()) for other in self.others)):
            self.server.receive_masked_input(masked)
        self.survivors = self.server.close_masked_inputs()
        return self.survivors

    def confirm_survivors(self, message: Any) -> Any:
        self.note("confirm_survivors")
        for confirmation in (message, *(other.receive_survivors(self.survivors) for other in self.others)):
            self.server.receive_confirmation(confirmation)
        self.confirmations = self.server.close_confirmations()
        return self.confirmations

    def unmask(self, message: Any, policy: Any) -> Publication:
        self.note("unmask")
        for shares in (message, *(other.receive_confirmations(self.confirmations) for other in self.others)):
            self.server.receive_unmask_shares(shares)
        result = self.server.close_unmask()
        following = apply_sum(STATE, decode_sum(policy, result.total, 3).values, 3, server_optimizer_of(POLICY))
        next_hash = bytes(32) if self.lie else model_hash(following.tensors)
        message = result.message
        if self.other_round:
            message = replace(message, transcript_hash=bytes(32))
        return Publication(message, vector_digest(result.total), next_hash)

    def abort(self, message: Abort) -> None:
        self.note("abort")
        self.aborts.append(message)


class Source:
    dimension = DIMENSION

    def __init__(self, note: Callable[[str], None], update: NDArray[np.float64]) -> None:
        self.note = note
        self.update = update

    def initial_parameters(self) -> NDArray[np.float32]:
        return STATE.parameters

    def train_round(self, parameters: NDArray[np.float32]) -> NDArray[np.float64]:
        self.note("train")
        return self.update


class Scene:
    """Site 1 with everything it does noted in order."""

    def __init__(self, folder: Path) -> None:
        self.notes: list[str] = []
        self.ledger = Ledger.create(
            folder / "ledger.sqlite", dataset_id="d", delta=1e-5, epsilon_max=float("inf"), unsafe=True
        )
        reserve = self.ledger.reserve

        def noted_reserve(*arguments: Any) -> Any:
            token = reserve(*arguments)
            self.notes.append("reserve")
            return token

        self.ledger.reserve = noted_reserve  # type: ignore[method-assign]
        scene = self

        class NotedSession(ClientSession):
            def masked_input(self, vector: NDArray[Any], *arguments: Any, **options: Any) -> Any:
                masked = super().masked_input(vector, *arguments, **options)
                scene.notes.append("masked_input")
                return masked

        self.coordinator = Coordinator(self.notes.append)
        self.source = Source(self.notes.append, UPDATE)
        study = SignedStudy(POLICY, ROSTER, bytes(32))
        tls = TlsFiles(b"", b"", b"", bytes(32), 1)
        self.site = Site(
            credentials=SiteCredentials(study, ROSTER.entry(1), KEYS[1], tls),
            ledger=self.ledger,
            source=self.source,
            past=Past(folder / "state"),
            session_factory=NotedSession,
            report=lambda *_, **__: None,
            check_budget=lambda: None,
        )

    def take_part(
        self, context: RoundContext = CONTEXT, state: ServerState = STATE, model_round: int = 0
    ) -> ServerState:
        invitation = Invitation(context, state, state.hash, model_round)
        return take_part(self.site, invitation, self.coordinator)  # type: ignore[arg-type]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.ledger.close()
    made.site.past.close()


def test_the_charge_is_on_disk_before_the_masked_vector_is_handed_out_and_that_before_it_is_sent(scene: Scene) -> None:
    following = scene.take_part()

    assert scene.notes == [
        "train",
        "advertise_keys",
        "share_keys",
        "reserve",
        "masked_input",
        "submit_masked_input",
        "confirm_survivors",
        "unmask",
    ]
    assert np.allclose(following.parameters, UPDATE, atol=1e-5)
    assert scene.ledger.last_attempt(CONTEXT.run_id) == (1, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_update_that_is_no_number_ends_before_any_key_is_advertised(scene: Scene, bad: float) -> None:
    scene.source.update = np.full(DIMENSION, bad)

    with pytest.raises(UserError, match="cannot be sent") as refusal:
        scene.take_part()
    assert refusal.value.exit_code is ExitCode.CONFIG
    assert scene.notes == ["train", "abort"]
    assert scene.ledger.last_round(CONTEXT.run_id) == 0


def test_a_spent_budget_ends_before_training(scene: Scene) -> None:
    def refuse() -> None:
        raise BudgetExceeded(9.0, 8.0, "at delta 1e-05")

    scene.site = replace(scene.site, check_budget=refuse)

    with pytest.raises(BudgetExceeded):
        scene.take_part()
    assert scene.notes == ["abort"]
    assert scene.coordinator.aborts[0].code == "refused"


@pytest.mark.parametrize(
    "change",
    [
        {"policy_hash": bytes(32)},
        {"roster_hash": bytes(32)},
        {"model_hash": bytes(32)},
        {"threshold": 2},
        {"colluders": 2},
        {"cohort": (1, 2)},
        {"cohort": (2, 3)},
        {"length": 7},
        {"graph": "harary"},
        {"degree": 1},
        {"share_threshold": 2},
        {"ring_bits": 64},
        {"run_id": "other"},
        {"round": 3},
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_announcement_that_differs_from_what_the_site_holds_is_refused_untrained(
    scene: Scene, change: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match="was refused") as refusal:
        scene.take_part(replace(CONTEXT, **change))

    assert refusal.value.exit_code is ExitCode.PROTOCOL
    assert scene.notes == []


@pytest.mark.parametrize(
    "chosen",
    [
        ServerState.initial(STATE.parameters + np.float32(0.01)),
        ServerState(STATE.parameters, STATE.adam_m + np.float32(0.01), STATE.adam_v, 0),
        ServerState(STATE.parameters, STATE.adam_m, STATE.adam_v, 7),
    ],
    ids=["parameters", "momentum", "step"],
)
def test_a_first_model_that_the_coordinator_chose_is_refused_untrained(scene: Scene, chosen: ServerState) -> None:
    with pytest.raises(UserError, match="not the one that the policy describes"):
        scene.take_part(replace(CONTEXT, model_hash=chosen.hash), chosen)

    assert "train" not in scene.notes


@pytest.mark.parametrize("claimed", [1, 7, 2**31])
def test_a_model_of_a_round_that_is_still_to_come_is_refused_untrained(scene: Scene, claimed: int) -> None:
    chosen = ServerState.initial(STATE.parameters + np.float32(0.01))
    with pytest.raises(UserError, match="still to come"):
        scene.take_part(replace(CONTEXT, model_hash=chosen.hash), chosen, claimed)

    assert scene.notes == []


def test_a_site_shows_the_ledger_head_from_before_the_attempt_so_that_a_copy_put_back_shows_it_twice(
    scene: Scene,
) -> None:
    before = scene.ledger.head
    scene.take_part()

    assert scene.coordinator.advertised.ledger_head == before
    assert scene.ledger.head != before


def test_a_released_round_is_not_joined_again(scene: Scene) -> None:
    scene.take_part()

    with pytest.raises(UserError, match="already released"):
        scene.take_part(replace(CONTEXT, attempt=2))


def test_a_next_model_that_does_not_follow_from_the_sum_stops_the_site(scene: Scene) -> None:
    scene.coordinator.lie = True

    with pytest.raises(UserError, match="does not follow from the sum") as refusal:
        scene.take_part()
    assert refusal.value.exit_code is ExitCode.PROTOCOL


def test_a_published_sum_of_a_round_that_the_site_did_not_see_is_refused(scene: Scene) -> None:
    scene.coordinator.other_round = True

    with pytest.raises(RoundLostError, match="transcript"):
        scene.take_part()
    assert scene.coordinator.aborts[0].code == "check-failed"
    assert scene.ledger.last_round(CONTEXT.run_id) == 1


def test_a_masking_that_fails_charges_nothing_and_sends_nothing(scene: Scene) -> None:
    def broken(vector: NDArray[Any], jobs: Any, *, cipher: str) -> None:
        raise MemoryError

    scene.site = replace(scene.site, session_factory=lambda **arguments: ClientSession(masker=broken, **arguments))

    with pytest.raises(MemoryError):
        scene.take_part()
    assert scene.notes == ["train", "advertise_keys", "share_keys", "abort"]
    assert scene.ledger.last_round(CONTEXT.run_id) == 0


def test_a_charge_that_is_refused_sends_nothing(scene: Scene) -> None:
    def refuse(*_: Any) -> Any:
        raise BudgetExceeded(9.0, 8.0, "at delta 1e-05")

    scene.ledger.reserve = refuse  # type: ignore[method-assign]

    with pytest.raises(BudgetExceeded):
        scene.take_part()
    assert scene.notes == ["train", "advertise_keys", "share_keys", "abort"]


def test_a_round_is_marked_once_and_its_permission_is_used_once(scene: Scene) -> None:
    releases = LedgerReleases(scene.ledger, POLICY.privacy_parameters(DIMENSION), POLICY.hash)
    with pytest.raises(RuntimeError, match="nothing was charged"):
        releases.consume()
    releases.mark(CONTEXT.run_id, 1)
    releases.consume()

    assert scene.ledger.last_round(CONTEXT.run_id) == 1
    with pytest.raises(RuntimeError, match="nothing was charged"):
        releases.consume()
    with pytest.raises(AlreadyReleased):
        releases.mark(CONTEXT.run_id, 1)


def test_a_failed_check_erases_the_keys_and_is_told_under_signature(scene: Scene) -> None:
    honest = scene.coordinator.share_keys

    def without_one(message: Any) -> Any:
        shares = honest(message)
        return replace(shares, shares=shares.shares[:1])

    scene.coordinator.share_keys = without_one  # type: ignore[method-assign]

    with pytest.raises(RoundLostError):
        scene.take_part()
    assert scene.notes == ["train", "advertise_keys", "share_keys", "abort"]
    scene.coordinator.server.receive_abort(scene.coordinator.aborts[0])  # it verifies under the site's key
    assert scene.coordinator.aborts[0].code == "check-failed"
    assert scene.ledger.last_round(CONTEXT.run_id) == 0
