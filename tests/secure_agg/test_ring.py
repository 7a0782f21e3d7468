"""The ring: a sum of encoded values is the sum of their integers times their weights, or it is refused."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_agg import ring
from secure_agg.errors import AggregationAborted, LocalProtocolError
from secure_agg.policy import SecureSumPolicy
from secure_agg.ring import check_encoded, check_sum, decode_sum, encode, encode_integers, encode_with_count

RINGS = [16, 32, 64]
DTYPES = {16: np.uint16, 32: np.uint32, 64: np.uint64}


def policy_of(ring_bits, max_cohort, value_range=1.0, *, dimension=4, max_weight=None):
    return SecureSumPolicy.from_range(
        value_range=value_range,
        colluders=1,
        min_cohort=3,
        min_honest=2,
        max_cohort=max_cohort,
        dimension=dimension,
        ring_bits=ring_bits,
        max_weight=max_weight,
    )


def signed(vector):
    return vector.view(f"i{vector.dtype.itemsize}").tolist()


def as_ring(policy, integers):
    return np.array([value % 2**policy.ring_bits for value in integers], dtype=policy.dtype)


policies = st.builds(
    policy_of,
    st.sampled_from(RINGS),
    st.integers(3, 100),
    st.sampled_from([0.01, 1.0, 4.0]),
    max_weight=st.sampled_from([None, 1, 2, 60]),
)


@given(policies, st.data())
def test_a_sum_of_weighted_vectors_is_the_exact_sum_of_their_integers(policy, data):
    n = data.draw(st.integers(3, policy.max_cohort))
    reach, widest = policy.max_magnitude, policy.max_weight or 1
    value = st.one_of(st.sampled_from([-reach, reach, 0, 1, -1]), st.integers(-reach, reach))
    weight = st.one_of(st.sampled_from([1, widest]), st.integers(1, widest))
    inputs = [(data.draw(weight), [data.draw(value) for _ in range(4)]) for _ in range(min(n, 5))]
    inputs += [inputs[0]] * (n - len(inputs))
    total = np.zeros(policy.length, dtype=policy.dtype)
    for times, row in inputs:
        vector = as_ring(policy, [times * v for v in row] + [times] * (policy.max_weight is not None))
        check_encoded(policy, vector)
        total += vector
    exact = [sum(times * row[i] for times, row in inputs) for i in range(4)]
    decoded = decode_sum(policy, total, n)
    assert decoded.weight == sum(times for times, _ in inputs)
    assert signed(total)[:4] == exact
    for got, mean, integer in zip(decoded.values, decoded.mean, exact, strict=True):
        if abs(integer) < 2**53:
            assert Fraction(float(got)) == Fraction(integer, 2**policy.fraction_bits)
        assert mean == got / decoded.weight


def nearest(policy, value):
    """What a real value is carried as, in exact arithmetic: round half to even, saturate."""
    reach = policy.max_magnitude
    return max(-reach, min(reach, round(Fraction(value) * 2**policy.fraction_bits)))


@given(policies, st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4), st.data())
def test_one_value_is_rounded_half_to_even_saturated_and_weighted(policy, values, data):
    weight = None if policy.max_weight is None else data.draw(st.integers(1, policy.max_weight))
    encoded, saturated = encode_with_count(policy, np.array(values), weight=weight)
    wanted = [nearest(policy, v) for v in values]
    assert signed(encoded)[:4] == [(weight or 1) * w for w in wanted]
    assert signed(encoded)[4:] == ([] if weight is None else [weight])
    exact = [round(Fraction(v) * 2**policy.fraction_bits) for v in values]
    assert saturated == sum(abs(e) > policy.max_magnitude for e in exact)
    check_encoded(policy, encoded)


@settings(max_examples=50)
@given(policies, st.lists(st.floats(-1e6, 1e6, width=32), min_size=4, max_size=4))
def test_single_precision_is_encoded_like_the_same_values_in_double_precision(policy, values):
    weight = policy.max_weight
    single, double = np.array(values, dtype=np.float32), np.array(values, dtype=np.float64)
    one, other = (encode_with_count(policy, vector, weight=weight) for vector in (single, double))
    np.testing.assert_array_equal(one[0], other[0])
    assert one[1] == other[1]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
@pytest.mark.parametrize("layout", ["plain", "strided", "swapped"])
def test_every_floating_type_and_layout_is_taken(dtype, layout):
    values = np.array([0.5, -0.25, 1.0, -1.0], dtype=dtype)
    given_values = {
        "plain": values,
        "strided": np.repeat(values, 2)[::2],
        "swapped": values.astype(values.dtype.newbyteorder(">")),
    }[layout]
    policy = policy_of(32, 10)
    assert signed(encode(policy, given_values)) == [nearest(policy, v) for v in (0.5, -0.25, 1.0, -1.0)]


@pytest.mark.parametrize("ring_bits", RINGS)
@pytest.mark.parametrize("weight", [None, 1, 3])
def test_a_vector_longer_than_a_block_is_encoded_like_its_values_one_by_one(monkeypatch, ring_bits, weight):
    values = np.random.default_rng(5).normal(0, 0.7, 50)
    whole = encode_with_count(policy_of(ring_bits, 10, dimension=50, max_weight=weight), values, weight=weight)
    monkeypatch.setattr(ring, "BLOCK_VALUES", 7)
    cut = encode_with_count(policy_of(ring_bits, 10, dimension=50, max_weight=weight), values, weight=weight)
    np.testing.assert_array_equal(whole[0], cut[0])
    assert whole[1] == cut[1]


@pytest.mark.parametrize("ring_bits", RINGS)
@pytest.mark.parametrize("max_weight", [None, 1, 50])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_extremes_of_the_largest_cohort_do_not_wrap(ring_bits, max_weight, sign):
    policy = policy_of(ring_bits, 100, max_weight=max_weight)
    weight = max_weight or 1
    one, saturated = encode_with_count(policy, np.full(4, sign * 1e300), weight=max_weight)
    assert saturated == 4
    assert signed(one)[0] == sign * weight * policy.max_magnitude
    total = np.zeros(policy.length, dtype=policy.dtype)
    for _ in range(100):
        total += one
    decoded = decode_sum(policy, total, 100)
    assert decoded.weight == 100 * weight
    assert decoded.values[0] == sign * 100 * weight * policy.max_magnitude / 2**policy.fraction_bits


@pytest.mark.parametrize("ring_bits", RINGS)
@pytest.mark.parametrize("sign", [1, -1])
def test_with_a_magnitude_one_larger_than_a_policy_may_have_a_sum_would_wrap(ring_bits, sign):
    n = 8
    largest = (2 ** (ring_bits - 1) - 1) // n
    for magnitude, holds in ((largest, True), (largest + 1, False)):
        total = np.zeros(1, DTYPES[ring_bits])
        for _ in range(n + (sign < 0)):  # the negative half of the ring holds one more
            total += np.array([sign * magnitude % 2**ring_bits], dtype=DTYPES[ring_bits])
        exact = (n + (sign < 0)) * sign * magnitude
        assert (signed(total) == [exact]) == (holds and -(2 ** (ring_bits - 1)) <= exact)


def test_the_encoding_is_the_one_written_down():
    policy = SecureSumPolicy(1, 3, 2, 3, 6, ring_bits=32, fraction_bits=4, max_magnitude=100)
    encoded = encode(policy, np.array([0.0, 1.0, -1.0, 0.03125, 0.09375, 99.0]))
    assert encoded.tolist() == [0, 16, 2**32 - 16, 0, 2, 100]
    assert encoded.dtype == np.uint32


def test_the_encoding_with_a_weight_is_the_one_written_down():
    policy = SecureSumPolicy(1, 3, 2, 3, 5, ring_bits=32, fraction_bits=4, max_magnitude=100, max_weight=9)
    encoded = encode(policy, np.array([1.0, -1.0, 0.03125, 0.09375, 99.0]), weight=3)
    assert encoded.tolist() == [48, 2**32 - 48, 0, 6, 300, 3]


@pytest.mark.parametrize("magnitude", [2**53 + 1, 2**60 - 1])
def test_a_magnitude_that_double_precision_cannot_hold_is_still_the_exact_limit(magnitude):
    policy = SecureSumPolicy(1, 3, 2, 3, 3, ring_bits=64, fraction_bits=0, max_magnitude=magnitude, max_weight=2)
    encoded = encode(policy, np.array([1e300, -1e300, 5.0]), weight=2)
    assert signed(encoded) == [2 * magnitude, -2 * magnitude, 10, 2]


def test_infinity_after_scaling_saturates_without_a_warning():
    policy = policy_of(64, 3)
    assert encode_with_count(policy, np.full(4, 1.7e308))[1] == 4


def refused(match, call, *arguments, hidden=(), **options):
    """Check that a caller's mistake is refused with a remedy and without a data value."""
    with pytest.raises(LocalProtocolError, match=match) as caught:
        call(*arguments, **options)
    shown = str(caught.value)
    assert caught.value.remedy
    assert shown.endswith(caught.value.remedy)
    assert not any(value in shown for value in hidden)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("place", [0, 20_000])
