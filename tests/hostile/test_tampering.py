"""Every field of every message, changed on the way: a named refusal at the step that checks it, never a wrong sum."""

from collections import Counter
from dataclasses import dataclass, fields
from unittest.mock import patch

import numpy as np
import pytest

from secure_agg import checks, keys, reconstruction, server
from secure_agg.context import RoundContext
from secure_agg.errors import LocalProtocolError, RemoteProtocolError
from secure_agg.messages import Message
from secure_agg.shamir import recover
from secure_agg.transitions import ClientState
from tests.hostile.rounds import SPARSE_SITES, Consortium, remembered_signatures
from tests.hostile.tampering import TO_SERVER, TO_SITE, Gauntlet, Outcome, Verdict, donor_rounds
from tests.simulation.federation import Releases

LEAST_CHANGES = 5000
CHANGES = {
    "bit flipped",
    "truncated",
    "emptied",
    "extended",
    "malleated",
    "another sender's",
    "a peer's",
    "another attempt's",
    "another round's",
    "another run's",
    "another model's",
    "whole: another attempt's",
    "whole: another round's",
    "whole: another run's",
    "duplicated",
    "of another phase",
    "item missing",
    "item repeated",
    "reordered",
    "oversized",
    "retyped to f8",
    "retyped to O",
    "a row",
    "wrong kind",
    "the other kind",
    "id 0",
    "unknown",
    "revoked",
    "self",
}
FROM_SITES = {"AdvertiseKeys", "ShareKeys", "EncryptedShare", "MaskedInput", "SurvivorConfirmation", "UnmaskShares"}
FROM_SITES |= {"UnmaskShare", "Abort"}
FROM_SERVER = {"RoundContext", "PeerKeys", "AdvertiseKeys", "PeerShares", "PeerShare", "Survivors", "InputDigest"}
FROM_SERVER |= {"Confirmations", "SurvivorConfirmation", "PublishedSum"}
SENT = {
    ("complete", TO_SERVER): FROM_SITES,
    ("complete", TO_SITE): FROM_SERVER,
    ("harary", TO_SERVER): FROM_SITES | {"GraphNonce"},
    ("harary", TO_SITE): FROM_SERVER | {"PeerNonces", "GraphNonce"},
}
CLASSES = {cls.__name__: cls for cls in (*Message.__subclasses__(), RoundContext)}


@dataclass
class Attacked:
    """What came of attacking some rounds, and the sums they ended in after it."""

    outcomes: list[Outcome]
    sums: list[tuple[list[int], list[int], int]]  # the sum, what it should be, complaints

    def take(self, gauntlet):
        result = gauntlet.run()
        expected = gauntlet.federation.sum_of(result.survivors)
        self.outcomes += gauntlet.outcomes
        self.sums.append((result.total.tolist(), expected.tolist(), len(result.complaints)))


def four(**options):
    return Consortium(4, **options)


def five(**options):
    return Consortium(5, **options)


def weighted(**options):
    return Consortium(4, ring_bits=64, policy_changes={"max_weight": 8}, **options)


@pytest.fixture(scope="module")
def complete():
    attacked = Attacked([], [])
    # In the second, a site drops out before its input, so that shares of both kinds are released.
    for make, silent, victims in ((four, {}, (11, 12, 13, 14)), (five, {15: "input"}, (11, 13)), (weighted, {}, (12,))):
        donors = donor_rounds(make, silent=silent)
        for victim in victims:
            attacked.take(Gauntlet(make(), silent, victim=victim, donors=donors, seed=victim))
    return attacked


@pytest.fixture(scope="module")
def sparse(sparse_round):
    attacked = Attacked([], [])
    with remembered_signatures():
        donors = [("another attempt's", sparse_round)]
        federation = Consortium(SPARSE_SITES, context_changes={"attempt": 3})
        attacked.take(Gauntlet(federation, {50: "input"}, victim=40, donors=donors, seed=40))
    return attacked


@pytest.fixture(params=["complete", "sparse"])
def attacked(request):
    return request.getfixturevalue(request.param)


def test_thousands_of_changes_are_tried_and_most_reach_a_session(complete, sparse):
    outcomes = complete.outcomes + sparse.outcomes
    assert len(outcomes) >= 2 * LEAST_CHANGES
    verdicts = Counter(outcome.verdict for outcome in outcomes)
    assert len(outcomes) - verdicts[Verdict.REFUSED_WHEN_MADE] >= LEAST_CHANGES
    assert len(sparse.outcomes) >= LEAST_CHANGES / 5


@pytest.mark.parametrize(("graph", "direction"), sorted(SENT))
def test_every_field_of_every_message_is_changed(complete, sparse, graph, direction):
    outcomes = (complete if graph == "complete" else sparse).outcomes
    changed = {outcome.target for outcome in outcomes if (outcome.graph, outcome.direction) == (graph, direction)}
    missing = {f"{name}.{item.name}" for name in SENT[graph, direction] for item in fields(CLASSES[name])} - changed
    assert not missing


def test_no_message_is_left_out():
    assert set.union(*SENT.values()) == set(CLASSES)


def test_every_kind_of_change_is_tried_in_both_directions(complete):
    for direction in (TO_SERVER, TO_SITE):
        tried = {outcome.how for outcome in complete.outcomes if outcome.direction == direction}
        only_to_server = {"duplicated", "wrong kind", "the other kind"}
        assert CHANGES - tried <= (set() if direction == TO_SERVER else only_to_server)


