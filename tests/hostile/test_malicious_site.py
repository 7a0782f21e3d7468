"""A site that breaks the protocol: it is named, and the round goes on without it where that is possible."""

import dataclasses

import numpy as np
import pytest

from secure_agg import client as client_module
from secure_agg import dealing
from secure_agg.encoding import vector_digest
from secure_agg.errors import AggregationAborted, LocalProtocolError, RemoteProtocolError
from secure_agg.keys import AgreementKey
from secure_agg.messages import Abort, AbortCode, MaskedInput, PeerKeys
from secure_agg.reconstruction import Complaint
from secure_agg.shamir import split
from secure_agg.transcript import advertise_statement, input_statement, share_statement
from secure_agg.transitions import ClientState, ServerState
from tests.simulation.federation import Federation, Phase, signing_key


def signed_advert(federation, site_id, encryption_key, mask_key, commitment=b""):
    keys = (encryption_key, mask_key, bytes(32), commitment)
    tag, fields = advertise_statement(federation.context, site_id, keys)
    genuine = federation.clients[site_id].advertise_keys()
    return dataclasses.replace(
        genuine,
        encryption_key=keys[0],
        mask_key=keys[1],
        ledger_head=keys[2],
        nonce_commitment=keys[3],
        signature=signing_key(site_id).sign(tag, *fields),
    )


def refused(federation, message, reason):
    with pytest.raises(RemoteProtocolError, match=reason) as caught:
        federation.server.receive_advertise_keys(message)
    assert caught.value.peer == message.sender


def test_a_low_order_key_is_refused_at_the_server():
    federation = Federation(4)
    good = AgreementKey.generate().public
    refused(federation, signed_advert(federation, 11, bytes(32), good), "low order")
    refused(federation, signed_advert(federation, 12, good, bytes(32)), "low order")


def test_a_low_order_key_that_a_server_lets_through_names_its_site():
    federation = Federation(4)
    bad = signed_advert(federation, 12, AgreementKey.generate().public, bytes(32))
    adverts = [federation.clients[site].advertise_keys() for site in (11, 13, 14)]
    with pytest.raises(RemoteProtocolError, match="low order") as caught:
        federation.clients[11].receive_peer_keys(PeerKeys((adverts[0], bad, *adverts[1:])))
    assert caught.value.peer == 12


def test_a_copied_key_is_refused():
    federation = Federation(4)
    first = federation.clients[11].advertise_keys()
    federation.server.receive_advertise_keys(first)
    fresh = AgreementKey.generate().public
    refused(federation, signed_advert(federation, 12, first.encryption_key, fresh), "twice")
    refused(federation, signed_advert(federation, 13, fresh, first.mask_key), "twice")
    refused(federation, signed_advert(federation, 14, fresh, fresh), "twice")


@pytest.mark.parametrize("step", range(2))
def test_a_copied_key_that_a_server_lets_through_is_refused_by_the_sites(step):
    federation = Federation(4)
    adverts = [federation.clients[site].advertise_keys() for site in (11, 12, 13)]
    keys = [(adverts[0].mask_key, AgreementKey.generate().public), (AgreementKey.generate().public,) * 2][step]
    copied = signed_advert(federation, 14, *keys)
    with pytest.raises(RemoteProtocolError, match="occurs twice"):
        federation.clients[12].receive_peer_keys(PeerKeys((*adverts, copied)))


def with_share(federation, sender, recipient, change):
    """Replace one sealed share of a site by another that the site has properly signed."""
    message = federation.clients[sender].receive_peer_keys(federation.peer_keys)
    shares = list(message.shares)
    for position, share in enumerate(shares):
        if share.recipient == recipient:
            sealed = change(share.ciphertext)
            tag, fields = share_statement(federation.server._keys_hash, sender, recipient, message.commitment, sealed)
            signature = signing_key(sender).sign(tag, *fields)
            shares[position] = dataclasses.replace(share, ciphertext=sealed, signature=signature)
    return dataclasses.replace(message, shares=tuple(shares))


def test_a_share_that_does_not_open_names_its_sender():
    federation = Federation(4)
    federation.keys()
    bad = with_share(federation, 12, 11, lambda sealed: bytes(len(sealed)))
    federation.server.receive_share_keys(bad)
    federation.shares()
    client = federation.clients[11]
    with pytest.raises(RemoteProtocolError, match="does not open") as caught:
        client.receive_peer_shares(federation.peer_shares[11])
    assert caught.value.peer == 12
    notice = client.abort(AbortCode.CHECK_FAILED)
    assert (notice.accused, notice.step) == (12, "share_keys")
    federation.server.receive_abort(notice)
    assert federation.server.expected == (12, 13, 14)
    del federation.clients[11]
    federation.masked()
    federation.confirm()
    assert federation.unmask().total.tolist() == [14] * 8


