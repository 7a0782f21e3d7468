"""The transition tables against the real sessions: what is not in a table raises and changes nothing."""

import numpy as np
import pytest

from secure_agg.errors import AggregationAborted, LocalProtocolError, RemoteProtocolError
from secure_agg.transitions import (
    CLIENT_TRANSITIONS,
    SERVER_TRANSITIONS,
    ClientEvent,
    ClientState,
    ServerEvent,
    ServerState,
)
from tests.simulation.federation import Federation

CLIENT_PATH = [
    ClientEvent.ADVERTISE_KEYS,
    ClientEvent.PEER_KEYS,
    ClientEvent.PEER_SHARES,
    ClientEvent.MASKED_INPUT,
    ClientEvent.SURVIVORS,
    ClientEvent.CONFIRMATIONS,
    ClientEvent.RESULT,
]


class OneSite:
    """Site 11 of a real round, stopped in any state, with the genuine argument for every call."""

    def __init__(self, state):
        self.federation = Federation(3)
        recorded = Federation(3)
        result = recorded.run()
        self.client = self.federation.clients[11]
        self.arguments = {
            ClientEvent.ADVERTISE_KEYS: (),
            ClientEvent.PEER_KEYS: (recorded.peer_keys,),
            ClientEvent.PEER_SHARES: (recorded.peer_shares[11],),
            ClientEvent.MASKED_INPUT: (recorded.inputs[11],),
            ClientEvent.SURVIVORS: (recorded.survivors,),
            ClientEvent.CONFIRMATIONS: (recorded.confirmations,),
            ClientEvent.RESULT: (result.total, result.survivors),
            ClientEvent.ABORT: ("refused",),
        }
        if state is ClientState.DEAD:
            self.client.abort("refused")
            return
        steps = list(ClientState).index(state)
        drive = [self.federation.keys, self.federation.shares, self.federation.masked]
        if steps == 1:
            self.federation.keys()
        elif steps == 2:
            self.federation.keys()
            self.federation.shares()
        elif steps == 3:
            self.federation.keys()
            self.federation.shares()
            self.client.receive_peer_shares(self.federation.peer_shares[11])
        elif steps >= 4:
            for call in [*drive, *[self.federation.confirm][: steps - 4]]:
                call()
            if steps >= 6:
                done = self.federation.unmask()
                if steps == 7:
                    self.client.receive_result(done.total, done.survivors)

    def call(self, event):
        return getattr(self.client, event.value)(*self.arguments[event])


@pytest.mark.parametrize("state", list(ClientState))
def test_a_client_refuses_every_call_that_is_not_in_its_table_and_stays_where_it_is(state):
    site = OneSite(state)
    assert site.client.state is state
    for event in ClientEvent:
        if (state, event) in CLIENT_TRANSITIONS:
            continue
        with pytest.raises(LocalProtocolError, match="not possible"):
            site.call(event)
        assert site.client.state is state


def test_an_illegal_call_in_every_state_does_not_disturb_the_round():
    federation = Federation(3)
    for phase in (federation.keys, federation.shares, federation.masked, federation.confirm):
        for client in federation.clients.values():
            with pytest.raises(LocalProtocolError):
                client.receive_result(np.zeros(8, np.uint32), ())
        phase()
    assert federation.unmask().total.tolist() == [7] * 8


@pytest.mark.parametrize("state", [state for state in ClientState if state is not ClientState.DONE])
def test_a_client_can_leave_from_every_state_but_the_last(state):
    site = OneSite(state)
    notice = site.call(ClientEvent.ABORT)
    assert site.client.state is ClientState.DEAD
    assert notice.code == "refused"
    for event in CLIENT_PATH:
        with pytest.raises(LocalProtocolError):
            site.call(event)


def test_the_client_table_is_one_path_with_an_exit_from_every_state():
    states = list(ClientState)[:8]
    path = {(one, event): other for one, event, other in zip(states, CLIENT_PATH, states[1:], strict=False)}
    exits = {(state, ClientEvent.ABORT): ClientState.DEAD for state in [*states[:-1], ClientState.DEAD]}
    assert path | exits == CLIENT_TRANSITIONS


def test_the_server_table_is_five_phases_of_receiving_and_closing():
    states, events = list(ServerState)[:6], list(ServerEvent)
    wanted = {}
    for i, state in enumerate(states[:-1]):
        wanted[state, events[2 * i]] = state
        wanted[state, events[2 * i + 1]] = states[i + 1]
    assert wanted == SERVER_TRANSITIONS


def messages_of(federation):
    kinds = ("keys", "shares", "input", "confirmation", "unmask")
    receives = [event for event in ServerEvent if event.value.startswith("receive")]
    return {event: federation.records[kind][11] for event, kind in zip(receives, kinds, strict=True)}


@pytest.mark.parametrize("phases", range(6))
def test_a_server_refuses_every_call_that_is_not_in_its_table_and_stays_where_it_is(phases):
    whole = Federation(3)
    whole.run()
    federation = Federation(3)
    for phase in [federation.keys, federation.shares, federation.masked, federation.confirm, federation.unmask][
        :phases
    ]:
        phase()
    state = federation.server.state
    assert state is list(ServerState)[phases]
    genuine = messages_of(whole)
    for event in ServerEvent:
        if (state, event) in SERVER_TRANSITIONS:
            continue
        if event in genuine:
            with pytest.raises(RemoteProtocolError, match="not of the phase") as caught:
                getattr(federation.server, event.value)(genuine[event])
            assert caught.value.peer == 11
        else:
            with pytest.raises(LocalProtocolError, match="not possible"):
                getattr(federation.server, event.value)()
        assert federation.server.state is state


@pytest.mark.parametrize("phases", range(5))
def test_a_server_that_has_aborted_refuses_everything(phases):
    federation = Federation(3)
    for phase in [federation.keys, federation.shares, federation.masked, federation.confirm][:phases]:
        phase()
    close = getattr(federation.server, list(ServerEvent)[2 * phases + 1].value)
    with pytest.raises(AggregationAborted):
        close()
    assert federation.server.state is ServerState.ABORTED
    assert federation.server.expected == ()
    with pytest.raises(LocalProtocolError):
        close()
