"""Order, exhaustively: every event in every state of both sides, on both graphs, either moves as written or not at all.

An illegal event leaves no trace: a deep copy of everything the session holds, secrets included, stays the same.
"""

from itertools import product

import numpy as np
import pytest

from secure_agg import client as client_module
from secure_agg import server as server_module
from secure_agg.errors import AggregationAborted, LocalProtocolError, RemoteProtocolError
from secure_agg.transitions import TRANSITIONS, ClientEvent, ClientState, ServerEvent, ServerState, next_state
from tests.secure_agg.snapshots import snapshot
from tests.simulation.federation import Federation, Releases

SITE = 11
C, S = ClientState, ServerState
CE, SE = ClientEvent, ServerEvent

CLIENT_PATHS = {
    "complete": [
        (C.START, CE.ADVERTISE_KEYS),
        (C.KEYS_ADVERTISED, CE.PEER_KEYS),
        (C.KEYS_SHARED, CE.PEER_SHARES),
        (C.READY, CE.MASKED_INPUT),
        (C.INPUT_SENT, CE.SURVIVORS),
        (C.CONFIRMED, CE.CONFIRMATIONS),
        (C.REVEALED, CE.RESULT),
        (C.DONE, None),
    ],
    "sparse": [
        (C.START_SPARSE, CE.ADVERTISE_KEYS),
        (C.KEYS_COMMITTED, CE.REVEAL_NONCE),
        (C.NONCE_REVEALED, CE.PEER_NONCES),
        (C.KEYS_SHARED, CE.PEER_SHARES),
        (C.READY, CE.MASKED_INPUT),
        (C.INPUT_SENT, CE.SURVIVORS),
        (C.CONFIRMED, CE.CONFIRMATIONS),
        (C.REVEALED, CE.RESULT),
        (C.DONE, None),
    ],
}
SERVER_PATHS = {
    "complete": [
        (S.ADVERTISE_KEYS, SE.RECEIVE_ADVERTISE_KEYS, SE.CLOSE_ADVERTISE_KEYS),
        (S.SHARE_KEYS, SE.RECEIVE_SHARE_KEYS, SE.CLOSE_SHARE_KEYS),
        (S.MASKED_INPUT, SE.RECEIVE_MASKED_INPUT, SE.CLOSE_MASKED_INPUTS),
        (S.CONFIRM_SURVIVORS, SE.RECEIVE_CONFIRMATION, SE.CLOSE_CONFIRMATIONS),
        (S.UNMASK, SE.RECEIVE_UNMASK_SHARES, SE.CLOSE_UNMASK),
        (S.DONE, None, None),
    ],
    "sparse": [
        (S.ADVERTISE_KEYS_SPARSE, SE.RECEIVE_ADVERTISE_KEYS, SE.CLOSE_ADVERTISE_KEYS),
        (S.REVEAL_NONCES, SE.RECEIVE_NONCE, SE.CLOSE_NONCES),
        (S.SHARE_KEYS, SE.RECEIVE_SHARE_KEYS, SE.CLOSE_SHARE_KEYS),
        (S.MASKED_INPUT, SE.RECEIVE_MASKED_INPUT, SE.CLOSE_MASKED_INPUTS),
        (S.CONFIRM_SURVIVORS, SE.RECEIVE_CONFIRMATION, SE.CLOSE_CONFIRMATIONS),
        (S.UNMASK, SE.RECEIVE_UNMASK_SHARES, SE.CLOSE_UNMASK),
        (S.DONE, None, None),
    ],
}
RECORD_OF = {
    SE.RECEIVE_ADVERTISE_KEYS: "keys",
    SE.RECEIVE_NONCE: "nonce",
    SE.RECEIVE_SHARE_KEYS: "shares",
    SE.RECEIVE_MASKED_INPUT: "input",
    SE.RECEIVE_CONFIRMATION: "confirmation",
    SE.RECEIVE_UNMASK_SHARES: "unmask",
}
GRAPHS = ["complete", "sparse"]
CLIENT_STOPS = [
    *((kind, state) for kind in GRAPHS for state, _ in CLIENT_PATHS[kind]),
    ("complete", C.DEAD),
    ("sparse", C.DEAD),
]
SERVER_STOPS = [
    *((kind, row[0]) for kind in GRAPHS for row in SERVER_PATHS[kind]),
    ("complete", S.ABORTED),
    ("sparse", S.ABORTED),
]


def federation_of(kind, **options):
    """A round with fixed randomness: two of them exchange the same messages, so that one can answer the other's."""
    return Federation(3 if kind == "complete" else 7, seeded=True, **options)


