"""Scripts of a server that breaks the protocol to isolate one site's input; each ends at a named check."""

import dataclasses

import numpy as np
import pytest

from secure_agg.errors import LocalProtocolError, RemoteProtocolError
from secure_agg.keys import AgreementKey, SigningKey
from secure_agg.messages import Confirmations, InputDigest, PeerKeys, PeerShare, PeerShares, ShareKind, Survivors
from secure_agg.server import ServerSession
from secure_agg.transcript import advertise_statement
from secure_agg.transitions import ClientState
from tests.simulation.federation import Federation, make_context, make_policy, make_roster, signing_key


def refuses(client, call, step, reason, peer=None):
    """Expect a client to refuse, die, and never answer again."""
    with pytest.raises(RemoteProtocolError, match=reason) as caught:
        call()
    assert (caught.value.peer, caught.value.step) == (peer, step)
    assert client.state is ClientState.DEAD
    with pytest.raises(LocalProtocolError):
        call()
    assert "<private>" in repr(client._secrets)
    assert not any(vars(client._secrets).values())  # every secret of the attempt is gone


def until(n, *phases, **options):
    federation = Federation(n, **options)
    for phase in phases:
        getattr(federation, phase)()
    return federation


def advert_by_server(federation, site_id, **changed):
    """An advertisement with the server's own keys, signed with a key the server has."""
    genuine = next(advert for advert in federation.peer_keys.adverts if advert.sender == site_id)
    return dataclasses.replace(genuine, **changed)


def replaced(items, position, item):
    return (*items[:position], item, *items[position + 1 :])


# -- keys


@pytest.mark.parametrize("field", ["encryption_key", "mask_key"])
def test_a_substituted_key_is_refused(field):
    federation = until(4, "keys")
    forged = advert_by_server(federation, 12, **{field: AgreementKey.generate().public})
    message = PeerKeys(replaced(federation.peer_keys.adverts, 1, forged))
    client = federation.clients[11]
    refuses(client, lambda: client.receive_peer_keys(message), "advertise_keys", "site 12's signature")


def test_substituted_keys_under_the_servers_own_signature_are_refused():
    federation = until(4, "keys")
    keys = (AgreementKey.generate().public, AgreementKey.generate().public, bytes(32))
    tag, fields = advertise_statement(federation.context, 12, *keys)
    forged = advert_by_server(
        federation,
        12,
        encryption_key=keys[0],
        mask_key=keys[1],
        ledger_head=keys[2],
        signature=SigningKey.generate().sign(tag, *fields),
    )
    message = PeerKeys(replaced(federation.peer_keys.adverts, 1, forged))
    client = federation.clients[11]
    refuses(client, lambda: client.receive_peer_keys(message), "advertise_keys", "site 12's signature")


def test_a_changed_own_key_is_refused():
    federation = until(4, "keys")
    forged = advert_by_server(federation, 11, mask_key=AgreementKey.generate().public)
    message = PeerKeys(replaced(federation.peer_keys.adverts, 0, forged))
    client = federation.clients[11]
    refuses(client, lambda: client.receive_peer_keys(message), "advertise_keys", "own keys")


def test_keys_of_an_earlier_attempt_are_refused():
    earlier = until(4, "keys", context_changes={"attempt": 1})
    federation = until(4, "keys")
    message = PeerKeys(replaced(federation.peer_keys.adverts, 2, earlier.peer_keys.adverts[2]))
    client = federation.clients[11]
    refuses(client, lambda: client.receive_peer_keys(message), "advertise_keys", "site 13's signature")


