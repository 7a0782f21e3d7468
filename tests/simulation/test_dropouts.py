"""Sites that fall silent at every phase: the sum is exact over the survivors, or the round ends without one.

Whichever it is, no secret of a site is given away twice: everything that the server received is searched for the
shares that were dealt, as messages and as bytes.
"""

import itertools
import random
from dataclasses import fields, is_dataclass

import numpy as np
import pytest

from secure_agg.checks import ClientChecks
from secure_agg.client import ClientSession
from secure_agg.errors import AggregationAborted, RemoteProtocolError
from secure_agg.messages import Confirmations, ShareKind, Survivors, UnmaskShare
from secure_agg.transitions import ClientState, ServerState
from tests.simulation.federation import Federation, Phase, Releases

# The six points at which a site can fall silent on the complete graph, which has no nonces.
POINTS = [Phase.KEYS, Phase.SHARES, Phase.INPUT, Phase.CONFIRMATION, Phase.UNMASK, Phase.NEVER]
STEP_OF = {
    Phase.KEYS: "advertise_keys",
    Phase.NONCE: "reveal_nonces",
    Phase.SHARES: "share_keys",
    Phase.INPUT: "masked_input",
    Phase.CONFIRMATION: "confirm_survivors",
    Phase.UNMASK: "unmask",
}
SAMPLE = {4: 250, 5: 250}  # patterns of four and of five sites in the quick run, drawn by a fixed seed


def patterns_of(n):
    """Every assignment of a point to each of n sites."""
    return list(itertools.product(POINTS, repeat=n))


def sample_of(n):
    return random.Random(20170 + n).sample(patterns_of(n), SAMPLE[n])


def expected_end(n, drops):
    """The step at which a pattern of dropouts ends the round, or None if it does not."""
    threshold = (n + 1) // 2 + 1
    for phase in POINTS[:-1]:
        alive = sum(drops[site] > phase for site in drops)
        floor = max(threshold, 3) if phase <= Phase.INPUT else threshold
        if alive < floor:
            return STEP_OF[phase]
    return None


def leaves_of(value):
    """Every value inside a message, however deep."""
    if isinstance(value, UnmaskShare):
        yield value
    if isinstance(value, dict):
        value = tuple(value.values())
    if is_dataclass(value):
        value = tuple(getattr(value, item.name) for item in fields(value))
    if isinstance(value, tuple | list):
        for item in value:
            yield from leaves_of(item)
    else:
        yield value


def bytes_of(leaves):
    """All byte strings and vectors among some values, apart from each other."""
    parts = (leaf.tobytes() if isinstance(leaf, np.ndarray) else leaf for leaf in leaves)
    return b"|".join(part for part in parts if isinstance(part, bytes))


def kinds_given_away(federation):
    """Which kinds of share of each owner the server has, by (holder, owner): as it was told, and by bytes alone."""
    told, found = {}, {}
    for phase, messages in federation.records.items():
        for holder, message in messages.items():
            for leaf in leaves_of(message):
                if isinstance(leaf, UnmaskShare):
                    assert phase == "unmask"
                    told.setdefault((holder, leaf.owner), set()).add(leaf.kind)
    transcript = bytes_of(leaves_of(federation.records))
    for holder, pairs in federation.held.items():
        for owner, (mask_key_share, self_mask_share) in pairs.items():
            for kind, share in ((ShareKind.MASK_KEY, mask_key_share), (ShareKind.SELF_MASK, self_mask_share)):
                if share in transcript:
                    found.setdefault((holder, owner), set()).add(kind)
    return told, found


def assert_no_secret_is_given_away_twice(federation):
    """No holder has released both kinds for an owner, and of no owner do both kinds exist anywhere."""
    told, found = kinds_given_away(federation)
    assert told == found
    of_owner = {}
    for (_, owner), kinds in found.items():
        of_owner.setdefault(owner, set()).update(kinds)
    assert all(len(kinds) == 1 for kinds in found.values()), "a holder released both kinds"
    assert all(len(kinds) == 1 for kinds in of_owner.values()), "both kinds of an owner are in the transcript"


