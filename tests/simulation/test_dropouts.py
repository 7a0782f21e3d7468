"""Sites that fall silent at every phase: the sum is exact over the survivors, or the round ends without one."""

import itertools
import random

import pytest

from secure_agg.errors import AggregationAborted
from secure_agg.transitions import ServerState
from tests.simulation.federation import Federation, Phase

PHASES = list(Phase)
STEP_OF = {
    Phase.KEYS: "advertise_keys",
    Phase.SHARES: "share_keys",
    Phase.INPUT: "masked_input",
    Phase.CONFIRMATION: "confirm_survivors",
    Phase.UNMASK: "unmask",
}


def expected_end(n, drops):
    """The step at which a pattern of dropouts ends the round, or None if it does not."""
    threshold = (n + 1) // 2 + 1
    for phase in PHASES[:-1]:
        alive = sum(drops[site] > phase for site in drops)
        floor = max(threshold, 3) if phase <= Phase.INPUT else threshold
        if alive < floor:
            return STEP_OF[phase]
    return None


def check_pattern(n, pattern):
    """Run one pattern and check its end, its sum, and that no site's two secrets are ever both given away."""
    federation = Federation(n)
    drops = dict(zip(federation.context.cohort, pattern, strict=True))
    end = expected_end(n, drops)
    if end is None:
        result = federation.run(drops)
        survivors = tuple(site for site, phase in drops.items() if phase > Phase.INPUT)
        assert result.survivors == survivors
        assert result.dropped == tuple(site for site in drops if site not in survivors)
        assert result.total.tolist() == federation.sum_of(survivors).tolist()
        assert result.complaints == ()
    else:
        with pytest.raises(AggregationAborted) as caught:
            federation.run(drops)
        assert caught.value.step == end
        assert federation.server.state is ServerState.ABORTED
    kinds = {}
    for message in federation.records.get("unmask", {}).values():
        for share in message.shares:
            kinds.setdefault(share.owner, set()).add(share.kind)
    assert all(len(seen) == 1 for seen in kinds.values())


@pytest.mark.parametrize("n", [3, 4])
@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("phase", PHASES)
def test_a_single_dropout_ends_as_the_table_says(n, position, phase):
    if position < n:
        check_pattern(n, [phase if i == position else Phase.NEVER for i in range(n)])


@pytest.mark.parametrize("phase", PHASES[:-1])
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


@pytest.mark.parametrize("first", PHASES)
def test_every_pattern_of_three_sites(first):
    for rest in itertools.product(PHASES, repeat=2):
        check_pattern(3, (first, *rest))


@pytest.mark.parametrize(
    ("n", "first", "count"), [(n, first, 25 if n == 4 else 10) for n in (4, 5) for first in PHASES]
)
def test_a_fixed_sample_of_the_patterns_of_four_and_five_sites(n, first, count):
    patterns = list(itertools.product(PHASES, repeat=n - 1))
    for rest in random.Random(20170 + first).sample(patterns, count):
        check_pattern(n, (first, *rest))


@pytest.mark.long
@pytest.mark.parametrize("first", PHASES)
def test_every_pattern_of_four_sites(first):
    for rest in itertools.product(PHASES, repeat=3):
        check_pattern(4, (first, *rest))


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", PHASES)
def test_every_pattern_of_five_sites(first):
    for rest in itertools.product(PHASES, repeat=4):
        check_pattern(5, (first, *rest))


@pytest.mark.parametrize("ring_bits", [16, 32, 64])
def test_dropouts_of_every_kind_in_one_round_of_ten(ring_bits):
    drops = {11: Phase.KEYS, 13: Phase.SHARES, 15: Phase.INPUT, 17: Phase.CONFIRMATION}
    federation = Federation(10, ring_bits=ring_bits)
    result = federation.run(drops)
    assert result.survivors == (12, 14, 16, 17, 18, 19, 20)
    assert result.total.tolist() == federation.sum_of(result.survivors).tolist()
    for site in (12, 14, 16, 18, 19, 20):
        decoded = federation.clients[site].receive_result(result.total, result.survivors)
        assert (decoded * 2**4).tolist() == federation.sum_of(result.survivors).tolist()


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


@pytest.mark.long
def test_a_hundred_sites_with_dropouts_in_one_process():
    drops = {site: Phase(1 + site % 4) for site in range(11, 31)}
    federation = Federation(100, colluders=10, min_cohort=56)
    result = federation.run(drops)
    assert result.total.tolist() == federation.sum_of(result.survivors).tolist()
