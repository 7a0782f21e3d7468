"""Which call is legal in which state: one literal table for each side.

Whatever is not in a table is illegal. The sessions look their next state up here and hold no other idea of order.
"""

from __future__ import annotations

from enum import Enum, StrEnum

from secure_agg.errors import LocalProtocolError


class Step(StrEnum):
    """The steps of a round, as they are named in errors, aborts and the transcript."""

    ANNOUNCE = "announce"
    ADVERTISE_KEYS = "advertise_keys"
    SHARE_KEYS = "share_keys"
    MASKED_INPUT = "masked_input"
    CONFIRM_SURVIVORS = "confirm_survivors"
    UNMASK = "unmask"
    PUBLISH = "publish"


class ClientState(Enum):
    """Where a client session stands."""

    START = "start"
    KEYS_ADVERTISED = "keys advertised"
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
    PEER_SHARES = "receive_peer_shares"
    MASKED_INPUT = "masked_input"
    SURVIVORS = "receive_survivors"
    CONFIRMATIONS = "receive_confirmations"
    RESULT = "receive_result"
    ABORT = "abort"


class ServerState(Enum):
    """Which messages a server session is collecting."""

    ADVERTISE_KEYS = "collecting keys"
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
    RECEIVE_SHARE_KEYS = "receive_share_keys"
    CLOSE_SHARE_KEYS = "close_share_keys"
    RECEIVE_MASKED_INPUT = "receive_masked_input"
    CLOSE_MASKED_INPUTS = "close_masked_inputs"
    RECEIVE_CONFIRMATION = "receive_confirmation"
    CLOSE_CONFIRMATIONS = "close_confirmations"
    RECEIVE_UNMASK_SHARES = "receive_unmask_shares"
    CLOSE_UNMASK = "close_unmask"


CLIENT_TRANSITIONS: dict[tuple[ClientState, ClientEvent], ClientState] = {
    (ClientState.START, ClientEvent.ADVERTISE_KEYS): ClientState.KEYS_ADVERTISED,
    (ClientState.KEYS_ADVERTISED, ClientEvent.PEER_KEYS): ClientState.KEYS_SHARED,
    (ClientState.KEYS_SHARED, ClientEvent.PEER_SHARES): ClientState.READY,
    (ClientState.READY, ClientEvent.MASKED_INPUT): ClientState.INPUT_SENT,
    (ClientState.INPUT_SENT, ClientEvent.SURVIVORS): ClientState.CONFIRMED,
    (ClientState.CONFIRMED, ClientEvent.CONFIRMATIONS): ClientState.REVEALED,
    (ClientState.REVEALED, ClientEvent.RESULT): ClientState.DONE,
    (ClientState.START, ClientEvent.ABORT): ClientState.DEAD,
    (ClientState.KEYS_ADVERTISED, ClientEvent.ABORT): ClientState.DEAD,
    (ClientState.KEYS_SHARED, ClientEvent.ABORT): ClientState.DEAD,
    (ClientState.READY, ClientEvent.ABORT): ClientState.DEAD,
    (ClientState.INPUT_SENT, ClientEvent.ABORT): ClientState.DEAD,
    (ClientState.CONFIRMED, ClientEvent.ABORT): ClientState.DEAD,
    (ClientState.REVEALED, ClientEvent.ABORT): ClientState.DEAD,
    (ClientState.DEAD, ClientEvent.ABORT): ClientState.DEAD,  # the complaint after a failed check
}

SERVER_TRANSITIONS: dict[tuple[ServerState, ServerEvent], ServerState] = {
    (ServerState.ADVERTISE_KEYS, ServerEvent.RECEIVE_ADVERTISE_KEYS): ServerState.ADVERTISE_KEYS,
    (ServerState.ADVERTISE_KEYS, ServerEvent.CLOSE_ADVERTISE_KEYS): ServerState.SHARE_KEYS,
    (ServerState.SHARE_KEYS, ServerEvent.RECEIVE_SHARE_KEYS): ServerState.SHARE_KEYS,
    (ServerState.SHARE_KEYS, ServerEvent.CLOSE_SHARE_KEYS): ServerState.MASKED_INPUT,
    (ServerState.MASKED_INPUT, ServerEvent.RECEIVE_MASKED_INPUT): ServerState.MASKED_INPUT,
    (ServerState.MASKED_INPUT, ServerEvent.CLOSE_MASKED_INPUTS): ServerState.CONFIRM_SURVIVORS,
    (ServerState.CONFIRM_SURVIVORS, ServerEvent.RECEIVE_CONFIRMATION): ServerState.CONFIRM_SURVIVORS,
    (ServerState.CONFIRM_SURVIVORS, ServerEvent.CLOSE_CONFIRMATIONS): ServerState.UNMASK,
    (ServerState.UNMASK, ServerEvent.RECEIVE_UNMASK_SHARES): ServerState.UNMASK,
    (ServerState.UNMASK, ServerEvent.CLOSE_UNMASK): ServerState.DONE,
}


def next_client_state(state: ClientState, event: ClientEvent) -> ClientState:
    """Look up a client's next state; LocalProtocolError if the event is illegal there."""
    try:
        return CLIENT_TRANSITIONS[state, event]
    except KeyError:
        raise LocalProtocolError(f"{event.value} is not possible while the session is {state.value}") from None


def next_server_state(state: ServerState, event: ServerEvent) -> ServerState:
    """Look up a server's next state; LocalProtocolError if the event is illegal there."""
    try:
        return SERVER_TRANSITIONS[state, event]
    except KeyError:
        raise LocalProtocolError(f"{event.value} is not possible while the session is {state.value}") from None
