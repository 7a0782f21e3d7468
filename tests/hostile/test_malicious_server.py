"""Scripts of a server that breaks the protocol to isolate one site's input; each ends at a named check."""

import dataclasses

import numpy as np
import pytest

from secure_agg.context import validate_context
from secure_agg.errors import LocalProtocolError, RemoteProtocolError
from secure_agg.keys import AgreementKey, SigningKey
from secure_agg.messages import (
    Confirmations,
    InputDigest,
    PeerKeys,
    PeerShare,
    PeerShares,
    ShareKind,
    Survivors,
)
from secure_agg.server import ServerSession
from secure_agg.transcript import advertise_statement, round_transcript
from secure_agg.transitions import ClientState
from tests.simulation.federation import Federation, Phase, Releases, make_context, make_policy, make_roster, signing_key


def refuses(client, call, step, reason, peer=None):
    """Expect a client to refuse, die, and never answer again."""
    with pytest.raises(RemoteProtocolError, match=reason) as caught:
        call()
    assert (caught.value.peer, caught.value.step) == (peer, step)
    assert client.state is ClientState.DEAD
    with pytest.raises(LocalProtocolError):
        call()
    assert "<private>" in repr(client._secrets)
    kept = {name: value for name, value in vars(client._secrets).items() if name not in ("_site_id", "_randomness")}
    assert not any(kept.values())  # every secret of the attempt is gone


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
    keys = (AgreementKey.generate().public, AgreementKey.generate().public, bytes(32), b"")
    tag, fields = advertise_statement(federation.context, 12, keys)
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
        pytest.param({"threshold": 3}, "threshold is 3", id="a lowered threshold"),
        pytest.param({"threshold": 1}, "threshold is 1", id="a threshold of one"),
        pytest.param({"colluders": 0}, "colluders", id="no colluders"),
        pytest.param({"roster_hash": bytes(32)}, "roster", id="another roster"),
        pytest.param({"ring_bits": 16}, "ring", id="another ring"),
        pytest.param({"length": 1}, "length", id="another length"),
        pytest.param({"graph": "star"}, "graph", id="another graph"),
        pytest.param({"graph": "harary", "degree": 2}, "graph is harary", id="a sparse graph for a small cohort"),
        pytest.param({"degree": 2}, "degree is 2", id="a lowered degree"),
        pytest.param({"share_threshold": 2}, "share threshold is 2", id="a lowered share threshold"),
    ],
)
def test_a_session_cannot_be_made_for_a_context_that_the_sites_own_files_forbid(changed, reason):
    announced()
    with pytest.raises(RemoteProtocolError, match=reason) as caught:
        announced(**changed)
    assert caught.value.step == "announce"


@pytest.mark.parametrize(("floor", "invited"), [(3, 2), (5, 4)])
def test_a_cohort_one_below_the_floor_is_refused(floor, invited):
    policy = make_policy(6, min_cohort=floor)
    roster = make_roster(6)
    context = dataclasses.replace(make_context(policy, roster), cohort=roster.active_ids[:invited])
    with pytest.raises(RemoteProtocolError, match=f"a cohort of {invited} is below the floor of {floor}") as caught:
        Federation(6).client(11, policy=policy, roster=roster, context=context)
    assert (caught.value.peer, caught.value.step) == (None, "announce")


def test_two_sites_of_one_organisation_are_refused():
    roster = make_roster(4)
    object.__setattr__(roster.entries[2], "organisation", roster.entries[0].organisation)  # as no Roster can be made
    with pytest.raises(
        RemoteProtocolError, match="site 13 of the cohort belongs to an organisation that is in it already"
    ) as caught:
        announced(roster=roster, policy=make_policy(4))
    assert caught.value.step == "announce"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        pytest.param({"round": 6}, "a vector for round 6 or a later one was already released", id="a stale round"),
        pytest.param({"attempt": 1}, "was already joined", id="a stale attempt"),
        pytest.param({"run_id": "other"}, "the run is not", id="another run"),
        pytest.param({"policy_hash": b"p" * 32}, "the policy is not", id="another policy"),
        pytest.param({"model_hash": b"m" * 32}, "model hash is not", id="another model"),
        pytest.param({"threshold": 2}, "threshold is 2", id="a lowered threshold"),
    ],
)
def test_an_announcement_against_what_the_site_remembers_is_refused(changed, reason):
    federation = Federation(4)
    genuine = federation.context

    def answer(context):
        validate_context(
            context,
            federation.policy,
            federation.roster,
            site_id=11,
            run_id=genuine.run_id,
            policy_hash=genuine.policy_hash,
            model_hash=genuine.model_hash,
            last_round=100,
            last_round_released=6,
            last_attempt_seen=(7, 1),
        )

    answer(genuine)
    with pytest.raises(RemoteProtocolError, match=reason) as caught:
        answer(dataclasses.replace(genuine, **changed))
    assert (caught.value.peer, caught.value.step) == (None, "announce")


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
        inputs[site] = federation.clients[site].masked_input(federation.inputs[site], Releases())
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