def test_a_value_that_is_not_finite_is_refused(bad, dtype, place):
    values = np.full(20_001, 0.3125, dtype=dtype)
    values[place] = bad
    refused(
        "finite",
        encode,
        policy_of(32, 10, dimension=20_001),
        values,
        hidden=("0.3125", "nan", "inf ", "inf,", str(place) if place else "["),
    )


@pytest.mark.parametrize("shape", [(3,), (5,), (4, 1), ()])
def test_a_vector_of_another_length_is_refused(shape):
    refused("shape", encode, policy_of(32, 10), np.full(shape, 0.3125), hidden=("0.3125",))


@pytest.mark.parametrize(
    "values", [np.full(4, 77, np.int64), np.full(4, 77, np.uint32), np.full(4, 77j), [77.0] * 4, None]
)
def test_a_vector_that_is_not_of_floating_point_numbers_is_refused(values):
    refused("floating-point", encode, policy_of(32, 10), values, hidden=("77",))


@pytest.mark.parametrize("weight", [None, 0, -1, 10, 1.5, 2.0, float("nan")])
def test_a_weight_that_is_not_one_of_the_policys_is_refused(weight):
    policy = policy_of(32, 10, max_weight=9)
    refused("weight", encode, policy, np.full(4, 0.3125), weight=weight, hidden=("0.3125",))