def phases_of(federation, kind):
    phases = [federation.keys, federation.shares, federation.masked, federation.confirm, federation.unmask]
    return phases if kind == "complete" else [phases[0], federation.nonces, *phases[1:]]


class OneSite:
    """Site 11 of a round on either graph, stopped in any state, with the genuine argument for every call."""

    def __init__(self, kind, state):
        recorded = federation_of(kind)
        result = recorded.run()
        self.client = federation_of(kind).clients[SITE]
        self.releases = Releases()
        self.arguments = {
            CE.ADVERTISE_KEYS: (),
            CE.PEER_KEYS: (recorded.peer_keys,),
            CE.REVEAL_NONCE: (recorded.peer_keys,),
            CE.PEER_NONCES: (getattr(recorded, "peer_nonces", None),),
            CE.PEER_SHARES: (recorded.peer_shares[SITE],),
            CE.MASKED_INPUT: (recorded.inputs[SITE], self.releases),
            CE.SURVIVORS: (recorded.survivors,),
            CE.CONFIRMATIONS: (recorded.confirmations,),
            CE.RESULT: (result.message,),
            CE.ABORT: ("refused",),
        }
        if state is C.DEAD:
            self.call(CE.ABORT)
            return
        for passed, event in CLIENT_PATHS[kind]:
            if passed is state:
                break
            self.call(event)

    def call(self, event):
        return getattr(self.client, event.value)(*self.arguments[event])


class OneServer:
    """The server of a round on either graph, stopped in any state, with a genuine message for every call."""

    def __init__(self, kind, state):
        recorded = federation_of(kind)
        recorded.run()
        federation = federation_of(kind)
        self.server = federation.server
        self.messages = {event: recorded.records.get(name, {}).get(SITE) for event, name in RECORD_OF.items()}
        if state is S.ABORTED:
            with pytest.raises(AggregationAborted):
                self.server.close_advertise_keys()
            return
        for (passed, *_), phase in zip(SERVER_PATHS[kind], [*phases_of(federation, kind), None], strict=True):
            if passed is state:
                break
            phase()

    def call(self, event):
        method = getattr(self.server, event.value)
        return method(self.messages[event]) if event in self.messages else method()


def test_the_sites_table_is_two_paths_that_join_with_an_exit_from_every_state_but_the_last():
    forward = {}
    for path in CLIENT_PATHS.values():
        forward |= {(one, event): path[i + 1][0] for i, (one, event) in enumerate(path[:-1])}
    exits = {(state, CE.ABORT): C.DEAD for state in C if state is not C.DONE}
    assert {pair: to for pair, to in TRANSITIONS.items() if isinstance(pair[0], C)} == forward | exits


def test_the_servers_table_is_two_paths_that_join_with_a_receiving_and_a_closing_in_every_phase():
    wanted = {}
    for path in SERVER_PATHS.values():
        for i, (state, receive, close) in enumerate(path[:-1]):
            wanted |= {(state, receive): state, (state, close): path[i + 1][0]}
    assert {pair: to for pair, to in TRANSITIONS.items() if isinstance(pair[0], S)} == wanted


@pytest.mark.parametrize(
    ("state", "event"), [*product(C, CE), *product(S, SE), *product(C, SE), *product(S, CE)], ids=str
)
def test_a_pair_moves_if_it_is_in_the_table_and_raises_otherwise(state, event):
    if (state, event) in TRANSITIONS:
        assert next_state(state, event) is TRANSITIONS[state, event]
        assert isinstance(TRANSITIONS[state, event], type(state))
    else:
        with pytest.raises(LocalProtocolError, match=event.value) as caught:
            next_state(state, event)
        assert state.value in str(caught.value)
        assert caught.value.remedy


def test_every_state_of_both_sides_is_stopped_at():
    assert {state for _, state in CLIENT_STOPS} == set(C)
    assert {state for _, state in SERVER_STOPS} == set(S)


@pytest.mark.usefixtures("sparse_from_seven_sites")
@pytest.mark.parametrize(("kind", "state"), CLIENT_STOPS, ids=str)
def test_a_site_refuses_every_illegal_call_and_nothing_of_it_changes(kind, state):
    site = OneSite(kind, state)
    assert site.client.state is state
    before = snapshot(site.client)
    for event in CE:
        if (state, event) in TRANSITIONS:
            continue
        marked = list(site.releases.marked)
        with pytest.raises(LocalProtocolError, match="not possible") as caught:
            site.call(event)
        assert caught.value.remedy
        assert site.releases.marked == marked
        assert snapshot(site.client) == before