def two_sets_of_survivors():
    """Sites 11 and 12 are told that all survived, 13 and 14 that 15 did not; 15 is the server's and signs for all."""
    federation = until(5, "keys", "shares", "masked")
    inputs = federation.records["input"]
    everybody, without = survivors_of(inputs), survivors_of({site: inputs[site] for site in (11, 12, 13, 14)})
    signed = {site: federation.clients[site].receive_survivors(everybody) for site in (11, 12, 15)}
    signed |= {site: federation.clients[site].receive_survivors(without) for site in (13, 14)}
    assert federation.context.threshold == 4
    return federation, signed


def test_with_a_colluder_one_of_two_survivor_sets_gets_one_signature_less_than_needed():
    federation, signed = two_sets_of_survivors()
    client = federation.clients[11]
    message = Confirmations((signed[11], signed[12], signed[15]))
    refuses(client, lambda: client.receive_confirmations(message), "unmask", "3 confirmations where 4 are needed")


def test_with_a_colluder_signatures_over_two_survivor_sets_do_not_add_up():
    federation, signed = two_sets_of_survivors()
    client = federation.clients[11]
    message = Confirmations((signed[11], signed[12], signed[13], signed[15]))
    refuses(client, lambda: client.receive_confirmations(message), "unmask", "site 13's signature")
    client = federation.clients[13]
    message = Confirmations((signed[13], signed[14], signed[11], signed[12]))
    refuses(client, lambda: client.receive_confirmations(message), "unmask", "site 11's signature")


def test_a_site_cannot_be_among_the_survivors_twice():
    federation = until(4, "keys", "shares", "masked")
    again = dataclasses.replace(federation.survivors.inputs[1], digest=bytes(32))
    message = Survivors((*federation.survivors.inputs, again))
    client = federation.clients[11]
    refuses(client, lambda: client.receive_survivors(message), "confirm_survivors", "listed twice")


def test_a_survivor_that_never_shared_its_secrets_is_refused():
    federation = Federation(5)
    federation.keys()
    federation.shares({15: Phase.SHARES})
    federation.masked()
    stranger = InputDigest(15, bytes(32), bytes(64))
    message = Survivors((*federation.survivors.inputs, stranger))
    client = federation.clients[11]
    refuses(client, lambda: client.receive_survivors(message), "confirm_survivors", "not in the phase before")


def test_a_vector_that_is_held_back_until_its_site_is_declared_dropped_stays_out_of_the_sum():
    federation = until(4, "keys", "shares")
    for site in (11, 12, 13, 14):
        federation.clients[site].receive_peer_shares(federation.peer_shares[site])
    late = federation.clients[14].masked_input(federation.inputs[14], Releases())
    del federation.clients[14]
    sent = {site: federation.clients[site].masked_input(federation.inputs[site], Releases()) for site in (11, 12, 13)}
    for message in sent.values():
        federation.server.receive_masked_input(message)
    federation.survivors = federation.server.close_masked_inputs()
    federation.confirm()
    for _ in range(2):
        with pytest.raises(RemoteProtocolError, match="not of the phase that is open") as caught:
            federation.server.receive_masked_input(late)
        assert (caught.value.peer, caught.value.step) == (14, "masked_input")
    assert federation.unmask().total.tolist() == [7] * 8
    kinds = {s.kind for m in federation.records["unmask"].values() for s in m.shares if s.owner == 14}
    assert kinds == {ShareKind.MASK_KEY}


def test_a_site_that_was_declared_dropped_does_not_confirm_it():
    federation = until(4, "keys", "shares", "masked")
    message = Survivors(federation.survivors.inputs[:3])
    client = federation.clients[14]
    refuses(client, lambda: client.receive_survivors(message), "confirm_survivors", "not among")


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
        message = federation.clients[site].masked_input(federation.inputs[site], Releases())
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
        assert not client._secrets._held
        with pytest.raises(LocalProtocolError):
            client.receive_confirmations(federation.confirmations)


