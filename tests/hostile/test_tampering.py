"""Every field of every message, changed on the way: a named refusal at the step that checks it, never a wrong sum."""

import dataclasses

import numpy as np
import pytest

from secure_agg.errors import LocalProtocolError, RemoteProtocolError
from secure_agg.messages import ShareKind
from secure_agg.transitions import ClientState
from tests.simulation.federation import Federation

PHASES = ("keys", "shares", "masked", "confirm", "unmask")
N = 4


def until(phase, **options):
    """A round of which everything before a phase is done."""
    federation = Federation(N, **options)
    for name in PHASES[: PHASES.index(phase)]:
        getattr(federation, name)()
    return federation


def variants(value):
    """A field's value with one thing wrong about it."""
    if isinstance(value, ShareKind):
        yield "other kind", ShareKind(3 - value)
    elif isinstance(value, bytes):
        yield "first bit", bytes([value[0] ^ 1]) + value[1:]
        yield "last bit", value[:-1] + bytes([value[-1] ^ 0x80])
        yield "zeros", bytes(len(value))
    elif isinstance(value, int):
        yield "a peer", 11 if value != 11 else 12
        yield "a stranger", 77
    elif isinstance(value, np.ndarray):
        yield "one bit", value ^ np.array([1] + [0] * (value.size - 1), value.dtype)
        yield "truncated", value[:-1]
        yield "longer", np.append(value, value[:1])
        yield "retyped", value.astype(np.uint64)


def changed_messages(message):
    """Yield (what was changed, the message with it changed), down to the items of its lists."""
    for field in dataclasses.fields(message):
        value = getattr(message, field.name)
        if isinstance(value, tuple):
            yield from changed_lists(message, field.name, value)
        else:
            for how, new in variants(value):
                yield f"{field.name}: {how}", dataclasses.replace(message, **{field.name: new})


def changed_lists(message, name, items):
    def with_items(new):
        return dataclasses.replace(message, **{name: new})

    yield f"{name}: first repeated", with_items((*items, items[0]))
    yield f"{name}: first replaced by second", with_items((items[1], *items[1:]))
    yield f"{name}: emptied", with_items(())
    for i, item in enumerate(items):
        if isinstance(item, tuple):
            for j, value in enumerate(item):
                for how, new in variants(value):
                    changed = (*item[:j], new, *item[j + 1 :])
                    yield f"{name}[{i}][{j}]: {how}", with_items((*items[:i], changed, *items[i + 1 :]))
        else:
            for what, new in changed_messages(item):
                yield f"{name}[{i}].{what}", with_items((*items[:i], new, *items[i + 1 :]))


def to_client(federation):
    """What the server sends site 12 in the phase that is next, and the call that takes it."""
    client = federation.clients[12]
    if hasattr(federation, "confirmations"):
        return client.receive_confirmations, federation.confirmations
    if hasattr(federation, "survivors"):
        return client.receive_survivors, federation.survivors
    if hasattr(federation, "peer_shares"):
        return client.receive_peer_shares, federation.peer_shares[12]
    return client.receive_peer_keys, federation.peer_keys


SERVER_STEPS = [
    ("shares", "advertise_keys"),
    ("masked", "share_keys"),
    ("confirm", "confirm_survivors"),
    ("unmask", "unmask"),
]


@pytest.mark.parametrize(("phase", "step"), SERVER_STEPS)
def test_every_change_of_a_servers_message_kills_the_session_at_its_step(phase, step):
    names = [what for what, _ in changed_messages(to_client(until(phase))[1])]
    assert len(names) > 20
    for i, what in enumerate(names):
        federation = until(phase)
        call, message = to_client(federation)
        changed = list(changed_messages(message))[i]
        assert changed[0] == what
        with pytest.raises(RemoteProtocolError) as caught:
            call(changed[1])
        assert caught.value.step == step, what
        assert federation.clients[12].state is ClientState.DEAD, what


@pytest.mark.parametrize(("phase", "step"), SERVER_STEPS)
def test_a_servers_message_for_another_round_kills_the_session(phase, step):
    for changed in ({"round": 8}, {"attempt": 3}, {"run_id": "other"}, {"model_hash": b"m" * 32}):
        call, _ = to_client(federation := until(phase))
        _, message = to_client(until(phase, context_changes=changed))
        with pytest.raises(RemoteProtocolError) as caught:
            call(message)
        assert caught.value.step == step
        assert federation.clients[12].state is ClientState.DEAD


@pytest.mark.parametrize(("phase", "step"), SERVER_STEPS)
def test_the_order_of_a_list_does_not_matter(phase, step):
    federation = until(phase)
    call, message = to_client(federation)
    fields = {field.name: tuple(reversed(getattr(message, field.name))) for field in dataclasses.fields(message)}
    call(dataclasses.replace(message, **fields))
    assert federation.clients[12].state is not ClientState.DEAD, step


