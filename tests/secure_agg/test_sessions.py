"""What a session shows of itself: where it stands, and never what it holds."""

import hashlib

import numpy as np
import pytest

from secure_agg.client import ClientSession
from secure_agg.errors import LocalProtocolError
from secure_agg.server import ServerSession
from secure_agg.transitions import ClientState
from tests.simulation.federation import Federation, Releases


def secrets_of(client):
    """Every secret byte string that a site holds, in hexadecimal and as Python would print it."""
    held = vars(client._secrets)
    plain = [held["_self_mask"], held["_mask_key"].to_bytes(), *held["_mask_secrets"].values()]
    plain += [share for pair in held["_held"].values() for share in pair]
    return [shown for secret in plain for shown in (secret.hex(), repr(secret))]


def ready_to_mask():
    federation = Federation(4, seeded=True)
    federation.keys()
    federation.shares()
    federation.clients[11].receive_peer_shares(federation.peer_shares[11])
    return federation


def test_a_site_shows_its_id_and_state_and_no_secret():
    client = ready_to_mask().clients[11]
    assert repr(client) == "ClientSession(site_id=11, state='ready to mask')"
    assert not any(secret in f"{client!r}{client}{client._secrets!r}" for secret in secrets_of(client))


def test_a_site_that_showed_all_it_holds_would_be_noticed(monkeypatch):
    client = ready_to_mask().clients[11]
    monkeypatch.setattr(ClientSession, "__repr__", lambda self: repr(vars(self._secrets)))
    assert any(secret in repr(client) for secret in secrets_of(client))


def test_a_server_shows_its_state_and_cohort():
    federation = ready_to_mask()
    assert repr(federation.server) == "ServerSession(state='collecting inputs', cohort=(11, 12, 13, 14))"
    assert isinstance(federation.server, ServerSession)


@pytest.mark.usefixtures("sparse_from_seven_sites")
@pytest.mark.parametrize("n", [4, 7])
def test_a_site_names_its_neighbours_survivors_and_the_ledgers_of_its_peers_once_it_knows_them(n):
    federation = Federation(n)
    client = federation.clients[11]
    assert (client.neighbours, client.survivors, dict(client.peer_ledger_heads)) == (frozenset(), (), {})
    federation.run()
    cohort = federation.context.cohort
    assert client.survivors == cohort
    assert len(client.neighbours) == (3 if n == 4 else 4)
    assert all(11 in federation.clients[other].neighbours for other in client.neighbours)
    assert client.peer_ledger_heads == {site: hashlib.sha256(b"ledger %d" % site).digest() for site in cohort}


def test_an_input_is_left_as_it_is_unless_it_may_be_overwritten():
    federation = ready_to_mask()
    vector = federation.inputs[11]
    before = vector.copy()
    message = federation.clients[11].masked_input(vector, Releases())
    np.testing.assert_array_equal(vector, before)
    assert not np.shares_memory(message.vector, vector)
    with pytest.raises(ValueError, match="read-only"):
        message.vector[0] = 0


def test_an_input_that_may_be_overwritten_becomes_the_message():
    copied, in_place = (ready_to_mask() for _ in range(2))
    one = copied.clients[11].masked_input(copied.inputs[11], Releases())
    other = in_place.clients[11].masked_input(in_place.inputs[11], Releases(), overwrite=True)
    assert np.shares_memory(other.vector, in_place.inputs[11])
    np.testing.assert_array_equal(one.vector, other.vector)
    assert one.digest == other.digest
    with pytest.raises(ValueError, match="read-only"):
        in_place.inputs[11][0] = 0


def test_after_an_overwritten_input_whose_release_was_refused_its_masks_cover_nothing_else():
    federation, releases = ready_to_mask(), Releases()
    releases.mark("test-run", 7)
    client, first, second = federation.clients[11], federation.inputs[11], federation.inputs[11].copy()
    with pytest.raises(LocalProtocolError, match="released before"):
        client.masked_input(first, releases, overwrite=True)
    assert not np.array_equal(first, second)  # the caller holds a masked vector
    assert client.state is ClientState.DEAD
    with pytest.raises(LocalProtocolError, match="not possible"):
        client.masked_input(second, Releases(), overwrite=True)
    assert client._secrets._self_mask == b""


def test_without_overwriting_a_refused_release_leaves_input_and_session():
    federation, releases = ready_to_mask(), Releases()
    releases.mark("test-run", 7)
    client, before = federation.clients[11], federation.inputs[11].copy()
    with pytest.raises(LocalProtocolError, match="released before"):
        client.masked_input(federation.inputs[11], releases)
    assert client.state is ClientState.READY
    np.testing.assert_array_equal(federation.inputs[11], before)
    client.masked_input(federation.inputs[11], Releases())


def test_no_value_of_a_round_shows_bytes_or_numbers_of_it():
    federation = Federation(4)
    result = federation.run()
    decoded = federation.clients[11].receive_result(result.message)
    for value in (federation.context, result, result.message, decoded):
        assert "\\x" not in repr(value)
        assert "[" not in repr(value)
    assert "survivors=(11, 12, 13, 14)" in repr(result)
    assert "cohort=<4 sites>" in repr(federation.context)
    assert repr(decoded) == "DecodedSum(values=<8 numbers>, weight=4)"