def test_a_share_outside_the_field_names_its_sender(monkeypatch):
    federation = Federation(4)
    federation.keys()
    with monkeypatch.context() as patched:
        patched.setattr(dealing, "split", lambda *a: dict.fromkeys(split(*a), b"\xff" * 33))
        federation.server.receive_share_keys(federation.clients[12].receive_peer_keys(federation.peer_keys))
    federation.shares()
    with pytest.raises(RemoteProtocolError, match="does not open") as caught:
        federation.clients[13].receive_peer_shares(federation.peer_shares[13])
    assert caught.value.peer == 12


def lie(message, owner, value=b"\0" * 32 + b"\x09"):
    shares = (dataclasses.replace(s, share=value) if s.owner == owner else s for s in message.shares)
    return dataclasses.replace(message, shares=tuple(shares))


def unmask_with_lies(federation, lies, drops=None):
    """Open a round in which some holders release a wrong share of some owners."""
    for phase in ("keys", "shares", "masked", "confirm"):
        getattr(federation, phase)(drops)
    for site in federation.server.expected:
        message = federation.clients[site].receive_confirmations(federation.confirmations)
        for owner in lies.get(site, ()):
            message = lie(message, owner)
        federation.server.receive_unmask_shares(message)
    return federation.server.close_unmask()


@pytest.mark.parametrize(
    "lies", [{12: (11,)}, {11: (11,)}, {14: (12, 13)}, {13: (11, 12, 13, 14)}, {11: (12,), 12: (11,)}]
)
def test_a_lying_site_is_named_and_the_sum_is_right(lies):
    federation = Federation(4)
    result = unmask_with_lies(federation, lies)
    assert result.total.tolist() == [15] * 8
    wanted = {Complaint(holder, owner) for holder, owners in lies.items() for owner in owners}
    assert set(result.complaints) == wanted


def test_a_lie_about_a_dropped_sites_key_is_named():
    federation = Federation(6)
    result = unmask_with_lies(federation, {11: (15,)}, {15: Phase.INPUT})
    assert result.total.tolist() == [1 + 2 + 4 + 8 + 32] * 8
    assert result.complaints == (Complaint(11, 15),)


def test_two_lying_sites_of_ten_are_named():
    federation = Federation(10)
    result = unmask_with_lies(federation, {12: (11, 12), 17: (11, 20)})
    assert result.total.tolist() == [2**10 - 1] * 8
    assert set(result.complaints) == {Complaint(12, 11), Complaint(12, 12), Complaint(17, 11), Complaint(17, 20)}


def test_with_exactly_threshold_answers_a_lie_ends_the_round():
    federation = Federation(3)
    with pytest.raises(AggregationAborted, match="the secret of site 12 cannot be recovered") as caught:
        unmask_with_lies(federation, {11: (12,)})
    assert caught.value.step == "unmask"
    assert federation.server.state is ServerState.ABORTED


def test_a_share_outside_the_field_is_refused_and_the_site_counts_as_dropped():
    federation = Federation(4)
    for phase in ("keys", "shares", "masked", "confirm"):
        getattr(federation, phase)()
    message = federation.clients[11].receive_confirmations(federation.confirmations)
    with pytest.raises(RemoteProtocolError, match="not an element") as caught:
        federation.server.receive_unmask_shares(lie(message, 12, b"\xff" * 33))
    assert caught.value.peer == 11
    assert federation.unmask({11: Phase.UNMASK}).total.tolist() == [15] * 8


@pytest.mark.parametrize(
    "vector", [np.ones(1, np.uint32), np.ones((2, 8), np.uint32), np.ones(8, np.uint16), np.ones(8, np.float64)]
)
def test_a_signed_vector_of_another_shape_or_type_is_refused(vector):
    federation = Federation(4)
    federation.keys()
    federation.shares()
    tag, fields = input_statement(federation.server._shares_hash, 12, vector_digest(vector))
    message = MaskedInput(12, vector, vector_digest(vector), signing_key(12).sign(tag, *fields))
    with pytest.raises(RemoteProtocolError, match="wrong type or length") as caught:
        federation.server.receive_masked_input(message)
    assert caught.value.peer == 12
    federation.masked()
    federation.confirm()
    assert federation.unmask().total.tolist() == [15] * 8