def test_a_weight_where_the_policy_has_none_is_refused():
    refused("the policy has none", encode, policy_of(32, 10), np.full(4, 0.3125), weight=1, hidden=("0.3125",))


@pytest.mark.parametrize("ring_bits", RINGS)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("weight", [None, 1, 3])
def test_one_above_the_largest_magnitude_is_refused(ring_bits, sign, weight):
    policy = policy_of(ring_bits, 10, max_weight=weight)
    reach = sign * (weight or 1) * policy.max_magnitude
    behind = [] if weight is None else [weight]
    check_encoded(policy, as_ring(policy, [reach] * 4 + behind))
    over = as_ring(policy, [reach, reach, reach + sign, reach, *behind])
    refused("max_magnitude", check_encoded, policy, over, hidden=(str(reach + sign), str(abs(reach) + 1)))


@pytest.mark.parametrize("weight", [0, 4, 2**32 - 1])
def test_an_encoded_vector_with_a_weight_outside_the_policy_is_refused(weight):
    policy = policy_of(32, 10, max_weight=3)
    refused("weight", check_encoded, policy, as_ring(policy, [0, 0, 0, 0, weight]))


def test_an_encoded_vector_is_held_to_the_weight_it_carries():
    policy = policy_of(32, 10, max_weight=3)
    reach = policy.max_magnitude
    check_encoded(policy, as_ring(policy, [2 * reach, 0, 0, 0, 2]))
    refused("max_magnitude", check_encoded, policy, as_ring(policy, [2 * reach + 1, 0, 0, 0, 2]))


@pytest.mark.parametrize("ring_bits", RINGS)
def test_the_most_negative_value_of_the_ring_is_refused(ring_bits):
    policy = policy_of(ring_bits, 10)
    worst = np.full(4, 2 ** (ring_bits - 1), dtype=DTYPES[ring_bits])
    refused("max_magnitude", check_encoded, policy, worst)
    with pytest.raises(AggregationAborted):
        check_sum(policy, worst, 10)


@pytest.mark.parametrize("vector", [np.full(4, 77, np.int32), np.full(4, 77, np.uint64), np.full(5, 77, np.uint32)])
def test_a_vector_of_another_type_or_length_is_refused(vector):
    refused("the policy says", check_encoded, policy_of(32, 10), vector, hidden=("77",))
    with pytest.raises(AggregationAborted, match="type or length"):
        decode_sum(policy_of(32, 10), vector, 3)


def test_a_list_is_no_encoded_vector():
    refused("is list", check_encoded, policy_of(32, 10), [77] * 4, hidden=("77",))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_sum_beyond_what_its_inputs_can_make_is_refused(sign):
    policy = policy_of(32, 10)
    edge = as_ring(policy, [sign * 3 * policy.max_magnitude] * 4)
    decode_sum(policy, edge, 3)
    edge[3:] += as_ring(policy, [sign])
    with pytest.raises(AggregationAborted, match="out of range"):
        decode_sum(policy, edge, 3)


