"""The graph: its order is the documented one, its numbers are re-derived, and no declared dropouts split its sum."""

import hashlib
import hmac
import random
from collections import Counter
from fractions import Fraction
from functools import cache
from itertools import permutations, product

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_agg import graph
from secure_agg.errors import PolicyError
from secure_agg.graph import COMPLETE_GRAPH_LIMIT_SITES, Graph, GraphParameters, shuffled, sparse_parameters
from tests.simulation.federation import make_policy


def seed_of(label):
    return hashlib.sha256(f"seed {label}".encode()).digest()


def harary(degree, members, seed=bytes(32)):
    return Graph(GraphParameters(True, degree, degree // 2 + 2, 1), members, seed)


# --- the order of the circle ---


def keystream_words(seed, word_bytes):
    """The documented words: HKDF by HMAC, then AES of the counters 0, 1, 2, ... one block at a time."""
    label = b"fedmvp/graph-order/v1"
    extracted = hmac.digest(bytes(32), seed, "sha256")
    key = hmac.digest(extracted, len(label).to_bytes(4, "big") + label + b"\1", "sha256")
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    pending, counter = b"", 0
    while True:
        if len(pending) < word_bytes:
            pending += block.update(counter.to_bytes(16, "big"))
            counter += 1
        yield int.from_bytes(pending[:word_bytes], "little")
        pending = pending[word_bytes:]


def shuffled_by_the_book(ordered, seed, word_bytes=8):
    """Fisher and Yates from the last place down, each draw without a bias; also how many words were thrown away."""
    circle, thrown = list(ordered), 0
    words = keystream_words(seed, word_bytes)
    for place in reversed(range(1, len(circle))):
        choices = place + 1
        fair = 256**word_bytes // choices * choices
        while (word := next(words)) >= fair:
            thrown += 1
        circle[place], circle[word % choices] = circle[word % choices], circle[place]
    return circle, thrown


@pytest.mark.parametrize("count", [1, 2, 3, 10, 101, 1000])
def test_the_order_is_the_documented_shuffle(count):
    ordered = list(range(7, 7 + 3 * count, 3))
    assert shuffled(ordered, seed_of(count)) == shuffled_by_the_book(ordered, seed_of(count))[0]
    assert ordered == list(range(7, 7 + 3 * count, 3))


def test_the_order_of_a_known_seed_is_frozen():
    assert shuffled(list(range(1, 13)), bytes(range(32))) == [11, 2, 10, 7, 1, 5, 3, 9, 12, 6, 8, 4]


def test_words_that_would_favour_a_place_are_thrown_away(monkeypatch):
    monkeypatch.setattr(graph, "_WORD_BYTES", 1)
    monkeypatch.setattr(graph, "_WORDS", 256)
    thrown_at_all = 0
    for label in range(20):
        wanted, thrown = shuffled_by_the_book(range(100), seed_of(label), word_bytes=1)
        assert shuffled(list(range(100)), seed_of(label)) == wanted
        thrown_at_all += thrown
    assert thrown_at_all > 100


def chi_square_of_orders(shuffle):
    """Chi-square of the 24 orders of four sites, 4,800 seeds."""
    counts = Counter(tuple(shuffle([1, 2, 3, 4], seed_of(label))) for label in range(4800))
    return sum((counts[order] - 200) ** 2 / 200 for order in permutations([1, 2, 3, 4]))


def test_every_order_is_equally_likely():
    assert chi_square_of_orders(shuffled) < 58.6  # 23 degrees of freedom, p = 6e-5


def test_a_shuffle_with_a_bias_fails_the_same_check():
    def exchange_any_two(ordered, seed):
        circle, words = list(ordered), keystream_words(seed, 8)
        for place in range(len(circle)):
            chosen = next(words) % len(circle)
            circle[place], circle[chosen] = circle[chosen], circle[place]
        return circle

    assert chi_square_of_orders(exchange_any_two) > 58.6


# --- the structure ---


@given(st.sets(st.integers(1, 500), min_size=1, max_size=40), st.integers(1, 10), st.binary(min_size=32, max_size=32))
def test_each_site_is_paired_with_the_nearest_on_either_side_of_the_circle(members, half, seed):
    drawn = harary(2 * half, members, seed)
    circle = shuffled(sorted(members), seed)
    assert drawn.members == tuple(sorted(members))
    for place, site_id in enumerate(circle):
        neighbours = drawn.neighbours(site_id)
        distance = {other: min((place - i) % len(circle), (i - place) % len(circle)) for i, other in enumerate(circle)}
        assert neighbours == {other for other in circle if 1 <= distance[other] <= half}
        assert len(neighbours) == min(2 * half, len(members) - 1)
        assert all(site_id in drawn.neighbours(other) for other in neighbours)


@given(st.sets(st.integers(1, 500), min_size=1, max_size=20), st.binary(min_size=32, max_size=32))
def test_on_the_complete_graph_everybody_is_paired_with_everybody(members, seed):
    drawn = Graph(GraphParameters(False, len(members) - 1, 1, 1), members, seed)
    assert all(drawn.neighbours(site_id) == members - {site_id} for site_id in members)
    assert drawn.members == tuple(sorted(members))


def test_a_graph_depends_on_its_members_and_seed_and_on_nothing_else():
    members = list(range(11, 71))
    drawn = harary(8, members, seed_of(1))
    for order in (members[::-1], set(members), dict.fromkeys(members)):
        again = harary(8, order, seed_of(1))
        assert all(drawn.neighbours(site_id) == again.neighbours(site_id) for site_id in members)
    other_seed = harary(8, members, seed_of(2))
    assert sum(drawn.neighbours(site_id) == other_seed.neighbours(site_id) for site_id in members) < 3


def test_a_graph_is_connected_whatever_its_order():
    members = set(range(1, 31))
    for label in range(10):
        assert len(components(harary(2, members, seed_of(label)), members)) == 1


# --- degree and share threshold, derived a second time ---


@cache
def more_than(population, marked, draws):
    """P[more than a marked among the draws] for every a, by drawing one site after the other, exactly."""
    state = [Fraction(1)]  # probability of each number of marked sites so far
    for drawn in range(draws):
        left = population - drawn
        following = [Fraction(0)] * (len(state) + 1)
        for count, probability in enumerate(state):
            if probability:
                following[count + 1] += probability * max(marked - count, 0) / left
                following[count] += probability * (left - max(marked - count, 0)) / left
        state = following
    tails, tail = [], Fraction(0)
    for probability in reversed(state):
        tails.append(tail)
        tail += probability
    assert tail == 1
    return tails[::-1]


def graphs_to_choose_from(n, dropped):
    """Graphs a server may draw from: 16 attempts, in each as many nonces held back as sites may drop, up to 64."""
    total, subsets = 0, 1
    for withheld in range(min(dropped, 64) + 1):
        total += subsets
        subsets = subsets * (n - withheld) // (withheld + 1)
    return 16 * total


def power_of_two_at_least(value):
    power = 1
    while power < value:
        power *= 2
    return power


def derived(n, colluders, dropped, half):
    """The share threshold a half degree needs, or None if it cannot serve: all by exact fractions."""
    others = n - dropped - 1
    sides = power_of_two_at_least(2 * n * graphs_to_choose_from(n, dropped))
    beside = next(a for a, p in enumerate(more_than(others, colluders, half)) if p * sides <= Fraction(1, 2**40))
    threshold = half + beside + 2
    spare = 2 * half + 1 - threshold  # neighbours a site may lose
    if spare < 0:
        return None
    lost_too_many = more_than(others, dropped, 2 * half)[spare]
    return threshold if lost_too_many * power_of_two_at_least(n) <= Fraction(1, 2**20) else None


CASES = [
    (101, 1, 6),
    (101, 5, 6),
    (101, 2, 0),
    (110, 20, 11),
    (150, 7, 8),
    (200, 10, 10),
    (300, 30, 30),
    (500, 25, 25),
    (1000, 10, 50),
    (1000, 20, 100),
]


@pytest.mark.parametrize(("n", "colluders", "dropped"), CASES)
def test_degree_and_threshold_are_the_smallest_that_exact_arithmetic_allows(n, colluders, dropped):
    found = sparse_parameters(n, colluders, dropped)
    assert found.sparse
    assert found.degree % 2 == 0
    half = found.degree // 2
    assert derived(n, colluders, dropped, half) == found.share_threshold
    if n <= 300:
        assert all(derived(n, colluders, dropped, smaller) is None for smaller in range(1, half))
    else:
        assert derived(n, colluders, dropped, half - 1) is None
    assert found.key_floor == n - dropped
    assert found.max_withheld == min(dropped, 64)


@pytest.mark.parametrize(("n", "colluders", "dropped"), CASES)
def test_an_attempt_can_split_with_at_most_2_to_the_minus_40_in_a_graph_of_any_allowed_size(n, colluders, dropped):
    found = sparse_parameters(n, colluders, dropped)
    half = found.degree // 2
    beside = found.share_threshold - half - 2
    for members in {found.key_floor, (found.key_floor + n) // 2, n}:
        one_side = more_than(members - 1, colluders, half)[beside]
        assert 2 * n * graphs_to_choose_from(n, dropped) * one_side <= Fraction(1, 2**40)


@pytest.mark.parametrize(("n", "colluders", "dropped"), CASES)
def test_the_stated_dropouts_end_an_attempt_with_at_most_2_to_the_minus_20(n, colluders, dropped):
    found = sparse_parameters(n, colluders, dropped)
    spare = found.degree + 1 - found.share_threshold
    for early in {0, dropped // 2, dropped}:  # some fall silent before the graph is drawn, the others after
        too_many = more_than(n - early - 1, dropped - early, found.degree)[spare]
        assert n * too_many <= Fraction(1, 2**20)


@pytest.mark.parametrize(("n", "colluders", "dropped"), CASES)
def test_no_site_can_have_both_its_secrets_revealed(n, colluders, dropped):
    found = sparse_parameters(n, colluders, dropped)
    holders, half = found.degree + 1, found.degree // 2
    colluding_holders = 2 * (found.share_threshold - half - 2)
    # an honest holder gives a share of one secret, a colluder of both
    assert 2 * found.share_threshold > holders + colluding_holders
    assert 2 * half <= holders + colluding_holders  # a threshold of half the degree would not exclude it
    complete = make_policy(100, colluders=33, min_cohort=100).graph(100)
    assert 2 * complete.share_threshold > 100 + 33


def test_more_colluders_dropouts_or_security_never_need_fewer_neighbours(monkeypatch):
    def degrees(cases):
        return [sparse_parameters(*case).degree for case in cases]

    for cases in (
        [(300, colluders, 15) for colluders in range(1, 31)],
        [(300, 15, dropped) for dropped in range(31)],
    ):
        found = degrees(cases)
        assert found == sorted(found)
        assert found[0] < found[-1]
    by_bits = []
    for bits in (1, 20, 40, 60):
        monkeypatch.setattr(graph, "SECURITY_BITS", bits)
        sparse_parameters.cache_clear()
        by_bits.append(sparse_parameters(1000, 100, 50).degree)
    sparse_parameters.cache_clear()
    assert by_bits == sorted(set(by_bits))


def test_large_cohorts_need_few_neighbours():
    assert sparse_parameters(10_000, 100, 500).degree < 300


@pytest.mark.parametrize(
    ("n", "colluders", "dropped"), [(101, 97, 6), (101, 40, 20), (101, 1, 51), (101, 1, 100), (3, 1, 0), (101, 97, 51)]
)
def test_where_no_sparse_graph_serves_there_is_none(n, colluders, dropped):
    assert sparse_parameters(n, colluders, dropped) is None


def test_a_cohort_is_on_the_complete_graph_up_to_100_sites_and_where_no_sparse_one_serves():
    assert COMPLETE_GRAPH_LIMIT_SITES == 100
    assert make_policy(100).graph(100) == GraphParameters(False, 99, 51, 51)
    assert make_policy(101).graph(101) == GraphParameters(True, 16, 11, 95, 6)
    assert make_policy(101).graph(101).name == "harary"
    everybody_may_collude = make_policy(101, colluders=97, min_cohort=101).graph(101)
    assert everybody_may_collude == GraphParameters(False, 100, 100, 101)
    assert everybody_may_collude.name == "complete"


def test_a_graph_never_has_fewer_sites_than_a_sum_may_have():
    assert make_policy(200, colluders=10, min_cohort=20).graph(200).key_floor == 190
    assert make_policy(200, colluders=10, min_cohort=195).graph(200).key_floor == 195


def test_dropouts_are_rounded_up_to_whole_sites():
    assert make_policy(201, dropout_permille=5).graph(201).key_floor == 199
    assert make_policy(201, dropout_permille=0).graph(201).key_floor == 201


def test_a_cohort_outside_the_policy_has_no_graph():
    with pytest.raises(PolicyError):
        make_policy(10).graph(11)


# --- the bounds, thrown many times with few bits ---


@pytest.fixture
def few_bits(monkeypatch):
    """Allow one graph, and an event in eight graphs, where the real bounds are for all that may be chosen and 2^-40."""
    monkeypatch.setattr(graph, "SECURITY_BITS", 3)
    monkeypatch.setattr(graph, "CORRECTNESS_BITS", 3)
    monkeypatch.setattr(graph, "MAX_ATTEMPTS", 1)
    monkeypatch.setattr(graph, "MAX_WITHHELD_NONCES", 0)
    sparse_parameters.cache_clear()
    yield
    sparse_parameters.cache_clear()


GRAPHS = 1500


def most_colluders_on_one_side(circle, colluders, half):
    """Over all honest sites and both sides."""
    n = len(circle)
    bad = [site_id in colluders for site_id in circle] * 2
    ahead = [sum(bad[place + 1 : place + 1 + half]) for place in range(n)]
    return max(max(ahead[place], ahead[(place - half - 1) % n]) for place in range(n) if circle[place] not in colluders)


@pytest.mark.usefixtures("few_bits")
def test_the_bound_on_colluders_beside_a_site_holds_and_is_not_far_off():
    n, colluders = 60, set(range(1, 13))
    found = sparse_parameters(n, len(colluders), 0)
    half = found.degree // 2
    beside = found.share_threshold - half - 2
    seen = Counter(
        most_colluders_on_one_side(shuffled(list(range(1, n + 1)), seed_of(label)), colluders, half)
        for label in range(GRAPHS)
    )

    def frequency(a):
        return sum(count for value, count in seen.items() if value > a) / GRAPHS

    assert 0 < frequency(beside) <= 1 / 8
    assert frequency(beside - 1) > 1 / 8  # the same check refuses one fewer


@pytest.mark.usefixtures("few_bits")
def test_the_bound_on_lost_holders_holds_and_is_not_far_off():
    n, dropped = 60, 6
    found = sparse_parameters(n, 2, dropped)
    fewest = Counter()
    for label in range(GRAPHS):
        drawn = harary(found.degree, range(1, n + 1), seed_of(label))
        alive = set(range(dropped + 1, n + 1))
        fewest[min(len(drawn.neighbours(site_id) & alive) + 1 for site_id in alive)] += 1

    def frequency(threshold):
        return sum(count for holders, count in fewest.items() if holders < threshold) / GRAPHS

    assert frequency(found.share_threshold) <= 1 / 8
    assert frequency(found.share_threshold + 2) > 1 / 8  # the bound is for the smallest graph, so it has some slack


# --- no set of declared dropouts splits the sum ---


def components(drawn, sites):
    """The connected parts of the graph on some sites."""
    left, parts = set(sites), []
    while left:
        part, edge = set(), {left.pop()}
        while edge:
            part |= edge
            edge = {other for site_id in edge for other in drawn.neighbours(site_id)} & left
            left -= edge
        parts.append(part)
    return parts


def splits(drawn, colluders, threshold, declared):
    """Whether a server that declares some sites dropped could open a part of the honest survivors without the rest."""
    honest = set(drawn.members) - colluders - declared
    parts = components(drawn, honest)
    if len(parts) < 2:
        return False
    return any(
        all(len(drawn.neighbours(site_id) & (part | colluders)) + 1 >= threshold for site_id in part) for part in parts
    )


def adversarial_dropouts(circle, colluders, half, source):
    """Sets a server would declare: two cuts as wide as the reach, one site walled in, and some by chance."""
    n = len(circle)

    def run(start, length):
        return {circle[(start + step) % n] for step in range(length)} - colluders

    for one, other in product(range(n), range(n)):
        if one < other:
            yield run(one, half) | run(other, half)
    for place in range(n):
        yield run(place + 1, half) | run(place - half, half)
    for _ in range(60):
        yield set(source.sample(circle, source.randrange(1, n - 1))) - colluders


def search(drawn, circle, colluders, half, threshold, *, label=0):
    """The first set of declared dropouts that splits a graph, None if none does."""
    source = random.Random(label)
    return next(
        (
            declared
            for declared in adversarial_dropouts(circle, colluders, half, source)
            if splits(drawn, colluders, threshold, declared)
        ),
        None,
    )


@settings(max_examples=25)
@given(st.integers(16, 30), st.integers(2, 5), st.data())
def test_no_declared_dropouts_split_a_graph_whose_sites_have_few_colluders_beside_them(n, half, data):
    seed = data.draw(st.binary(min_size=32, max_size=32))
    colluders = data.draw(st.sets(st.integers(1, n), min_size=1, max_size=n // 3))
    circle = shuffled(list(range(1, n + 1)), seed)
    beside = most_colluders_on_one_side(circle, colluders, half)
    drawn = harary(2 * half, circle, seed)
    assert search(drawn, circle, colluders, half, half + beside + 2) is None


def test_with_a_threshold_of_half_the_degree_the_same_search_finds_a_split():
    for label in range(10):
        circle = shuffled(list(range(1, 31)), seed_of(label))
        drawn = harary(8, circle, seed_of(label))
        colluders = set(range(1, 4))
        beside = most_colluders_on_one_side(circle, colluders, 4)
        declared = search(drawn, circle, colluders, 4, 4)
        assert declared is not None
        assert search(drawn, circle, colluders, 4, 4 + beside + 2) is None


@pytest.mark.parametrize("half", [2, 3, 5])
@pytest.mark.parametrize("beside", [0, 1, 2])
def test_with_one_share_fewer_the_worst_place_for_colluders_is_a_split(half, beside):
    circle = shuffled(list(range(1, 41)), bytes(32))
    drawn = harary(2 * half, circle)
    colluders = {circle[20 + step] for step in range(beside)} | {circle[39 - step] for step in range(beside)}
    assert most_colluders_on_one_side(circle, colluders, half) == beside
    enough = half + beside + 2
    assert search(drawn, circle, colluders, half, enough - 1) is not None
    assert search(drawn, circle, colluders, half, enough) is None


@pytest.mark.usefixtures("few_bits")
def test_the_parameters_found_resist_the_search_wherever_their_bound_on_colluders_holds():
    n, colluders = 32, {5, 6, 7}
    found = sparse_parameters(n, len(colluders), 2)
    half = found.degree // 2
    beside = found.share_threshold - half - 2
    judged = 0
    for label in range(12):
        circle = shuffled(list(range(1, n + 1)), seed_of(label))
        if most_colluders_on_one_side(circle, colluders, half) <= beside:
            judged += 1
            drawn = harary(found.degree, circle, seed_of(label))
            assert search(drawn, circle, colluders, half, found.share_threshold, label=label) is None
    assert judged > 8


def test_what_is_searched_for_is_what_the_names_say():
    circle = shuffled(list(range(1, 21)), bytes(32))
    drawn = harary(4, circle)
    cut = {circle[0], circle[1], circle[10], circle[11]}
    parts = components(drawn, set(circle) - cut)
    assert sorted(map(len, parts)) == [8, 8]
    assert all({circle[i], circle[i + 1]} <= part or not {circle[i]} & part for part in parts for i in range(2, 9))
    assert splits(drawn, set(), 3, cut)
    assert not splits(drawn, set(), 4, cut)
    assert not splits(drawn, set(), 3, {circle[0], circle[10], circle[11]})