def test_an_input_out_of_range_ends_the_round_instead_of_spoiling_the_sum(monkeypatch):
    federation = Federation(4)
    federation.keys()
    federation.shares()
    monkeypatch.setattr(client_module, "check_encoded", lambda policy, vector: None)
    federation.inputs[12] = np.full(8, 2**30, np.uint32)
    federation.masked()
    federation.confirm()
    with pytest.raises(AggregationAborted, match="out of range"):
        federation.unmask()
    assert federation.server.state is ServerState.ABORTED


def test_the_same_input_is_refused_at_an_honest_site():
    federation = Federation(4)
    federation.keys()
    federation.shares()
    federation.inputs[12] = np.full(8, 2**30, np.uint32)
    with pytest.raises(LocalProtocolError, match="max_magnitude"):
        federation.masked()


# -- weights


def weighted(site_id, value, weight):
    """A round with weights up to 4, in which one site sends a value and a weight of its own making."""
    federation = Federation(4, policy_changes={"max_weight": 4})
    for site in federation.inputs:
        federation.inputs[site] = np.array([10] * 8 + [1], np.uint32)
    federation.inputs[site_id] = np.array([value] * 8 + [weight], np.uint32)
    return federation


@pytest.mark.parametrize("weight", [0, 5, 14, 1000, 2**31, 2**32 - 1, 2**32 - 3])
def test_a_weight_that_takes_the_sum_out_of_range_ends_the_round(monkeypatch, weight):
    federation = weighted(12, 10, weight)
    monkeypatch.setattr(client_module, "check_encoded", lambda policy, vector: None)
    if weight in (0, 5):  # one more or less is hidden by the others' weights as long as their sum is possible
        federation.inputs.update({site: np.array([10] * 8 + [1 if weight == 0 else 4], np.uint32) for site in (11, 13)})
        federation.inputs[14] = federation.inputs[13]
    with pytest.raises(AggregationAborted, match="sum of the weights") as caught:
        federation.run()
    assert caught.value.step == "publish"


@pytest.mark.parametrize("weight", [0, 5, 2**32 - 1])
def test_an_honest_site_does_not_send_such_a_weight(weight):
    federation = weighted(12, 10, weight)
    with pytest.raises(LocalProtocolError, match="the weight"):
        federation.run()
    assert federation.releases[12].marked == []


def test_a_value_beyond_its_weight_ends_the_round_where_the_sum_of_the_weights_does_not_cover_it(monkeypatch):
    monkeypatch.setattr(client_module, "check_encoded", lambda policy, vector: None)
    with pytest.raises(AggregationAborted, match="an input was out of range"):
        weighted(12, 6 * 2**10, 1).run()
    assert weighted(12, 4 * 2**10, 4).run().total.tolist() == [4 * 2**10 + 30] * 8 + [7]


# -- sparse graph


def sparse_advert(federation, site_id, commitment):
    fresh = (AgreementKey.generate().public, AgreementKey.generate().public)
    return signed_advert(federation, site_id, *fresh, commitment)


def test_a_nonce_commitment_on_the_complete_graph_is_refused():
    federation = Federation(4)
    refused(federation, sparse_advert(federation, 12, b"c" * 32), "a nonce commitment is not what")
    federation = Federation(4)
    bad = sparse_advert(federation, 13, b"c" * 32)
    adverts = [federation.clients[site].advertise_keys() for site in (11, 12, 14)]
    with pytest.raises(RemoteProtocolError, match="a nonce commitment is not what") as caught:
        federation.clients[11].receive_peer_keys(PeerKeys((*adverts, bad)))
    assert caught.value.peer == 13


def test_a_missing_nonce_commitment_on_a_sparse_graph_is_refused(sparse_round):
    federation = sparse_round.at("keys")
    bad = sparse_advert(federation, 12, b"")
    refused(federation, bad, "a nonce commitment is not what")
    committed = sparse_round.at("nonce")
    adverts = tuple(bad if item.sender == 12 else item for item in sparse_round.received["nonce", 11].adverts)
    with pytest.raises(RemoteProtocolError, match="a nonce commitment is not what") as caught:
        committed.clients[11].reveal_nonce(PeerKeys(adverts))
    assert caught.value.peer == 12


def test_a_nonce_that_does_not_open_is_refused_and_the_round_goes_on_without_its_site(sparse_round):
    federation = sparse_round.at("nonce")
    nonces = [sparse_round.sent["nonce", site] for site in federation.context.cohort]
    for nonce in nonces[:-1]:
        federation.server.receive_nonce(nonce)
    bad = dataclasses.replace(nonces[-1], nonce=bytes(32))
    with pytest.raises(RemoteProtocolError, match="does not open its commitment") as caught:
        federation.server.receive_nonce(bad)
    assert (caught.value.peer, caught.value.step) == (bad.sender, "reveal_nonces")
    remaining = federation.server.close_nonces()
    assert bad.sender not in {item.sender for item in remaining.nonces}
    shared = federation.clients[11].reveal_nonce(sparse_round.received["nonce", 11])
    assert shared == nonces[0]
    federation.server.receive_share_keys(federation.clients[11].receive_peer_nonces(remaining))


