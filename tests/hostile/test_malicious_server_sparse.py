"""Scripts of a server that attacks the sparse graph: its seed, its sparseness, and the dropouts that would split it."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from secure_agg import graph
from secure_agg import policy as policy_module
from secure_agg.checks import ClientChecks
from secure_agg.errors import AggregationAborted, LocalProtocolError, RemoteProtocolError
from secure_agg.graph import MAX_ATTEMPTS, MAX_WITHHELD_NONCES, sparse_parameters
from secure_agg.messages import (
    Confirmations,
    GraphNonce,
    PeerKeys,
    PeerNonces,
    PeerShare,
    PeerShares,
    ShareKind,
    Survivors,
)
from secure_agg.transcript import nonce_commitment
from secure_agg.transitions import ClientState
from tests.hostile.rounds import SPARSE_SITES, Consortium, StagedRound, fork, remembered_signatures
from tests.hostile.tampering import attempt
from tests.simulation.federation import Federation, Releases, make_context, make_policy, make_roster

FIRST = 11


def refuses(client, call, step, reason):
    """Expect a site to refuse, blame the server, erase its secrets and fall silent."""
    with pytest.raises(RemoteProtocolError, match=reason) as caught:
        call()
    assert (caught.value.peer, caught.value.step) == (None, step)
    assert client.state is ClientState.DEAD
    kept = {name: value for name, value in vars(client._secrets).items() if name not in ("_site_id", "_randomness")}
    assert not any(kept.values())
    with pytest.raises(LocalProtocolError):
        call()


# -- announcements


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        pytest.param({"graph": "complete", "degree": 100, "share_threshold": 52}, "graph is complete", id="complete"),
        pytest.param({"degree": 14}, "degree is 14 where this site's policy says 16", id="a lowered degree"),
        pytest.param({"degree": 18}, "degree is 18 where this site's policy says 16", id="a raised degree"),
        pytest.param({"share_threshold": 9}, "share threshold is 9 where", id="a lowered share threshold"),
        pytest.param({"threshold": 51}, "threshold is 51 where", id="a lowered threshold"),
        pytest.param({"attempt": MAX_ATTEMPTS + 1}, "at most 16 attempts", id="one throw of the dice too many"),
        pytest.param({"attempt": 2**32 - 1}, "at most 16 attempts", id="the last attempt of all"),
    ],
)
def test_a_sparse_context_that_the_sites_own_policy_forbids_is_refused(sparse_round, changed, reason):
    federation = sparse_round.at("keys")
    with pytest.raises(RemoteProtocolError, match=reason) as caught:
        federation.client(FIRST, context=dataclasses.replace(federation.context, **changed))
    assert (caught.value.peer, caught.value.step) == (None, "announce")


def test_the_last_attempt_allowed_is_joined_and_the_complete_graph_has_no_last_one(sparse_round):
    federation = sparse_round.at("keys")
    federation.client(FIRST, context=dataclasses.replace(federation.context, attempt=MAX_ATTEMPTS)).advertise_keys()
    Federation(4, context_changes={"attempt": MAX_ATTEMPTS + 1}).run()


# -- the seed of the graph


def committed(permille=100):
    """A cohort all of whose keys the sites know, and of which so many may drop out."""
    federation = Consortium(SPARSE_SITES, policy_changes={"dropout_permille": permille})
    federation.keys()
    with remembered_signatures():
        federation.sent = [client.reveal_nonce(federation.peer_keys) for client in federation.clients.values()]
    return federation


def test_as_many_withheld_nonces_as_may_drop_out_are_borne_and_one_more_is_refused():
    federation = committed()
    client = federation.clients[FIRST]
    assert federation.policy.graph(SPARSE_SITES).max_withheld == 11
    most_missing = PeerNonces(tuple(federation.sent[: SPARSE_SITES - 11]))
    fork(client).receive_peer_nonces(most_missing)
    one_more_missing = PeerNonces(most_missing.nonces[:-1])
    reason = "89 sites where at least 90 are needed"
    refuses(client, lambda: client.receive_peer_nonces(one_more_missing), "reveal_nonces", reason)


def test_a_server_with_more_nonces_missing_than_may_drop_out_ends_the_attempt_itself():
    federation = committed()
    for nonce in federation.sent[:89]:
        federation.server.receive_nonce(nonce)
    one_more = fork(federation.server)
    one_more.receive_nonce(federation.sent[89])
    assert len(one_more.close_nonces().nonces) == 90
    with pytest.raises(AggregationAborted, match="89 sites answered where 90 are needed") as caught:
        federation.server.close_nonces()
    assert caught.value.step == "reveal_nonces"


@pytest.fixture
def four_may_be_withheld(monkeypatch):
    """Fewer than may drop out, as in cohorts of which more than 64 may."""
    monkeypatch.setattr(graph, "MAX_WITHHELD_NONCES", 4)
    sparse_parameters.cache_clear()
    yield
    sparse_parameters.cache_clear()


@pytest.mark.usefixtures("four_may_be_withheld")
def test_where_fewer_may_be_withheld_than_may_drop_out_one_more_is_refused():
    federation = committed()
    client = federation.clients[FIRST]
    most_missing = PeerNonces(tuple(federation.sent[: SPARSE_SITES - 4]))
    fork(client).receive_peer_nonces(most_missing)
    one_more_missing = PeerNonces(most_missing.nonces[:-1])
    reason = "more than 4 nonces are missing"
    refuses(client, lambda: client.receive_peer_nonces(one_more_missing), "reveal_nonces", reason)


@pytest.mark.usefixtures("four_may_be_withheld")
def test_where_fewer_may_be_withheld_than_may_drop_out_the_server_ends_the_attempt_itself():
    federation = committed()
    for nonce in federation.sent[:96]:
        federation.server.receive_nonce(nonce)
    one_more = fork(federation.server)
    one_more.receive_nonce(federation.sent[96])
    assert len(one_more.close_nonces().nonces) == 97
    with pytest.raises(AggregationAborted, match="96 sites answered where 97 are needed") as caught:
        federation.server.close_nonces()
    assert caught.value.step == "reveal_nonces"


def test_of_1300_sites_of_which_65_may_drop_out_a_site_lets_64_withhold_their_nonces():
    n, own = 1300, bytes(32)
    policy, roster = make_policy(n, dropout_permille=50), make_roster(n)
    context = make_context(policy, roster)
    assert policy.graph(n).key_floor == n - MAX_WITHHELD_NONCES - 1
    checks = ClientChecks(policy, roster, context, FIRST)
    nonces = [GraphNonce(site_id, own) for site_id in context.cohort]
    commitments = {site_id: nonce_commitment(context, site_id, own) for site_id in context.cohort}
    adverts: Any = {site_id: SimpleNamespace(nonce_commitment=value) for site_id, value in commitments.items()}
    checks.peer_nonces(nonces[: n - 64], adverts, own)
    with pytest.raises(RemoteProtocolError, match="more than 64 nonces are missing"):
        checks.peer_nonces(nonces[: n - 65], adverts, own)


def test_fewer_nonces_than_the_graph_was_chosen_for_are_refused(sparse_round):
    client = sparse_round.at("shares").clients[FIRST]
    nonces = sparse_round.received["shares", FIRST].nonces
    refuses(
        client,
        lambda: client.receive_peer_nonces(PeerNonces(nonces[:94])),
        "reveal_nonces",
        "94 sites where at least 95 are needed",
    )


@pytest.mark.parametrize(
    ("position", "new", "reason"),
    [
        (0, {"nonce": bytes(32)}, "own nonce was changed"),
        (5, {"nonce": bytes(32)}, "site 16's nonce does not open its commitment"),
        (5, {"sender": 17}, "listed twice"),
        (5, {"sender": 5000}, "not in the phase before"),
    ],
)
def test_a_changed_nonce_is_refused(sparse_round, position, new, reason):
    client = sparse_round.at("shares").clients[FIRST]
    nonces = list(sparse_round.received["shares", FIRST].nonces)
    nonces[position] = dataclasses.replace(nonces[position], **new)
    refuses(client, lambda: client.receive_peer_nonces(PeerNonces(tuple(nonces))), "reveal_nonces", reason)


def test_a_nonce_of_another_attempt_is_refused(sparse_round):
    earlier = Consortium(SPARSE_SITES, context_changes={"attempt": 1})
    with remembered_signatures():
        earlier.keys()
        foreign = earlier.clients[16].reveal_nonce(earlier.peer_keys)
    client = sparse_round.at("shares").clients[FIRST]
    nonces = list(sparse_round.received["shares", FIRST].nonces)
    nonces[5] = foreign
    refuses(client, lambda: client.receive_peer_nonces(PeerNonces(tuple(nonces))), "reveal_nonces", "site 16's nonce")


def test_no_nonce_is_revealed_before_all_keys_are_fixed(sparse_round):
    federation = sparse_round.at("nonce")
    peer_keys: PeerKeys = sparse_round.received["nonce", FIRST]
    fresh = sparse_round.at("keys").clients[FIRST]
    with pytest.raises(LocalProtocolError):
        fresh.reveal_nonce(peer_keys)
    assert fresh.state is ClientState.START_SPARSE
    client = federation.clients[FIRST]
    with pytest.raises(LocalProtocolError):
        client.receive_peer_nonces(sparse_round.received["shares", FIRST])
    client.reveal_nonce(peer_keys)
    for others in (peer_keys, PeerKeys(peer_keys.adverts[:-1])):  # nor can the keys be changed after it
        with pytest.raises(LocalProtocolError):
            client.reveal_nonce(others)
    assert client.state is ClientState.NONCE_REVEALED


def test_a_server_takes_no_nonce_before_it_has_closed_the_keys(sparse_round):
    federation = sparse_round.at("keys")
    with pytest.raises(RemoteProtocolError, match="not of the phase that is open") as caught:
        federation.server.receive_nonce(sparse_round.sent["nonce", FIRST])
    assert (caught.value.peer, caught.value.step) == (FIRST, "reveal_nonces")


def test_the_nonces_cannot_be_left_out(sparse_round):
    client = sparse_round.at("nonce").clients[FIRST]
    with pytest.raises(LocalProtocolError):
        client.receive_peer_keys(sparse_round.received["nonce", FIRST])
    assert client.state is ClientState.KEYS_COMMITTED
    small = Federation(4)
    small.keys()
    with pytest.raises(LocalProtocolError):
        small.clients[FIRST].reveal_nonce(small.peer_keys)


# -- two graphs


@pytest.fixture(scope="module")
def two_graphs(sparse_round):
    """Site 11 is sent all nonces and draws one graph; everybody else is sent all but the last and draws another."""
    federation = sparse_round.at("shares")
    nonces = sparse_round.received["shares", FIRST]
    fewer = PeerNonces(nonces.nonces[:-1])
    shares = {FIRST: federation.clients[FIRST].receive_peer_nonces(nonces)}
    for site in federation.context.cohort[1:-1]:
        shares[site] = federation.clients[site].receive_peer_nonces(fewer)
    return federation, shares


def relayed(shares, recipient, senders):
    """Shares meant for somebody, from these senders; where one made none for the recipient, one made for another."""
    items = []
    for sender in senders:
        made = {share.recipient: share for share in shares[sender].shares}
        share = made.get(recipient, shares[sender].shares[0])
        items.append(PeerShare(sender, shares[sender].commitment, share.ciphertext, share.signature))
    return PeerShares(tuple(items), tuple((site, shares[site].commitment) for site in sorted(shares)))


def test_two_lists_of_nonces_are_found_when_shares_arrive(two_graphs):
    federation, shares = two_graphs
    victim = federation.clients[FIRST]
    reaches = sorted(victim.neighbours & set(shares))
    meant = [site for site in shares if any(share.recipient == FIRST for share in shares[site].shares)]
    assert set(reaches) != set(meant)
    forged = fork(victim)
    message = relayed(shares, FIRST, reaches)
    refuses(forged, lambda: forged.receive_peer_shares(message), "share_keys", "signature is not over what")
    genuine = relayed(shares, FIRST, sorted(set(meant) & set(reaches)))
    missing = fork(victim)
    refuses(missing, lambda: missing.receive_peer_shares(genuine), "share_keys", "not one from each neighbour")
    left_out = set(reaches) - set(meant)
    listed = tuple(item for item in genuine.commitments if item[0] not in left_out)
    dropped = PeerShares(genuine.shares, listed)
    alone = fork(victim)
    refuses(alone, lambda: alone.receive_peer_shares(dropped), "share_keys", "holders of this site's shares")


def test_the_rest_finds_the_two_graphs_too(two_graphs):
    federation, shares = two_graphs
    site = next(site for site in shares if FIRST in federation.clients[site].neighbours)
    client = fork(federation.clients[site])
    message = relayed(shares, site, sorted(client.neighbours))
    refuses(client, lambda: client.receive_peer_shares(message), "share_keys", "site 11's signature")


def test_two_lists_of_commitments_are_found_when_survivors_are_announced(sparse_round):
    """A site cannot check the commitment of a site that is not its neighbour; T2 binds it to what the others saw."""
    federation = sparse_round.at("input")
    victim = federation.clients[FIRST]
    message = sparse_round.received["input", FIRST]
    stranger = next(site for site in federation.context.cohort if site not in victim.neighbours | {FIRST})
    listed = tuple((site, bytes(32) if site == stranger else digest) for site, digest in message.commitments)
    victim.receive_peer_shares(dataclasses.replace(message, commitments=listed))
    sent = victim.masked_input(federation.inputs[FIRST], Releases())
    with pytest.raises(RemoteProtocolError, match="does not verify") as caught:
        federation.server.receive_masked_input(sent)
    assert caught.value.peer == FIRST
    honest = sparse_round.received["confirmation", FIRST]
    own = dataclasses.replace(honest.inputs[0], digest=sent.digest, signature=sent.signature)
    shown = Survivors((own, *honest.inputs[1:]))
    refuses(victim, lambda: victim.receive_survivors(shown), "confirm_survivors", "site 12's signature")
    other = sparse_round.at("confirmation").clients[12]
    refuses(other, lambda: other.receive_survivors(shown), "confirm_survivors", "site 11's signature")


# -- dropouts that the server chooses


def survivors_without(staged, dropped):
    message = staged.received["confirmation", FIRST]
    return Survivors(tuple(item for item in message.inputs if item.sender not in dropped))


def test_a_site_of_which_too_few_neighbours_survive_refuses(sparse_round):
    federation = sparse_round.at("confirmation")
    neighbours = sorted(federation.clients[FIRST].neighbours)
    assert (len(neighbours), federation.context.share_threshold) == (16, 11)
    with remembered_signatures():
        fork(federation.clients[FIRST]).receive_survivors(survivors_without(sparse_round, neighbours[:6]))
        client = federation.clients[FIRST]
        message = survivors_without(sparse_round, neighbours[:7])
        reason = "10 holders of this site's shares where 11 are needed"
        refuses(client, lambda: client.receive_survivors(message), "confirm_survivors", reason)


def test_a_site_of_which_too_few_neighbours_shared_their_secrets_refuses(sparse_round):
    federation = sparse_round.at("input")
    neighbours = sorted(federation.clients[FIRST].neighbours)
    message = sparse_round.received["input", FIRST]

    def without(dropped):
        shares = tuple(share for share in message.shares if share.sender not in dropped)
        return PeerShares(shares, tuple(item for item in message.commitments if item[0] not in dropped))

    fork(federation.clients[FIRST]).receive_peer_shares(without(neighbours[:6]))
    client = federation.clients[FIRST]
    reason = "10 holders of this site's shares where 11 are needed"
    refuses(client, lambda: client.receive_peer_shares(without(neighbours[:7])), "share_keys", reason)


@dataclasses.dataclass
class Seen:
    """What a server and the sites that collude with it hold after showing everybody one set of survivors.

    Args:
        federation: the round.
        holders: who gave a share, by the kind of share and its owner.
        refused: the sites that refused the survivors.
    """

    federation: Any
    holders: dict[tuple[ShareKind, int], set[int]]
    refused: list[int]
    messages: dict[int, Any]

    def sums_that_open(self, colluders=frozenset()):
        """The sets of honest sites, none part of another, whose sum of inputs can be computed.

        A set opens if every self mask in it is known and no unknown mask leads out of it: neither end's key is known.
        """
        needed, cohort = self.federation.context.share_threshold, self.federation.context.cohort
        honest = [site for site in cohort if site not in colluders]
        selves = {site for site in honest if len(self.holders[ShareKind.SELF_MASK, site]) >= needed}
        keyed = {site for site in honest if len(self.holders[ShareKind.MASK_KEY, site]) >= needed}
        found, seen = [], set()
        for start in honest:
            reached, frontier = set(), {start} - seen
            while frontier:
                site = frontier.pop()
                reached.add(site)
                if site not in keyed:
                    linked = self.federation.server._graph.neighbours(site) - keyed - colluders
                    frontier |= linked - reached
            seen |= reached
            if reached and reached <= selves:
                found.append(tuple(sorted(reached)))
        return found

    def give_all(self, colluders, held):
        """Add both shares of everything that some sites hold."""
        holders = defaultdict(set, {key: set(value) for key, value in self.holders.items()})
        for colluder in colluders:
            for owner in held[colluder]:
                holders[ShareKind.SELF_MASK, owner].add(colluder)
                holders[ShareKind.MASK_KEY, owner].add(colluder)
        return dataclasses.replace(self, holders=holders)


def show(staged, dropped):
    """Declare some sites dropped and collect every share that honest sites then release."""
    federation = staged.at("confirmation")
    message, signed, refused = survivors_without(staged, dropped), [], []
    with remembered_signatures():
        for site, client in federation.clients.items():
            answer, raised = attempt(client.receive_survivors, message)
            if raised:
                assert isinstance(raised, RemoteProtocolError)
                assert "not among those" in raised.reason or "holders of this site's shares" in raised.reason
                refused.append(site)
            else:
                signed.append(answer)
        assert len(signed) >= federation.context.threshold
        released = {}
        for confirmation in signed:
            client = federation.clients[confirmation.sender]
            released[confirmation.sender] = client.receive_confirmations(Confirmations(tuple(signed)))
    holders = defaultdict(set)
    for holder, shares in released.items():
        for share in shares.shares:
            holders[share.kind, share.owner].add(holder)
    return Seen(federation, holders, refused, released)


def arcs(staged, gap):
    """Two stretches of the circle and the gaps of so many sites between them."""
    circle = staged.copies["confirmation"].server._graph._circle
    first, rest = circle[gap : gap + 30], circle[2 * gap + 30 :]
    return first, rest, circle[:gap] + circle[gap + 30 : 2 * gap + 30]


def open_sum(staged, seen, members, dropped):
    """What the server's own code makes of the vectors of some sites, with every share that was released."""
    server = fork(seen.federation.server)
    server._inputs = {site: server._inputs[site] for site in members}
    server._shares = {site: server._shares[site] for site in (*members, *dropped)}
    server._unmask = seen.messages
    server._total = np.zeros_like(server._total)
    for site in members:
        server._total += staged.sent["input", site].vector
    server._take_masks_out()
    return server._total