def test_a_weighted_sum_is_held_to_the_weights_in_it():
    policy = policy_of(32, 10, max_weight=5)
    reach = policy.max_magnitude
    check_sum(policy, as_ring(policy, [4 * reach, 0, 0, 0, 4]), 3)
    with pytest.raises(AggregationAborted, match="out of range"):
        check_sum(policy, as_ring(policy, [4 * reach + 1, 0, 0, 0, 4]), 3)
    for weight, possible in ((2, False), (3, True), (15, True), (16, False)):
        total = as_ring(policy, [0, 0, 0, 0, weight])
        if possible:
            assert decode_sum(policy, total, 3).weight == weight
        else:
            with pytest.raises(AggregationAborted, match="sum of the weights"):
                check_sum(policy, total, 3)


@pytest.mark.parametrize("n", [0, 11])
def test_a_sum_of_an_impossible_number_of_inputs_is_refused(n):
    with pytest.raises(AggregationAborted):
        decode_sum(policy_of(32, 10), np.zeros(4, np.uint32), n)


@given(policies, st.data())
def test_integers_on_the_grid_are_encoded_as_they_are_and_their_sum_is_exact(policy, data):
    policy = replace(policy, max_weight=None)
    reach = policy.max_magnitude
    value = st.one_of(st.sampled_from([-reach, reach, 0, 1, -1]), st.integers(-reach, reach))
    rows = [[data.draw(value) for _ in range(4)] for _ in range(3)]
    total = np.zeros(4, dtype=policy.dtype)
    for row in rows:
        encoded = encode_integers(policy, np.array(row, dtype=np.int64))
        check_encoded(policy, encoded)
        assert signed(encoded) == row
        total += encoded
    check_sum(policy, total, 3)
    assert signed(total) == [sum(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("ring_bits", RINGS)
@pytest.mark.parametrize("sign", [1, -1])
def test_an_integer_beyond_the_largest_magnitude_is_refused_and_not_cut(ring_bits, sign):
    policy = policy_of(ring_bits, 10)
    reach = sign * policy.max_magnitude
    encode_integers(policy, np.full(4, reach))
    over = np.array([0, reach + sign, 0, 0])
    refused("max_magnitude", encode_integers, policy, over, hidden=(str(reach + sign),))


def test_the_most_negative_integer_is_refused_like_any_other_beyond_the_range():
    refused("max_magnitude", encode_integers, policy_of(64, 10), np.full(4, -(2**63)))


@pytest.mark.parametrize(
    "wrong",
    [np.zeros(4), np.zeros(4, dtype=np.int32), np.zeros(4, dtype=np.uint64), np.zeros(3, dtype=np.int64), [0, 0, 0, 0]],
    ids=["float", "narrow", "unsigned", "short", "list"],
)
def test_integers_of_another_type_or_shape_are_refused(wrong):
    refused("integers to encode", encode_integers, policy_of(32, 10), wrong)


def test_integers_have_no_weight():
    refused("weight", encode_integers, policy_of(32, 10, max_weight=3), np.zeros(4, dtype=np.int64))


@pytest.mark.parametrize("max_weight", [None, 3])
def test_an_array_that_is_handed_in_is_filled_and_returned(max_weight):
    policy = policy_of(32, 5, max_weight=max_weight)
    values, weight = np.array([0.5, -0.25, 0.0, 1.0]), max_weight
    out = np.full(policy.length, 77, dtype=policy.dtype)
    encoded = encode(policy, values, weight=weight, out=out)
    assert encoded is out
    np.testing.assert_array_equal(out, encode(policy, values, weight=weight))


def read_only(size, dtype):
    array = np.zeros(size, dtype)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "out",
    [np.zeros(4, np.uint64), np.zeros(5, np.uint32), np.zeros(8, np.uint32)[::2], read_only(4, np.uint32)],
    ids=["type", "length", "stride", "read-only"],
)
def test_an_array_that_cannot_hold_the_vector_is_refused(out):
    before = out.copy()
    with pytest.raises(LocalProtocolError, match="to encode into") as caught:
        encode(policy_of(32, 5), np.zeros(4), out=out)
    assert caught.value.remedy
    np.testing.assert_array_equal(out, before)