def test_lying_sites_on_a_sparse_graph_are_named_and_the_sum_is_right(sparse_round):
    federation = sparse_round.at("unmask")
    lies = {12: 12, 40: None, 77: None}  # about its own secret, and about that of a neighbour
    wanted = set()
    for site in federation.context.cohort:
        message = sparse_round.sent["unmask", site]
        if site in lies:
            owner = lies[site] or next(share.owner for share in message.shares if share.owner not in lies)
            message = lie(message, owner)
            wanted.add(Complaint(site, owner))
        federation.server.receive_unmask_shares(message)
    result = federation.server.close_unmask()
    assert result.total.tolist() == federation.sum_of(federation.context.cohort).tolist()
    assert set(result.complaints) == wanted


@pytest.mark.parametrize("change", ["missing", "a stranger's", "the other kind"])
def test_shares_of_others_than_the_neighbours_are_refused(sparse_round, change):
    federation = sparse_round.at("unmask")
    message = sparse_round.sent["unmask", 12]
    owners = {share.owner for share in message.shares}
    stranger = next(site for site in federation.context.cohort if site not in owners)
    last = message.shares[-1]
    shares = {
        "missing": message.shares[:-1],
        "a stranger's": (*message.shares[:-1], dataclasses.replace(last, owner=stranger)),
        "the other kind": (*message.shares[:-1], dataclasses.replace(last, kind=3 - last.kind)),
    }[change]
    with pytest.raises(RemoteProtocolError, match="not one share of the right kind") as caught:
        federation.server.receive_unmask_shares(dataclasses.replace(message, shares=shares))
    assert caught.value.peer == 12


# -- aborts


def test_a_signed_abort_is_taken_and_the_site_is_not_waited_for():
    federation = Federation(4)
    federation.keys()
    federation.server.receive_abort(federation.clients[13].abort("refused"))
    assert federation.server.expected == (11, 12, 14)
    assert [notice.sender for notice in federation.server.aborts] == [13]
    federation.clients.pop(13)
    federation.shares()
    federation.masked()
    federation.confirm()
    assert federation.unmask().total.tolist() == [1 + 2 + 8] * 8


def test_a_site_that_left_is_not_heard_again():
    federation, other = Federation(4), Federation(4)
    advert = other.clients[13].advertise_keys()
    federation.server.receive_abort(federation.clients[13].abort("refused"))
    with pytest.raises(RemoteProtocolError, match="no part"):
        federation.server.receive_advertise_keys(advert)


@pytest.mark.parametrize("changed", [{"sender": 12}, {"accused": 14}, {"step": "unmask"}, {"code": "timed-out"}])
def test_a_changed_abort_is_refused(changed):
    federation = Federation(4)
    federation.keys()
    notice = dataclasses.replace(federation.clients[13].abort("refused"), **changed)
    with pytest.raises(RemoteProtocolError, match="signature"):
        federation.server.receive_abort(notice)
    assert federation.server.expected == (11, 12, 13, 14)


def test_an_abort_of_another_attempt_is_refused():
    notice = Federation(4, context_changes={"attempt": 1}).clients[13].abort("refused")
    with pytest.raises(RemoteProtocolError, match="signature"):
        Federation(4).server.receive_abort(notice)


def test_an_abort_from_outside_the_cohort_is_refused():
    with pytest.raises(RemoteProtocolError, match="outside the cohort"):
        Federation(4).server.receive_abort(Abort(77, "unmask", "refused", bytes(64)))


def test_an_abort_code_that_is_not_on_the_list_is_our_own_mistake():
    client = Federation(3).clients[11]
    with pytest.raises(LocalProtocolError, match="not an abort code"):
        client.abort("loss 0.31")
    assert client.state is ClientState.START


def test_a_crash_inside_a_step_kills_the_session():
    def failing(size):
        raise MemoryError

    federation = Federation(3)
    client = federation.client(11, randomness=failing)
    with pytest.raises(MemoryError):
        client.advertise_keys()
    assert client.state is ClientState.DEAD


def test_peers_see_each_others_ledger_heads():
    federation = Federation(3)
    federation.run()
    heads = federation.clients[11].peer_ledger_heads
    assert {site: heads[site] for site in (11, 12, 13)} == {
        site: message.ledger_head for site, message in federation.records["keys"].items()
    }