def test_after_an_honest_round_one_sum_opens_and_no_other(sparse_round):
    assert show(sparse_round, ()).sums_that_open() == [sparse_round.federation.context.cohort]


@pytest.mark.parametrize("gap", [8, 9])
def test_cutting_the_circle_in_two_places_opens_nothing(sparse_round, gap):
    first, rest, dropped = arcs(sparse_round, gap)
    seen = show(sparse_round, dropped)
    edges = {*first[:2], *first[-2:], *rest[:2], *rest[-2:]}
    assert set(seen.refused) == edges | set(dropped)
    assert seen.sums_that_open() == []
    for members in (first, rest, first + rest):
        with pytest.raises(AggregationAborted, match="cannot be recovered"):
            open_sum(sparse_round, seen, members, dropped)
    site = edges.pop()
    notice = fork(seen.federation.clients[site]).abort("check-failed")
    assert (notice.step, notice.accused) == ("confirm_survivors", 0)


def test_cutting_the_circle_opens_nothing_with_the_help_of_any_one_site(sparse_round):
    _, _, dropped = arcs(sparse_round, 8)
    seen = show(sparse_round, dropped)
    before = sparse_round.at("confirmation")
    held = {site: tuple(client._secrets._held) for site, client in before.clients.items()}
    for colluder in before.context.cohort:
        helped = seen.give_all({colluder}, held)
        assert helped.sums_that_open(frozenset({colluder})) == []