def two_worlds(**changed):
    """Site 11 is shown one context and everybody else another; the server relays all keys to all."""
    seen_by_11, seen_by_rest = Federation(4), Federation(4, context_changes=changed)
    first = seen_by_11.clients[11]
    clients = {11: first, **{site: seen_by_rest.clients[site] for site in (12, 13, 14)}}
    message = PeerKeys(tuple(clients[site].advertise_keys() for site in (11, 12, 13, 14)))
    return clients, message


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"model_hash": b"m" * 32}, id="two models"),
        pytest.param({"round": 8}, id="two rounds"),
        pytest.param({"attempt": 3}, id="two attempts"),
        pytest.param({"run_id": "other"}, id="two runs"),
        pytest.param({"policy_hash": b"p" * 32}, id="two policies"),
    ],
)
def test_two_worlds_are_refused_by_everybody(changed):
    clients, message = two_worlds(**changed)
    refuses(clients[11], lambda: clients[11].receive_peer_keys(message), "advertise_keys", "site 12's signature")
    for site in (12, 13, 14):
        client = clients[site]
        refuses(client, lambda: client.receive_peer_keys(message), "advertise_keys", "site 11's signature")  # noqa: B023


def test_two_cohorts_are_refused():
    wide = Federation(5)
    narrow = make_context(wide.policy, wide.roster, cohort=(11, 12, 13, 14))
    victim = wide.client(11, context=narrow)
    adverts = (victim.advertise_keys(), *(wide.clients[site].advertise_keys() for site in (12, 13, 14)))
    message = PeerKeys(adverts)
    refuses(victim, lambda: victim.receive_peer_keys(message), "advertise_keys", "site 12's signature")


def test_a_site_that_is_on_the_roster_but_not_invited_is_refused():
    wide = Federation(5)
    narrow = make_context(wide.policy, wide.roster, cohort=(11, 12, 13, 14))
    clients = {site: wide.client(site, context=narrow) for site in narrow.cohort}
    message = PeerKeys((*(client.advertise_keys() for client in clients.values()), wide.clients[15].advertise_keys()))
    refuses(clients[11], lambda: clients[11].receive_peer_keys(message), "advertise_keys", "not in the phase before")


def test_a_site_listed_twice_with_keys_is_refused():
    federation = until(4, "keys")
    message = PeerKeys((*federation.peer_keys.adverts[:3], federation.peer_keys.adverts[2]))
    client = federation.clients[11]
    refuses(client, lambda: client.receive_peer_keys(message), "advertise_keys", "listed twice")


def test_fewer_keys_than_the_threshold_are_refused():
    federation = until(4, "keys")
    message = PeerKeys(federation.peer_keys.adverts[:2])
    client = federation.clients[11]
    refuses(client, lambda: client.receive_peer_keys(message), "advertise_keys", "2 sites where at least 3")


def test_keys_below_the_sites_own_cohort_floor_are_refused_though_above_the_threshold():
    federation = until(6, "keys", min_cohort=6)
    message = PeerKeys(federation.peer_keys.adverts[:5])
    client = federation.clients[11]
    refuses(client, lambda: client.receive_peer_keys(message), "advertise_keys", "5 sites where at least 6")


def test_a_list_of_keys_without_this_site_is_refused():
    federation = until(4, "keys")
    message = PeerKeys(federation.peer_keys.adverts[1:])
    client = federation.clients[11]
    refuses(client, lambda: client.receive_peer_keys(message), "advertise_keys", "not among")


# -- announcements