@pytest.mark.usefixtures("sparse_from_seven_sites")
@pytest.mark.parametrize(
    ("kind", "state", "event"),
    [(kind, state, event) for kind, state in CLIENT_STOPS for event in CE if (state, event) in TRANSITIONS],
    ids=str,
)
def test_a_site_moves_on_every_legal_call(kind, state, event):
    site = OneSite(kind, state)
    before = snapshot(site.client)
    site.call(event)
    assert site.client.state is TRANSITIONS[state, event]
    assert (state, event) == (C.DEAD, CE.ABORT) or snapshot(site.client) != before


@pytest.mark.usefixtures("sparse_from_seven_sites")
@pytest.mark.parametrize(("kind", "state"), SERVER_STOPS, ids=str)
def test_a_server_refuses_every_illegal_call_and_nothing_of_it_changes(kind, state):
    stopped = OneServer(kind, state)
    assert stopped.server.state is state
    before = snapshot(stopped.server)
    for event in SE:
        if (state, event) in TRANSITIONS:
            continue
        if event in RECORD_OF:
            if stopped.messages[event] is None:  # a nonce on the complete graph: any message of a site will do
                stopped.messages[event] = stopped.messages[SE.RECEIVE_CONFIRMATION]
            with pytest.raises(RemoteProtocolError, match="not of the phase") as caught:
                stopped.call(event)
            assert caught.value.peer == SITE
            assert isinstance(caught.value.__context__, LocalProtocolError)
        else:
            with pytest.raises(LocalProtocolError, match="not possible"):
                stopped.call(event)
        assert snapshot(stopped.server) == before


@pytest.mark.usefixtures("sparse_from_seven_sites")
@pytest.mark.parametrize(
    ("kind", "row"), [(kind, row) for kind in GRAPHS for row in range(len(SERVER_PATHS[kind]) - 1)], ids=str
)
def test_a_server_moves_on_every_legal_call(kind, row):
    state, receive, close = SERVER_PATHS[kind][row]
    stopped = OneServer(kind, state)
    waiting = stopped.server.expected
    stopped.call(receive)
    assert stopped.server.state is TRANSITIONS[state, receive] is state
    assert set(waiting) - set(stopped.server.expected) == {SITE}
    federation = federation_of(kind)
    for phase in phases_of(federation, kind)[: row + 1]:
        phase()
    assert federation.server.state is TRANSITIONS[state, close] is SERVER_PATHS[kind][row + 1][0]


@pytest.mark.usefixtures("sparse_from_seven_sites")
@pytest.mark.parametrize(
    ("kind", "row"), [(kind, row) for kind in GRAPHS for row in range(len(SERVER_PATHS[kind]) - 1)], ids=str
)
def test_a_phase_closed_below_its_floor_ends_the_round(kind, row):
    state, _, close = SERVER_PATHS[kind][row]
    stopped = OneServer(kind, state)
    with pytest.raises(AggregationAborted, match="0 sites answered"):
        stopped.call(close)
    assert stopped.server.state is S.ABORTED
    assert stopped.server.expected == ()


@pytest.mark.usefixtures("sparse_from_seven_sites")
@pytest.mark.parametrize("kind", GRAPHS)
def test_illegal_calls_between_all_phases_do_not_disturb_the_round(kind):
    federation = federation_of(kind)
    message = federation_of(kind).run().message
    for phase in phases_of(federation, kind):
        for client in federation.clients.values():
            with pytest.raises(LocalProtocolError):
                client.receive_result(message)
        result = phase()
    np.testing.assert_array_equal(result.total, federation.sum_of(federation.context.cohort))


@pytest.mark.parametrize("side", ["site", "server"])
def test_a_session_that_looked_its_state_up_too_late_fails_the_same_check(monkeypatch, side):
    """The control: a session whose refusal comes after a change is caught by the snapshot."""
    stopped = OneSite("complete", C.READY) if side == "site" else OneServer("complete", S.SHARE_KEYS)
    session = stopped.client if side == "site" else stopped.server

    def late(state, event):
        session._shares_hash = b"changed"
        return next_state(state, event)

    monkeypatch.setattr(client_module if side == "site" else server_module, "next_state", late)
    before = snapshot(session)
    with pytest.raises(LocalProtocolError):
        stopped.call(CE.RESULT if side == "site" else SE.CLOSE_UNMASK)
    assert snapshot(session) != before


def test_a_snapshot_sees_a_change_of_any_secret():
    site = OneSite("complete", C.READY)
    before = snapshot(site.client)
    for name, value in vars(site.client._secrets).items():
        if name in ("_site_id", "_randomness", "_encryption_key", "_channels", "_nonce"):
            continue
        assert value
        setattr(site.client._secrets, name, type(value)() if isinstance(value, dict | bytes) else None)
        assert snapshot(site.client) != before
        setattr(site.client._secrets, name, value)
    assert snapshot(site.client) == before
