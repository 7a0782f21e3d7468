"""The policy: thresholds that exclude a double reveal, and a ring that cannot wrap."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_agg.errors import PolicyError
from secure_agg.policy import MAX_COHORT_SITES, SecureSumPolicy
from tests.simulation.federation import make_policy


@pytest.mark.parametrize(
    ("n", "colluders", "t"),
    [
        (3, 1, 3),
        (4, 1, 3),
        (5, 1, 4),
        (8, 2, 6),
        (10, 1, 6),
        (10, 3, 7),
        (20, 1, 11),
        (20, 6, 14),
        (50, 16, 34),
        (100, 33, 67),
    ],
)
def test_the_threshold_is_that_of_the_table(n, colluders, t):
    assert make_policy(n, colluders=colluders, min_cohort=n).threshold(n) == t


@given(st.integers(3, 100), st.integers(1, 33))
def test_a_threshold_is_the_smallest_that_excludes_a_double_reveal(n, colluders):
    try:
        t = make_policy(n, colluders=colluders, min_cohort=n).threshold(n)
    except PolicyError:
        needed = (n + colluders) // 2 + 1
        assert needed > n or needed - colluders < 2
        return
    assert 2 * t > n + colluders
    assert 2 * (t - 1) <= n + colluders
    assert t - colluders >= 2
    assert t <= n


def test_the_floor_of_survivors_is_the_larger_of_threshold_and_min_cohort():
    assert make_policy(10, min_cohort=8).survivor_floor(10) == 8
    assert make_policy(10, min_cohort=4).survivor_floor(10) == 6


@pytest.mark.parametrize("n", [2, 11])
def test_a_cohort_outside_the_agreed_sizes_is_refused(n):
    with pytest.raises(PolicyError):
        make_policy(10).threshold(n)


@pytest.mark.parametrize(
    "fields",
    [
        {"colluders": 0},
        {"colluders": 3},
        {"min_honest": 1},
        {"min_honest": 3},
        {"min_cohort": 2},
        {"min_cohort": 5},
        {"max_cohort": MAX_COHORT_SITES + 1, "max_magnitude": 1},
        {"max_cohort": 2},
        {"dimension": 0},
        {"dimension": 2**31 + 1},
        {"ring_bits": 31},
        {"ring_bits": 8},
        {"fraction_bits": -1},
        {"fraction_bits": 61},
        {"max_magnitude": 0},
        {"max_weight": 0},
        {"dropout_permille": -1},
        {"dropout_permille": 501},
        {"mask_cipher": "mt19937"},
    ],
)
def test_a_policy_that_contradicts_itself_is_refused(fields):
    with pytest.raises(PolicyError) as caught:
        make_policy(4, **fields)
    assert caught.value.remedy


@pytest.mark.parametrize("ring_bits", [16, 32, 64])
@pytest.mark.parametrize("n", [3, 7, 64])
def test_a_magnitude_that_could_wrap_is_refused_and_the_largest_that_cannot_is_taken(ring_bits, n):
    largest = (2 ** (ring_bits - 1) - 1) // n
    make_policy(n, ring_bits=ring_bits, max_magnitude=largest)
    with pytest.raises(PolicyError, match="wrap"):
        make_policy(n, ring_bits=ring_bits, max_magnitude=largest + 1)


@pytest.mark.parametrize("ring_bits", [16, 32, 64])
@pytest.mark.parametrize("weight", [1, 2, 60])
def test_weights_take_their_room_in_the_ring(ring_bits, weight):
    largest = (2 ** (ring_bits - 1) - 1) // (7 * weight)
    make_policy(7, ring_bits=ring_bits, max_weight=weight, max_magnitude=largest)
    with pytest.raises(PolicyError, match="wrap"):
        make_policy(7, ring_bits=ring_bits, max_weight=weight, max_magnitude=largest + 1)


def test_a_weight_is_one_more_coordinate():
    assert make_policy(4, dimension=8).length == 8
    assert make_policy(4, dimension=8, max_weight=1).length == 9


def test_a_policy_of_the_largest_cohort_can_be_made():
    policy = make_policy(MAX_COHORT_SITES, colluders=500, min_cohort=5000)
    assert policy.threshold(MAX_COHORT_SITES) == 5251
    assert policy.graph(MAX_COHORT_SITES).sparse


@pytest.mark.parametrize(("max_weight", "weight"), [(None, 1), (1, 1), (50, 50)])
def test_a_range_passes_every_argument_on_and_uses_the_room_that_weights_leave(max_weight, weight):
    policy = SecureSumPolicy.from_range(
        value_range=2.0,
        colluders=2,
        min_cohort=6,
        min_honest=3,
        max_cohort=9,
        dimension=6,
        ring_bits=32,
        max_weight=max_weight,
        dropout_permille=70,
        mask_cipher="chacha20",
    )
    largest = (2**31 - 1) // (9 * weight)
    assert policy == SecureSumPolicy(
        2,
        6,
        3,
        9,
        6,
        fraction_bits=policy.fraction_bits,
        max_magnitude=largest,
        max_weight=max_weight,
        dropout_permille=70,
        mask_cipher="chacha20",
    )
    assert 2.0 * 2**policy.fraction_bits <= largest < 2.0 * 2 ** (policy.fraction_bits + 1)


@pytest.mark.parametrize("fields", [{"ring_bits": 31}, {"max_cohort": 0}, {"max_weight": 0}])
def test_a_range_is_refused_where_its_other_arguments_are_no_policy(fields):
    arguments = {"colluders": 1, "min_cohort": 3, "min_honest": 2, "max_cohort": 9, "dimension": 1} | fields
    with pytest.raises(PolicyError):
        SecureSumPolicy.from_range(value_range=1.0, **arguments)


def test_a_range_chooses_the_grid_of_the_worked_example():
    policy = SecureSumPolicy.from_range(
        value_range=4, colluders=1, min_cohort=3, min_honest=2, max_cohort=64, dimension=1
    )
    assert policy.max_magnitude == 2**25 - 1
    assert policy.fraction_bits == 22


@pytest.mark.parametrize("value_range", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_a_range_that_does_not_fit_the_ring_is_refused(value_range):
    with pytest.raises(PolicyError):
        SecureSumPolicy.from_range(
            value_range=value_range, colluders=1, min_cohort=3, min_honest=2, max_cohort=64, dimension=1
        )


def test_a_policy_error_is_a_value_error():
    assert issubclass(PolicyError, ValueError)
