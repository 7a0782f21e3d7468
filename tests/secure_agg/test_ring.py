"""The ring: a sum of encoded values is the sum of their integers, or it is refused."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_agg.errors import AggregationAborted, LocalProtocolError
from secure_agg.policy import SecureSumPolicy
from secure_agg.ring import check_encoded, check_sum, decode_sum, encode, encode_with_count

DTYPES = {16: np.uint16, 32: np.uint32, 64: np.uint64}


def policy_of(ring_bits, max_cohort, value_range=1.0, dimension=4):
    return SecureSumPolicy.from_range(
        value_range=value_range,
        colluders=1,
        min_cohort=3,
        min_honest=2,
        max_cohort=max_cohort,
        dimension=dimension,
        ring_bits=ring_bits,
    )


rings = st.builds(policy_of, st.sampled_from([16, 32, 64]), st.integers(3, 100), st.sampled_from([0.01, 1.0, 4.0]))


@given(rings, st.data())
def test_a_sum_of_encoded_vectors_is_the_exact_sum_of_their_integers(policy, data):
    n = data.draw(st.integers(3, policy.max_cohort))
    reach = policy.max_magnitude
    value = st.one_of(st.sampled_from([-reach, reach, 0, 1, -1]), st.integers(-reach, reach))
    rows = [[data.draw(value) for _ in range(4)] for _ in range(min(n, 6))]
    rows += [rows[0]] * (n - len(rows))
    total = np.zeros(4, dtype=policy.dtype)
    for row in rows:
        total += np.array([v % 2**policy.ring_bits for v in row], dtype=policy.dtype)
    exact = [sum(column) for column in zip(*rows, strict=True)]
    check_sum(policy, total, n)
    decoded = decode_sum(policy, total, n)
    for got, integer in zip(decoded, exact, strict=True):
        if abs(integer) < 2**53:
            assert Fraction(float(got)) == Fraction(integer, 2**policy.fraction_bits)


@given(rings, st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4))
def test_one_value_is_rounded_half_to_even_and_saturates(policy, values):
    encoded, saturated = encode_with_count(policy, np.array(values))
    signed = encoded.view(f"i{policy.ring_bits // 8}").tolist()
    reach = policy.max_magnitude
    wanted = [round(Fraction(v) * 2**policy.fraction_bits) for v in values]
    if policy.ring_bits < 64:
        assert signed == [max(-reach, min(reach, w)) for w in wanted]
        assert saturated == sum(abs(w) > reach for w in wanted)
    assert max(abs(v) for v in signed) <= reach


@pytest.mark.parametrize("ring_bits", [16, 32, 64])
def test_the_extremes_of_the_largest_cohort_do_not_wrap(ring_bits):
    policy = policy_of(ring_bits, 100)
    for sign in (1, -1):
        one = encode(policy, np.full(4, sign * 1e300))
        assert one.view(f"i{ring_bits // 8}")[0] == sign * policy.max_magnitude
        total = np.zeros(4, dtype=policy.dtype)
        for _ in range(100):
            total += one
        assert decode_sum(policy, total, 100)[0] == sign * 100 * policy.max_magnitude / 2**policy.fraction_bits


def test_the_encoding_is_the_one_written_down():
    policy = SecureSumPolicy(1, 3, 2, 3, 6, ring_bits=32, fraction_bits=4, max_magnitude=100)
    encoded = encode(policy, np.array([0.0, 1.0, -1.0, 0.03125, 0.09375, 99.0]))
    assert encoded.tolist() == [0, 16, 2**32 - 16, 0, 2, 100]
    assert encoded.dtype == np.uint32


def test_infinity_after_scaling_saturates_without_a_warning():
    policy = policy_of(64, 3)
    assert encode_with_count(policy, np.full(4, 1.7e308))[1] == 4


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused(bad):
    with pytest.raises(LocalProtocolError, match="finite"):
        encode(policy_of(32, 10), np.array([0, bad, 0, 0]))


@pytest.mark.parametrize("shape", [(3,), (5,), (4, 1), ()])
def test_a_vector_of_another_length_is_refused(shape):
    with pytest.raises(LocalProtocolError, match="shape"):
        encode(policy_of(32, 10), np.zeros(shape))


@pytest.mark.parametrize("ring_bits", [16, 32, 64])
@pytest.mark.parametrize("sign", [1, -1])
def test_one_above_the_largest_magnitude_is_refused(ring_bits, sign):
    policy = policy_of(ring_bits, 10)
    fits = np.array([sign * policy.max_magnitude % 2**ring_bits] * 4, dtype=DTYPES[ring_bits])
    check_encoded(policy, fits)
    fits[2] = sign * (policy.max_magnitude + 1) % 2**ring_bits
    with pytest.raises(LocalProtocolError, match="max_magnitude"):
        check_encoded(policy, fits)


@pytest.mark.parametrize("ring_bits", [16, 32, 64])
def test_the_most_negative_value_of_the_ring_is_refused(ring_bits):
    policy = policy_of(ring_bits, 10)
    worst = np.full(4, 2 ** (ring_bits - 1), dtype=DTYPES[ring_bits])
    with pytest.raises(LocalProtocolError):
        check_encoded(policy, worst)
    with pytest.raises(AggregationAborted):
        check_sum(policy, worst, 10)


@pytest.mark.parametrize("vector", [np.zeros(4, np.int32), np.zeros(4, np.uint64), np.zeros(5, np.uint32)])
def test_a_vector_of_another_type_or_length_is_refused(vector):
    with pytest.raises(LocalProtocolError):
        check_encoded(policy_of(32, 10), vector)
    with pytest.raises(AggregationAborted):
        decode_sum(policy_of(32, 10), vector, 3)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_sum_beyond_what_its_inputs_can_make_is_refused(sign):
    policy = policy_of(32, 10)
    edge = np.array([sign * 3 * policy.max_magnitude % 2**32] * 4, dtype=np.uint32)
    decode_sum(policy, edge, 3)
    edge[3:] += np.array([sign % 2**32], dtype=np.uint32)
    with pytest.raises(AggregationAborted, match="out of range"):
        decode_sum(policy, edge, 3)


@pytest.mark.parametrize("n", [0, 11])
def test_a_sum_of_an_impossible_number_of_inputs_is_refused(n):
    with pytest.raises(AggregationAborted):
        decode_sum(policy_of(32, 10), np.zeros(4, np.uint32), n)