def own_message(federation, phase):
    """What site 12 sends in a phase, and the server's call that takes it."""
    client, server = federation.clients[12], federation.server
    if phase == "keys":
        return server.receive_advertise_keys, client.advertise_keys()
    if phase == "shares":
        return server.receive_share_keys, client.receive_peer_keys(federation.peer_keys)
    if phase == "masked":
        client.receive_peer_shares(federation.peer_shares[12])
        return server.receive_masked_input, client.masked_input(federation.inputs[12])
    if phase == "confirm":
        return server.receive_confirmation, client.receive_survivors(federation.survivors)
    return server.receive_unmask_shares, client.receive_confirmations(federation.confirmations)


STEPS = dict(zip(PHASES, ("advertise_keys", "share_keys", "masked_input", "confirm_survivors", "unmask"), strict=True))


def finish(federation, phase):
    """Play the rest of a round; whoever the server no longer expects in this phase is not asked again."""
    for name in PHASES[PHASES.index(phase) :]:
        result = getattr(federation, name)()
    return result


@pytest.mark.parametrize("phase", PHASES)
def test_every_change_of_a_sites_message_is_refused_without_harm_to_the_round(phase):
    federation = until(phase)
    call, genuine = own_message(federation, phase)
    changed = [item for item in changed_messages(genuine) if not is_checked_elsewhere(phase, item[0])]
    assert len(changed) >= 5
    state = federation.server.state
    for what, message in changed:
        with pytest.raises(RemoteProtocolError) as caught:
            call(message)
        assert caught.value.step == STEPS[phase], what
        assert caught.value.peer == message.sender, what
        assert federation.server.state is state
    call(genuine)
    result = finish(federation, phase)
    assert result.total.tolist() == [15] * 8
    assert result.complaints == ()


def is_checked_elsewhere(phase, what):
    """Unmask shares carry no signature.

    Their sender is whom the channel says it is, which the caller compares; their values are checked against the owners'
    commitments when the sum is opened (test_malicious_site).
    """
    return phase == "unmask" and (".share:" in what or what == "sender: a peer")


@pytest.mark.parametrize("phase", PHASES[:-1])
@pytest.mark.parametrize(
    "changed", [{"round": 8}, {"attempt": 3}, {"attempt": 1}, {"run_id": "other"}, {"model_hash": b"m" * 32}]
)
def test_a_sites_message_from_another_round_is_refused(phase, changed):
    _, foreign = own_message(until(phase, context_changes=changed), phase)
    call, _ = own_message(until(phase), phase)
    with pytest.raises(RemoteProtocolError, match="signature"):
        call(foreign)


@pytest.mark.parametrize("phase", PHASES)
def test_a_message_sent_twice_is_refused(phase):
    federation = until(phase)
    call, genuine = own_message(federation, phase)
    call(genuine)
    with pytest.raises(RemoteProtocolError, match="already"):
        call(genuine)


@pytest.mark.parametrize("phase", PHASES)
def test_a_message_of_one_phase_is_refused_in_every_other(phase):
    for other in PHASES:
        if other == phase:
            continue
        whole = Federation(N)
        whole.run()
        federation = until(other)
        kinds = dict(zip(PHASES, ("keys", "shares", "input", "confirmation", "unmask"), strict=True))
        receive = dict(
            zip(
                PHASES,
                ("advertise_keys", "share_keys", "masked_input", "confirmation", "unmask_shares"),
                strict=True,
            )
        )
        call = getattr(federation.server, f"receive_{receive[phase]}")
        with pytest.raises(RemoteProtocolError, match="not of the phase"):
            call(whole.records[kinds[phase]][12])


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros(7, np.uint32),
        np.zeros(8, np.uint64),
        np.zeros(8, np.int32),
        np.zeros(8, np.float64),
        np.full(8, 2**10 + 1, np.uint32),
        np.full(8, 2**31, np.uint32),
    ],
)
def test_a_wrong_input_of_our_own_leaves_the_session_as_it_was(vector):
    federation = until("masked")
    client = federation.clients[12]
    client.receive_peer_shares(federation.peer_shares[12])
    with pytest.raises(LocalProtocolError):
        client.masked_input(vector)
    assert client.state is ClientState.READY
    federation.server.receive_masked_input(client.masked_input(federation.inputs[12]))
    assert finish(federation, "masked").total.tolist() == [15] * 8


def test_unmask_shares_from_another_round_are_all_named_as_wrong():
    federation, other = until("unmask"), until("unmask", context_changes={"attempt": 3})
    for site in (11, 12, 13, 14):
        source = other if site == 12 else federation
        message = source.clients[site].receive_confirmations(source.confirmations)
        federation.server.receive_unmask_shares(message)
    result = federation.server.close_unmask()
    assert result.total.tolist() == [15] * 8
    assert {(complaint.holder, complaint.owner) for complaint in result.complaints} == {(12, s) for s in range(11, 15)}