def announced(roster=None, policy=None, site_id=11, **changed):
    roster = roster or make_roster(6, revoked=(16,))
    policy = policy or make_policy(6)
    federation = Federation(3)
    context = make_context(policy, roster, **changed)
    return federation.client(site_id, roster=roster, policy=policy, context=context, signing_key=signing_key(site_id))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        pytest.param({"cohort": (11, 12, 13, 99)}, "not on the roster", id="an invented site"),
        pytest.param({"cohort": (11, 12, 13, 16)}, "revoked", id="a revoked site"),
        pytest.param({"cohort": (12, 13, 14)}, "not in the cohort", id="without this site"),
        pytest.param({"cohort": (11, 12)}, "below the floor", id="two sites"),
        pytest.param({"threshold": 3}, "threshold is 3", id="a lowered threshold"),
        pytest.param({"threshold": 1}, "threshold is 1", id="a threshold of one"),
        pytest.param({"colluders": 0}, "colluders", id="no colluders"),
        pytest.param({"roster_hash": bytes(32)}, "roster", id="another roster"),
        pytest.param({"ring_bits": 16}, "ring", id="another ring"),
        pytest.param({"dimension": 1}, "length", id="another length"),
        pytest.param({"graph": "star"}, "graph", id="another graph"),
    ],
)
def test_a_session_cannot_be_made_for_a_context_that_the_sites_own_files_forbid(changed, reason):
    announced()
    with pytest.raises(RemoteProtocolError, match=reason) as caught:
        announced(**changed)
    assert caught.value.step == "announce"


def test_a_server_session_refuses_the_same_contexts():
    roster, policy = make_roster(6, revoked=(16,)), make_policy(6)
    with pytest.raises(RemoteProtocolError, match="threshold"):
        ServerSession(policy=policy, roster=roster, context=make_context(policy, roster, threshold=2))


def test_a_session_is_not_made_with_somebody_elses_key():
    with pytest.raises(LocalProtocolError, match="signing key"):
        Federation(3).client(11, signing_key=signing_key(12))
    with pytest.raises(LocalProtocolError, match="ledger head"):
        Federation(3).client(11, ledger_head=b"")


# -- shares


def test_two_sets_of_keys_are_found_when_shares_arrive():
    federation = until(5, "keys")
    without_15 = PeerKeys(federation.peer_keys.adverts[:4])
    victim, other = federation.clients[11], federation.clients[12]
    shares_11 = victim.receive_peer_keys(without_15)
    shares = {site: federation.clients[site].receive_peer_keys(federation.peer_keys) for site in (12, 13, 14, 15)}
    shares[11] = shares_11
    refuses(other, lambda: other.receive_peer_shares(relay(shares, 12)), "share_keys", "site 11's signature")
    refuses(
        victim,
        lambda: victim.receive_peer_shares(relay({s: shares[s] for s in (11, 12, 13, 14)}, 11)),
        "share_keys",
        "site 12's signature",
    )


def relay(shares, recipient, members=None):
    """What a server that checks nothing would pass on to one site."""
    members = members or sorted(shares)
    items = tuple(
        PeerShare(sender, shares[sender].commitment, share.ciphertext, share.signature)
        for sender in members
        for share in shares[sender].shares
        if share.recipient == recipient
    )
    return PeerShares(items, tuple((site, shares[site].commitment) for site in members))


def test_two_sets_of_sharers_are_found_when_survivors_are_announced():
    federation = until(5, "keys", "shares")
    shares = federation.records["shares"]
    inputs = {}
    for site in (11, 12, 13, 14):
        members = (11, 12, 13, 14) if site == 11 else (11, 12, 13, 14, 15)
        federation.clients[site].receive_peer_shares(relay(shares, site, members))
        inputs[site] = federation.clients[site].masked_input(federation.inputs[site])
    message = survivors_of(inputs)
    victim, other = federation.clients[11], federation.clients[12]
    refuses(victim, lambda: victim.receive_survivors(message), "confirm_survivors", "site 12's signature")
    refuses(other, lambda: other.receive_survivors(message), "confirm_survivors", "site 11's signature")


def survivors_of(inputs):
    return Survivors(tuple(InputDigest(site, item.digest, item.signature) for site, item in sorted(inputs.items())))


def test_fewer_sharers_than_the_threshold_are_refused():
    federation = until(4, "keys", "shares")
    message = relay(federation.records["shares"], 11, (11, 12))
    client = federation.clients[11]
    refuses(client, lambda: client.receive_peer_shares(message), "share_keys", "2 sites where at least 3")