def check_pattern(n, pattern):
    """Run one pattern and check its end, its sum, and that no site's two secrets are ever both given away."""
    federation = Federation(n, dimension=2)
    drops = dict(zip(federation.context.cohort, pattern, strict=True))
    end = expected_end(n, drops)
    if end is None:
        result = federation.run(drops)
        survivors = tuple(site for site, phase in drops.items() if phase > Phase.INPUT)
        assert result.survivors == survivors
        assert result.dropped == tuple(site for site in drops if site not in survivors)
        assert result.total.tolist() == [sum(2 ** (site - 11) for site in survivors)] * 2
        assert result.complaints == ()
    else:
        with pytest.raises(AggregationAborted) as caught:
            federation.run(drops)
        assert caught.value.step == end
        assert federation.server.state is ServerState.ABORTED
    assert_no_secret_is_given_away_twice(federation)


@pytest.mark.parametrize(("n", "count"), [(3, 216), (4, 1296), (5, 7776)])
def test_the_patterns_are_every_assignment_of_a_point_to_each_site(n, count):
    assert len(patterns_of(n)) == len(set(patterns_of(n))) == count
    assert all(len(set(sample_of(size))) == SAMPLE[size] for size in SAMPLE)


def test_every_pattern_of_three_sites():
    patterns = patterns_of(3)
    assert len(patterns) == 216
    for pattern in patterns:
        check_pattern(3, pattern)


@pytest.mark.parametrize("n", [4, 5])
def test_a_fixed_sample_of_the_patterns_of_four_and_five_sites(n):
    sample = sample_of(n)
    drops = [dict(enumerate(pattern)) for pattern in sample]
    assert {expected_end(n, each) for each in drops} == {None, *STEP_OF.values()} - {"reveal_nonces"}
    for pattern in sample:
        check_pattern(n, pattern)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("n", "count"), [(4, 1296), (5, 7776)])
def test_every_pattern_of_four_and_five_sites(n, count):
    done = 0
    for pattern in patterns_of(n):
        check_pattern(n, pattern)
        done += 1
    assert done == count


@pytest.mark.parametrize("phase", POINTS[:-1])
def test_of_three_sites_every_dropout_ends_the_round(phase):
    with pytest.raises(AggregationAborted):
        Federation(3).run({12: phase})


@pytest.mark.parametrize(
    ("phase", "survivors"),
    [
        (Phase.KEYS, (11, 12, 13)),
        (Phase.SHARES, (11, 12, 13)),
        (Phase.INPUT, (11, 12, 13)),
        (Phase.CONFIRMATION, (11, 12, 13, 14)),
        (Phase.UNMASK, (11, 12, 13, 14)),
    ],
)
def test_of_four_sites_one_may_drop_at_any_phase(phase, survivors):
    result = Federation(4).run({14: phase})
    assert result.survivors == survivors
    assert result.total.tolist() == [sum(2 ** (site - 11) for site in survivors)] * 8


def show_two_survivor_sets(federation, told_less=(13,)):
    """A server that tells some sites that 14, which survived, has dropped, and forwards every signature to everybody.

    Returns the errors with which sites refused to release their shares.
    """
    federation.keys()
    federation.shares()
    federation.masked()
    without = Survivors(federation.survivors.inputs[:3])
    signed = []
    for site in (11, 12, 13):
        view = without if site in told_less else federation.survivors
        signed.append(federation.clients[site].receive_survivors(view))
    return ask_for_shares(federation, signed)


def ask_for_shares(federation, signed):
    refusals = {}
    for site in (11, 12, 13):
        try:
            message = federation.clients[site].receive_confirmations(Confirmations(tuple(signed)))
        except RemoteProtocolError as refused:
            refusals[site] = refused
        else:
            federation.records.setdefault("unmask", {})[site] = message
    return refusals


def test_two_survivor_sets_make_every_site_refuse():
    federation = Federation(4)
    refusals = show_two_survivor_sets(federation)
    assert set(refusals) == {11, 12, 13}
    assert "unmask" not in federation.records
    assert_no_secret_is_given_away_twice(federation)


def test_without_the_check_of_the_signatures_two_survivor_sets_give_both_kinds_away(monkeypatch):
    monkeypatch.setattr(ClientChecks, "confirmations", lambda *_arguments, **_options: None)
    federation = Federation(4)
    assert show_two_survivor_sets(federation) == {}
    with pytest.raises(AssertionError, match="both kinds of an owner"):
        assert_no_secret_is_given_away_twice(federation)


