"""Which call is legal in which state: one literal table, for both sides.

Whatever is not in it is illegal. The sessions look their next state up here and hold no other idea of order, and the
diagram of docs/secure-aggregation.md is drawn from it.
"""

from __future__ import annotations

from enum import Enum, StrEnum
from typing import TypeVar, cast

from secure_agg.errors import LocalProtocolError


class Step(StrEnum):
    """The steps of a round, as they are named in errors, aborts and the transcript."""

    ANNOUNCE = "announce"
    ADVERTISE_KEYS = "advertise_keys"
    REVEAL_NONCES = "reveal_nonces"
    SHARE_KEYS = "share_keys"
    MASKED_INPUT = "masked_input"
    CONFIRM_SURVIVORS = "confirm_survivors"
    UNMASK = "unmask"
    PUBLISH = "publish"


class ClientState(Enum):
    """Where a client session stands. The first two differ in the graph of the attempt."""

    START = "start, complete graph"
    START_SPARSE = "start, sparse graph"
    KEYS_ADVERTISED = "keys advertised"
    KEYS_COMMITTED = "keys and nonce committed"
    NONCE_REVEALED = "nonce revealed"
    KEYS_SHARED = "keys shared"
    READY = "ready to mask"
    INPUT_SENT = "input sent"
    CONFIRMED = "survivors confirmed"
    REVEALED = "shares revealed"
    DONE = "done"
    DEAD = "dead"


class ClientEvent(Enum):
    """What a client session may be asked to do; the value is the method's name."""

    ADVERTISE_KEYS = "advertise_keys"
    PEER_KEYS = "receive_peer_keys"
    REVEAL_NONCE = "reveal_nonce"
    PEER_NONCES = "receive_peer_nonces"
    PEER_SHARES = "receive_peer_shares"
    MASKED_INPUT = "masked_input"
    SURVIVORS = "receive_survivors"
    CONFIRMATIONS = "receive_confirmations"
    RESULT = "receive_result"
    ABORT = "abort"


class ServerState(Enum):
    """Which messages a server session is collecting. The first two differ in the graph of the attempt."""

    ADVERTISE_KEYS = "collecting keys, complete graph"
    ADVERTISE_KEYS_SPARSE = "collecting keys, sparse graph"
    REVEAL_NONCES = "collecting nonces"
    SHARE_KEYS = "collecting shares"
    MASKED_INPUT = "collecting inputs"
    CONFIRM_SURVIVORS = "collecting confirmations"
    UNMASK = "collecting unmask shares"
    DONE = "done"
    ABORTED = "aborted"


class ServerEvent(Enum):
    """What moves a server session on; the value is the method's name."""

    RECEIVE_ADVERTISE_KEYS = "receive_advertise_keys"
    CLOSE_ADVERTISE_KEYS = "close_advertise_keys"
    RECEIVE_NONCE = "receive_nonce"
    CLOSE_NONCES = "close_nonces"
    RECEIVE_SHARE_KEYS = "receive_share_keys"
    CLOSE_SHARE_KEYS = "close_share_keys"
    RECEIVE_MASKED_INPUT = "receive_masked_input"
    CLOSE_MASKED_INPUTS = "close_masked_inputs"
    RECEIVE_CONFIRMATION = "receive_confirmation"
    CLOSE_CONFIRMATIONS = "close_confirmations"
    RECEIVE_UNMASK_SHARES = "receive_unmask_shares"
    CLOSE_UNMASK = "close_unmask"


State = TypeVar("State", ClientState, ServerState)