@pytest.mark.parametrize("side_by_side", [1, 3, 6])
def test_as_many_dropouts_as_a_site_can_bear_leave_one_sum(sparse_round, side_by_side):
    dropped = sparse_round.copies["confirmation"].server._graph._circle[:side_by_side]
    survivors = tuple(site for site in sparse_round.federation.context.cohort if site not in dropped)
    assert show(sparse_round, dropped).sums_that_open() == [survivors]


def test_one_dropout_more_side_by_side_opens_nothing(sparse_round):
    seen = show(sparse_round, sparse_round.copies["confirmation"].server._graph._circle[:7])
    assert len(seen.refused) == 7 + 2 * 2
    assert seen.sums_that_open() == []


@contextmanager
def lowered_share_threshold(shares):
    def lowered(*arguments):
        return dataclasses.replace(sparse_parameters(*arguments), share_threshold=shares)

    with patch.object(policy_module, "sparse_parameters", lowered):
        yield


def test_with_a_share_threshold_that_one_side_of_a_site_reaches_the_same_cut_opens_the_arcs_sum():
    with lowered_share_threshold(9), remembered_signatures():
        staged = StagedRound(Consortium(SPARSE_SITES))
        staged.run()
        first, rest, dropped = arcs(staged, 8)
        seen = show(staged, dropped)
        assert set(seen.refused) == set(dropped)
        assert sorted(seen.sums_that_open()) == sorted([tuple(sorted(first)), tuple(sorted(rest))])
        opened = open_sum(staged, seen, first, dropped)
    assert opened.tolist() == staged.federation.sum_of(tuple(first)).tolist()
    assert opened.tolist() != staged.federation.sum_of(tuple(first + rest)).tolist()