def test_a_site_that_forgets_its_release_gives_both_kinds_away_itself(monkeypatch):
    monkeypatch.setattr(ClientSession, "_erase", lambda _session: None)
    federation = Federation(4)
    assert show_two_survivor_sets(federation, told_less=()) == {}
    first = federation.records.pop("unmask")
    assert_no_secret_is_given_away_twice(federation)
    for site in (11, 12, 13):
        federation.clients[site]._state = ClientState.INPUT_SENT
    without = Survivors(federation.survivors.inputs[:3])
    signed = [federation.clients[site].receive_survivors(without) for site in (11, 12, 13)]
    assert ask_for_shares(federation, signed) == {}
    federation.records["unmask"] = {
        site: type(message)(site, message.shares + first[site].shares)
        for site, message in federation.records["unmask"].items()
    }
    with pytest.raises(AssertionError, match="a holder released both kinds"):
        assert_no_secret_is_given_away_twice(federation)


def test_a_share_hidden_in_another_field_is_found():
    federation = Federation(3)
    federation.run()
    mask_key_share, _ = federation.held[12][11]
    federation.records["keys"][12] = (federation.records["keys"][12], mask_key_share)
    with pytest.raises(AssertionError):
        assert_no_secret_is_given_away_twice(federation)


@pytest.mark.parametrize("closed", ["close_masked_inputs", "close_confirmations", "close_unmask"])
def test_a_vector_that_comes_late_is_refused_and_the_sum_is_exact_without_it(closed):
    federation = Federation(4)
    federation.keys()
    federation.shares()
    late = federation.clients[14]
    late.receive_peer_shares(federation.peer_shares[14])
    message = late.masked_input(federation.inputs[14], Releases())

    def arrive_late():
        with pytest.raises(RemoteProtocolError, match="not of the phase") as caught:
            federation.server.receive_masked_input(message)
        assert caught.value.peer == 14

    federation.masked({14: Phase.INPUT})
    if closed == "close_masked_inputs":
        arrive_late()
    federation.confirm()
    if closed == "close_confirmations":
        arrive_late()
    result = federation.unmask()
    if closed == "close_unmask":
        arrive_late()
    assert result.survivors == (11, 12, 13)
    assert result.total.tolist() == [1 + 2 + 4] * 8
    # The server has the late vector too: its owner's self mask must be in nobody's answer.
    federation.records["input"][14] = message
    federation.held[14] = dict(late._secrets._held)
    assert_no_secret_is_given_away_twice(federation)
    with pytest.raises(RemoteProtocolError, match="not among those"):
        late.receive_survivors(federation.survivors)


@pytest.mark.parametrize("ring_bits", [16, 32, 64])
def test_dropouts_of_every_kind_in_one_round_of_ten(ring_bits):
    drops = {11: Phase.KEYS, 13: Phase.SHARES, 15: Phase.INPUT, 17: Phase.CONFIRMATION}
    federation = Federation(10, ring_bits=ring_bits)
    result = federation.run(drops)
    assert result.survivors == (12, 14, 16, 17, 18, 19, 20)
    assert result.total.tolist() == federation.sum_of(result.survivors).tolist()
    assert_no_secret_is_given_away_twice(federation)
    for site in (12, 14, 16, 18, 19, 20):
        decoded = federation.clients[site].receive_result(result.message)
        assert decoded.weight == 7
        assert (decoded.values * 2**4).tolist() == federation.sum_of(result.survivors).tolist()


def test_more_colluders_need_more_answers():
    federation = Federation(8, colluders=3, min_cohort=6)
    assert federation.context.threshold == 6
    assert federation.run({11: Phase.INPUT, 12: Phase.UNMASK}).survivors == (12, 13, 14, 15, 16, 17, 18)
    with pytest.raises(AggregationAborted):
        Federation(8, colluders=3, min_cohort=6).run({11: Phase.INPUT, 12: Phase.UNMASK, 13: Phase.UNMASK})


def test_negative_inputs_cancel_exactly():
    federation = Federation(3)
    for site, value in zip(federation.context.cohort, (-1000, 999, -5), strict=True):
        federation.inputs[site][:] = value % 2**32
    result = federation.run()
    assert result.total.view("i4").tolist() == [-6] * 8