TRANSITIONS: dict[tuple[Enum, Enum], Enum] = {
    # a site
    (ClientState.START, ClientEvent.ADVERTISE_KEYS): ClientState.KEYS_ADVERTISED,
    (ClientState.START_SPARSE, ClientEvent.ADVERTISE_KEYS): ClientState.KEYS_COMMITTED,
    (ClientState.KEYS_ADVERTISED, ClientEvent.PEER_KEYS): ClientState.KEYS_SHARED,
    (ClientState.KEYS_COMMITTED, ClientEvent.REVEAL_NONCE): ClientState.NONCE_REVEALED,
    (ClientState.NONCE_REVEALED, ClientEvent.PEER_NONCES): ClientState.KEYS_SHARED,
    (ClientState.KEYS_SHARED, ClientEvent.PEER_SHARES): ClientState.READY,
    (ClientState.READY, ClientEvent.MASKED_INPUT): ClientState.INPUT_SENT,
    (ClientState.INPUT_SENT, ClientEvent.SURVIVORS): ClientState.CONFIRMED,
    (ClientState.CONFIRMED, ClientEvent.CONFIRMATIONS): ClientState.REVEALED,
    (ClientState.REVEALED, ClientEvent.RESULT): ClientState.DONE,
    (ClientState.START, ClientEvent.ABORT): ClientState.DEAD,
    (ClientState.START_SPARSE, ClientEvent.ABORT): ClientState.DEAD,
    (ClientState.KEYS_ADVERTISED, ClientEvent.ABORT): ClientState.DEAD,
    (ClientState.KEYS_COMMITTED, ClientEvent.ABORT): ClientState.DEAD,
    (ClientState.NONCE_REVEALED, ClientEvent.ABORT): ClientState.DEAD,
    (ClientState.KEYS_SHARED, ClientEvent.ABORT): ClientState.DEAD,
    (ClientState.READY, ClientEvent.ABORT): ClientState.DEAD,
    (ClientState.INPUT_SENT, ClientEvent.ABORT): ClientState.DEAD,
    (ClientState.CONFIRMED, ClientEvent.ABORT): ClientState.DEAD,
    (ClientState.REVEALED, ClientEvent.ABORT): ClientState.DEAD,
    (ClientState.DEAD, ClientEvent.ABORT): ClientState.DEAD,  # the complaint after a failed check
    # the server
    (ServerState.ADVERTISE_KEYS, ServerEvent.RECEIVE_ADVERTISE_KEYS): ServerState.ADVERTISE_KEYS,
    (ServerState.ADVERTISE_KEYS, ServerEvent.CLOSE_ADVERTISE_KEYS): ServerState.SHARE_KEYS,
    (ServerState.ADVERTISE_KEYS_SPARSE, ServerEvent.RECEIVE_ADVERTISE_KEYS): ServerState.ADVERTISE_KEYS_SPARSE,
    (ServerState.ADVERTISE_KEYS_SPARSE, ServerEvent.CLOSE_ADVERTISE_KEYS): ServerState.REVEAL_NONCES,
    (ServerState.REVEAL_NONCES, ServerEvent.RECEIVE_NONCE): ServerState.REVEAL_NONCES,
    (ServerState.REVEAL_NONCES, ServerEvent.CLOSE_NONCES): ServerState.SHARE_KEYS,
    (ServerState.SHARE_KEYS, ServerEvent.RECEIVE_SHARE_KEYS): ServerState.SHARE_KEYS,
    (ServerState.SHARE_KEYS, ServerEvent.CLOSE_SHARE_KEYS): ServerState.MASKED_INPUT,
    (ServerState.MASKED_INPUT, ServerEvent.RECEIVE_MASKED_INPUT): ServerState.MASKED_INPUT,
    (ServerState.MASKED_INPUT, ServerEvent.CLOSE_MASKED_INPUTS): ServerState.CONFIRM_SURVIVORS,
    (ServerState.CONFIRM_SURVIVORS, ServerEvent.RECEIVE_CONFIRMATION): ServerState.CONFIRM_SURVIVORS,
    (ServerState.CONFIRM_SURVIVORS, ServerEvent.CLOSE_CONFIRMATIONS): ServerState.UNMASK,
    (ServerState.UNMASK, ServerEvent.RECEIVE_UNMASK_SHARES): ServerState.UNMASK,
    (ServerState.UNMASK, ServerEvent.CLOSE_UNMASK): ServerState.DONE,
}


def next_state(state: State, event: ClientEvent | ServerEvent) -> State:
    """Look up the next state of a side; LocalProtocolError if the event is illegal there."""
    following = TRANSITIONS.get((state, event))
    if following is None:
        raise LocalProtocolError(
            f"{event.value} is not possible while the session is {state.value}",
            remedy="keep to the order of the phases",
        )
    return cast(State, following)