def test_a_sharer_without_keys_is_refused():
    other = until(5, "keys", "shares")
    federation = Federation(4)
    federation.keys()
    federation.shares()
    genuine = federation.peer_shares[11]
    message = PeerShares(
        (*genuine.shares, other.peer_shares[11].shares[-1]),
        (*genuine.commitments, other.peer_shares[11].commitments[-1]),
    )
    client = federation.clients[11]
    refuses(client, lambda: client.receive_peer_shares(message), "share_keys", "not in the phase before")


def test_shares_meant_for_another_site_are_refused():
    federation = until(4, "keys", "shares")
    shares = federation.records["shares"]
    genuine, other = relay(shares, 11), relay(shares, 12)
    swapped = next(item for item in other.shares if item.sender == 13)
    items = tuple(swapped if item.sender == 13 else item for item in genuine.shares)
    client = federation.clients[11]
    message = PeerShares(items, genuine.commitments)
    refuses(client, lambda: client.receive_peer_shares(message), "share_keys", "site 13's signature")


def test_a_commitment_that_differs_from_the_list_is_refused():
    federation = until(4, "keys", "shares")
    genuine = federation.peer_shares[11]
    changed = tuple((site, bytes(32) if site == 13 else commitment) for site, commitment in genuine.commitments)
    client = federation.clients[11]
    message = PeerShares(genuine.shares, changed)
    refuses(client, lambda: client.receive_peer_shares(message), "share_keys", "commitment is not the one")


# -- survivors


def test_two_survivor_sets_reveal_nothing():
    federation = until(5, "keys", "shares", "masked")
    inputs = federation.records["input"]
    views = {site: (11, 12, 13, 14) if site in (11, 12) else (11, 12, 13, 15) for site in (11, 12, 13)}
    signed = [
        federation.clients[site].receive_survivors(survivors_of({s: inputs[s] for s in view}))
        for site, view in views.items()
    ]
    for extra in (14, 15):
        view = (11, 12, 13, extra)
        signed.append(federation.clients[extra].receive_survivors(survivors_of({s: inputs[s] for s in view})))
    message = Confirmations(tuple(item for item in signed if item.sender in (11, 12, 13, 14)))
    for site in (11, 12):
        client = federation.clients[site]
        refuses(client, lambda: client.receive_confirmations(message), "unmask", "site 13's signature")  # noqa: B023
    message = Confirmations(tuple(item for item in signed if item.sender in (11, 12, 13, 15)))
    client = federation.clients[13]
    refuses(client, lambda: client.receive_confirmations(message), "unmask", "site 11's signature")


def test_a_second_survivor_set_is_refused_after_the_first_was_signed():
    federation = until(4, "keys", "shares", "masked", "confirm")
    with pytest.raises(LocalProtocolError):
        federation.clients[11].receive_survivors(
            survivors_of({s: federation.records["input"][s] for s in (11, 12, 13)})
        )


def test_fewer_survivors_than_the_threshold_are_refused():
    federation = until(4, "keys", "shares", "masked")
    message = Survivors(federation.survivors.inputs[:2])
    client = federation.clients[11]
    refuses(client, lambda: client.receive_survivors(message), "confirm_survivors", "2 sites where at least 3")


def test_survivors_without_this_site_are_refused():
    federation = until(4, "keys", "shares", "masked")
    message = Survivors(federation.survivors.inputs[1:])
    client = federation.clients[11]
    refuses(client, lambda: client.receive_survivors(message), "confirm_survivors", "not among")


def test_a_replaced_vector_of_this_site_is_refused():
    federation = until(4, "keys", "shares", "masked")
    forged = dataclasses.replace(federation.survivors.inputs[0], digest=bytes(32))
    client = federation.clients[11]
    message = Survivors(replaced(federation.survivors.inputs, 0, forged))
    refuses(client, lambda: client.receive_survivors(message), "confirm_survivors", "own vector")