def sparse_federation(n=104, *, colluders=1):
    """A cohort just too large for the complete graph; eleven of its sites may fall silent."""
    federation = Federation(
        n,
        dimension=4,
        colluders=colluders,
        min_cohort=16,
        seeded=True,
        policy_changes={"dropout_permille": 100, "max_magnitude": 2**20},
    )
    assert federation.context.graph == "harary"
    assert federation.policy.graph(n).key_floor == n - -(-n // 10)
    return federation


def drops_of(*counts, n=104, seed=0):
    """Some sites falling silent at each phase in turn, chosen by a fixed seed."""
    phases = [phase for phase, count in zip(Phase, counts, strict=False) for _ in range(count)]
    return dict(zip(random.Random(seed).sample(range(11, 11 + n), len(phases)), phases, strict=True))


def check_sparse(federation, drops):
    result = federation.run(drops)
    sites = federation.context.cohort
    assert result.survivors == tuple(site for site in sites if drops.get(site, Phase.NEVER) > Phase.INPUT)
    assert result.total.tolist() == federation.sum_of(result.survivors).tolist()
    assert result.complaints == ()
    assert_no_secret_is_given_away_twice(federation)
    for site in sites:
        if drops.get(site, Phase.NEVER) is Phase.NEVER:
            decoded = federation.clients[site].receive_result(result.message)
            assert (decoded.values * 2**4).tolist() == result.total.tolist()
            assert decoded.weight == len(result.survivors)


def test_on_a_sparse_graph_sites_may_drop_at_every_phase():
    check_sparse(sparse_federation(), drops_of(2, 1, 2, 2, 2, 2))


def test_on_a_sparse_graph_too_few_keys_end_the_round():
    with pytest.raises(AggregationAborted) as caught:
        sparse_federation().run(drops_of(12))
    assert caught.value.step == "advertise_keys"


def test_on_a_sparse_graph_too_many_withheld_nonces_end_the_round():
    with pytest.raises(AggregationAborted) as caught:
        sparse_federation().run(drops_of(0, 12))
    assert caught.value.step == "reveal_nonces"


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "counts",
    [
        (11,),
        (0, 11),
        (0, 0, 11),
        (0, 0, 0, 11),
        (0, 0, 0, 0, 11),
        (0, 0, 0, 0, 0, 11),
        (1, 2, 2, 2, 2, 2),
        (3, 2, 2, 2, 1, 1),
    ],
)
@pytest.mark.parametrize("colluders", [1, 5])
def test_on_a_sparse_graph_all_the_stated_dropouts_may_come_at_one_phase_or_at_any(counts, colluders):
    check_sparse(sparse_federation(colluders=colluders), drops_of(*counts, seed=colluders + sum(counts)))


@pytest.mark.long
@pytest.mark.timeout(600)
def test_on_a_sparse_graph_sites_whose_holders_all_drop_refuse_and_the_round_ends_without_a_sum():
    federation = sparse_federation()
    federation.keys()
    federation.nonces()
    federation.shares()
    # Sites side by side in the circle, so many that the one in their middle keeps too few holders.
    parameters = federation.policy.graph(104)
    arc = federation.server._graph._circle[: parameters.degree + 3 - parameters.share_threshold]
    middle = arc[len(arc) // 2]
    assert len(federation.server._graph.neighbours(middle) - set(arc)) < parameters.share_threshold
    drops = dict.fromkeys(arc, Phase.INPUT)
    federation.masked(drops)
    for site in set(federation.server.expected):
        client = federation.clients[site]
        if len(federation.server._graph.neighbours(site) - set(arc)) + 1 < parameters.share_threshold:
            with pytest.raises(RemoteProtocolError, match="holders of this site's shares"):
                client.receive_survivors(federation.survivors)
            drops[site] = Phase.CONFIRMATION
    assert len(drops) > len(arc)
    federation.confirm(drops)
    with pytest.raises(AggregationAborted, match="cannot be recovered"):
        federation.unmask(drops)
    assert_no_secret_is_given_away_twice(federation)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_hundred_sites_with_dropouts_in_one_process():
    phases = [phase for phase in POINTS if phase not in (Phase.NEVER, Phase.UNMASK)]
    drops = {site: phases[site % 4] for site in range(11, 31)}
    federation = Federation(100, colluders=10, min_cohort=56)
    assert federation.context.graph == "complete"
    result = federation.run(drops)
    assert result.total.tolist() == federation.sum_of(result.survivors).tolist()
    assert_no_secret_is_given_away_twice(federation)