def test_a_site_gives_one_share_of_one_kind_for_each_site():
    federation = Federation(5)
    federation.keys()
    federation.shares()
    for site in (11, 12, 13, 14):
        federation.clients[site].receive_peer_shares(federation.peer_shares[site])
        federation.server.receive_masked_input(
            federation.clients[site].masked_input(federation.inputs[site], Releases())
        )
    federation.survivors = federation.server.close_masked_inputs()
    federation.confirm()
    federation.unmask()
    for message in federation.records["unmask"].values():
        assert [share.owner for share in message.shares] == [11, 12, 13, 14, 15]
        assert [share.kind for share in message.shares] == [ShareKind.SELF_MASK] * 4 + [ShareKind.MASK_KEY]


def test_a_second_masked_input_is_refused():
    federation = until(4, "keys", "shares", "masked")
    with pytest.raises(LocalProtocolError):
        federation.clients[11].masked_input(federation.inputs[11], Releases())


# -- result


def finished(**options):
    federation = until(4, "keys", "shares", "masked", "confirm", **options)
    return federation, federation.unmask()


def refuses_result(federation, reason, **changed):
    client = federation.clients[11]
    message = dataclasses.replace(federation.result.message, **changed)
    refuses(client, lambda: client.receive_result(message), "publish", reason)


@pytest.mark.parametrize("survivors", [(11, 12, 13), (11, 12, 13, 14, 15), (14, 13, 12, 11), (), (11, 12, 13, 13, 14)])
def test_a_result_of_other_survivors_is_refused(survivors):
    federation, _ = finished()
    refuses_result(federation, "published survivors are not those", survivors=survivors)


@pytest.mark.parametrize(
    "total",
    [
        np.full(8, 4 * 2**10 + 1, np.uint32),
        np.full(8, 2**31, np.uint32),
        np.zeros(7, np.uint32),
        np.zeros((1, 8), np.uint32),
        np.zeros(8, np.uint64),
        np.zeros(8, np.float64),
        np.zeros(8, object),
    ],
)
def test_a_result_that_cannot_be_a_sum_is_refused(total):
    federation, _ = finished()
    refuses_result(federation, "the sum (is larger|has the wrong type)", total=total)


def test_another_sum_or_another_hash_than_that_of_the_round_is_refused():
    federation, result = finished()
    refuses_result(federation, "transcript hash", total=result.total + np.uint32(1))
    federation, _ = finished()
    refuses_result(federation, "transcript hash", transcript_hash=bytes(32))
    federation, _ = finished()
    _, other = finished()
    refuses_result(federation, "transcript hash", transcript_hash=other.transcript_hash)


def test_a_site_that_was_shown_other_confirmations_refuses_the_result():
    federation = until(4, "keys", "shares", "masked", "confirm")
    few = Confirmations(federation.confirmations.confirmations[:3])
    federation.server.receive_unmask_shares(federation.clients[11].receive_confirmations(few))
    federation.unmask()
    refuses_result(federation, "transcript hash")


def test_a_false_sum_within_range_is_taken_but_not_under_the_hash_that_others_saw():
    """What no site can check alone; comparing hashes shows that two sites were told two sums."""
    federation, result = finished()
    false = result.total + np.uint32(1)
    hashed = round_transcript(federation.server._shares_hash, result.inputs, result.confirmations, false)
    told = dataclasses.replace(result.message, total=false, transcript_hash=hashed)
    assert federation.clients[11].receive_result(told).values.tolist() == [1.0] * 8
    assert federation.clients[12].receive_result(result.message).values.tolist() == [15 / 16] * 8
    assert hashed != result.transcript_hash


@pytest.mark.parametrize("weight", [3, 33, 0, 2**32 - 1, 2**31])
def test_a_sum_of_weights_that_the_survivors_cannot_have_is_refused(weight):
    federation, result = finished(policy_changes={"max_weight": 8})
    assert federation.clients[12].receive_result(result.message).weight == 15
    total = result.total.copy()
    total[-1] = weight
    refuses_result(federation, "the sum of the weights is not one", total=total)


def test_a_possible_sum_of_weights_that_was_changed_is_refused_by_the_hash():
    federation, result = finished(policy_changes={"max_weight": 8})
    total = result.total.copy()
    total[-1] += 1
    refuses_result(federation, "transcript hash", total=total)