def test_every_change_is_refused_by_name_or_has_no_effect(attacked):
    assert [outcome for outcome in attacked.outcomes if not outcome.verdict.fine] == []


def test_a_round_under_attack_ends_in_the_exact_sum_and_accuses_nobody(attacked):
    for total, expected, complaints in attacked.sums:
        assert (total, complaints) == (expected, 0)


def test_the_order_of_a_list_of_messages_does_not_matter(attacked):
    verdicts = {
        outcome.target: outcome.verdict
        for outcome in attacked.outcomes
        if outcome.how == "reordered" and outcome.target not in ("PublishedSum.survivors", "RoundContext.cohort")
    }
    assert len(verdicts) >= 6
    assert set(verdicts.values()) == {Verdict.NO_EFFECT}


def test_wrong_shares_are_named_or_end_the_round(complete):
    changed = [item for item in complete.outcomes if item.target == "UnmaskShare.share"]
    verdicts = Counter(outcome.verdict for outcome in changed)
    assert verdicts[Verdict.NAMED] > 50
    assert verdicts[Verdict.NO_SUM] > 50


# -- the same attack on a program with a fault finds it


def attack_once():
    """A short attack; what it found."""
    donors = donor_rounds(four)
    gauntlet = Gauntlet(four(), victim=12, donors=donors, seed=1)
    gauntlet.run()
    return gauntlet.outcomes


def found(outcomes):
    return {(outcome.target, outcome.verdict) for outcome in outcomes if not outcome.verdict.fine}


def test_the_attack_is_the_same_every_time():
    first, second = attack_once(), attack_once()
    assert [(o.target, o.how, o.verdict) for o in first] == [(o.target, o.how, o.verdict) for o in second]


def test_without_signatures_the_attack_gets_wrong_messages_accepted():
    with patch.object(keys, "verify", lambda *_: None), patch.object(server, "verify", lambda *_: None):
        accepted = {target for target, verdict in found(attack_once()) if verdict is Verdict.ACCEPTED}
    wanted = {"AdvertiseKeys.mask_key", "AdvertiseKeys.ledger_head", "InputDigest.digest", "Abort.code"}
    assert wanted | {"SurvivorConfirmation.signature", "RoundContext.attempt"} <= accepted


def test_without_commitments_the_attack_gets_a_wrong_sum():
    def unverified(shares, threshold, opens, **_options):
        return recover(shares, threshold), ()

    with patch.object(reconstruction, "recover_verified", unverified):
        assert ("UnmaskShare.share", Verdict.MISNAMED) in found(attack_once())  # the range of the sum gives it away
        with patch.object(server, "check_sum", lambda *_: None):
            outcomes = attack_once()
    assert ("UnmaskShare.share", Verdict.ACCEPTED) in found(outcomes)
    assert "a wrong sum" in {outcome.detail for outcome in outcomes}


def test_a_foreign_exception_is_noticed():
    class AnotherError(Exception):
        """Not what a failed signature raises."""

    def raising(claims):
        if keys.first_unsigned(claims) is not None:
            raise AnotherError

    with patch.object(server, "SignatureError", AnotherError), patch.object(checks, "first_unsigned", raising):
        noticed = found(attack_once())
    assert {("MaskedInput.signature", Verdict.FOREIGN), ("InputDigest.digest", Verdict.FOREIGN)} <= noticed


def test_a_wrong_step_or_peer_is_noticed():
    with patch.object(server, "RemoteProtocolError", lambda peer, step, why: RemoteProtocolError(peer + 1, step, why)):
        noticed = found(attack_once())
    assert ("MaskedInput.signature", Verdict.MISNAMED) in noticed


def test_a_server_that_remembers_what_it_refuses_is_noticed():
    genuine = server.ServerSession._verify

    def remembers(session, signer, signature, statement, step):
        session._gone.setdefault(0, statement)
        session._public_keys.add(signature)
        genuine(session, signer, signature, statement, step)

    with patch.object(server.ServerSession, "_verify", remembers):
        assert ("AdvertiseKeys.signature", Verdict.HARMED) in found(attack_once())


# -- mistakes of the site's own program


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros(7, np.uint32),
        np.zeros(8, np.uint64),
        np.zeros(8, np.int32),
        np.zeros(8, np.float64),
        np.zeros(8, object),
        np.zeros((1, 8), np.uint32),
        np.full(8, 2**10 + 1, np.uint32),
        np.full(8, 2**31, np.uint32),
        [0] * 8,
    ],
)
def test_a_wrong_input_of_our_own_leaves_the_session_as_it_was(vector):
    federation = four()
    federation.keys()
    federation.shares()
    client, releases = federation.clients[12], Releases()
    client.receive_peer_shares(federation.peer_shares[12])
    with pytest.raises(LocalProtocolError):
        client.masked_input(vector, releases)
    assert client.state is ClientState.READY
    assert releases.marked == []
    federation.server.receive_masked_input(client.masked_input(federation.inputs[12], releases))
    federation.masked()
    federation.confirm()
    assert federation.unmask().total.tolist() == [15] * 8
    assert releases.marked == [("test-run", 7)]