# -- unmask


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_confirmations_than_the_threshold_are_refused(count):
    federation = until(4, "keys", "shares", "masked", "confirm")
    message = Confirmations(federation.confirmations.confirmations[:count])
    client = federation.clients[11]
    refuses(client, lambda: client.receive_confirmations(message), "unmask", f"{count} confirmations where 3")


def test_one_signer_repeated_does_not_count_twice():
    federation = until(4, "keys", "shares", "masked", "confirm")
    first = federation.confirmations.confirmations[0]
    client = federation.clients[11]
    refuses(client, lambda: client.receive_confirmations(Confirmations((first,) * 3)), "unmask", "listed twice")


def test_one_signature_under_several_names_does_not_count():
    federation = until(4, "keys", "shares", "masked", "confirm")
    first = federation.confirmations.confirmations[0]
    message = Confirmations(tuple(dataclasses.replace(first, sender=site) for site in (11, 12, 13)))
    client = federation.clients[11]
    refuses(client, lambda: client.receive_confirmations(message), "unmask", "site 12's signature")


def test_a_confirmation_of_a_site_that_did_not_survive_does_not_count():
    federation = until(4, "keys", "shares")
    for site in (11, 12, 13, 14):
        federation.clients[site].receive_peer_shares(federation.peer_shares[site])
        message = federation.clients[site].masked_input(federation.inputs[site])
        if site != 14:
            federation.server.receive_masked_input(message)
    federation.survivors = federation.server.close_masked_inputs()
    signed = [federation.clients[site].receive_survivors(federation.survivors) for site in (11, 12, 13)]
    stranger = dataclasses.replace(signed[2], sender=14)
    client = federation.clients[11]
    message = Confirmations((*signed[:2], stranger))
    refuses(client, lambda: client.receive_confirmations(message), "unmask", "not in the phase before")


def test_a_second_unmask_request_is_refused_whatever_it_says():
    federation = until(4, "keys", "shares", "masked", "confirm", "unmask")
    for client in federation.clients.values():
        assert client.state is ClientState.REVEALED
        assert not client._secrets.held
        with pytest.raises(LocalProtocolError):
            client.receive_confirmations(federation.confirmations)


def test_a_site_gives_one_share_of_one_kind_for_each_site():
    federation = Federation(5)
    federation.keys()
    federation.shares()
    for site in (11, 12, 13, 14):
        federation.clients[site].receive_peer_shares(federation.peer_shares[site])
        federation.server.receive_masked_input(federation.clients[site].masked_input(federation.inputs[site]))
    federation.survivors = federation.server.close_masked_inputs()
    federation.confirm()
    federation.unmask()
    for message in federation.records["unmask"].values():
        assert [share.owner for share in message.shares] == [11, 12, 13, 14, 15]
        assert [share.kind for share in message.shares] == [ShareKind.SELF_MASK] * 4 + [ShareKind.MASK_KEY]


def test_a_second_masked_input_is_refused():
    federation = until(4, "keys", "shares", "masked")
    with pytest.raises(LocalProtocolError):
        federation.clients[11].masked_input(federation.inputs[11])


# -- result


def finished():
    federation = until(4, "keys", "shares", "masked", "confirm")
    return federation, federation.unmask()


def test_a_result_of_other_survivors_is_refused():
    federation, result = finished()
    client = federation.clients[11]
    refuses(client, lambda: client.receive_result(result.total, (11, 12, 13)), "publish", "survivors")


@pytest.mark.parametrize(
    "total",
    [np.full(8, 5 * 2**10, np.uint32), np.zeros(7, np.uint32), np.zeros(8, np.uint64), np.full(8, 2**31, np.uint32)],
)
def test_a_result_that_cannot_be_a_sum_is_refused(total):
    federation, result = finished()
    client = federation.clients[11]
    refuses(client, lambda: client.receive_result(total, result.survivors), "publish", "sum")
