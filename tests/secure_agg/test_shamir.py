"""Shamir sharing: enough shares recover the secret, fewer say nothing, wrong ones are found."""

import itertools
import os
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_agg import shamir
from secure_agg.errors import ShareError
from secure_agg.shamir import FIELD, recover, recover_verified, split

SECRETS = [bytes(32), bytes(31) + b"\x01", b"\xff" * 32, bytes(range(32))]


def is_probable_prime(n, bases=(2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)):
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    return all(
        (x := pow(base, odd, n)) in (1, n - 1) or any((x := x * x % n) == n - 1 for _ in range(twos - 1))
        for base in bases
    )


def test_the_field_is_the_smallest_prime_above_2_to_the_256():
    assert is_probable_prime(FIELD)
    assert not any(is_probable_prime(n) for n in range(2**256 + 1, FIELD, 2))


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(("threshold", "n"), [(1, 1), (2, 3), (3, 3), (4, 7)])
def test_every_subset_of_threshold_size_recovers_the_secret(secret, threshold, n):
    shares = split(secret, threshold, range(1, n + 1), os.urandom)
    assert all(len(share) == 33 for share in shares.values())
    for chosen in itertools.combinations(shares, threshold):
        assert recover({index: shares[index] for index in chosen}, threshold) == secret


@settings(max_examples=40)
@given(
    st.binary(min_size=32, max_size=32),
    st.lists(st.integers(1, 2**32 - 1), min_size=2, max_size=8, unique=True),
    st.data(),
)
def test_any_indices_and_any_threshold_round_trip(secret, indices, data):
    threshold = data.draw(st.integers(1, len(indices)))
    shares = split(secret, threshold, indices, os.urandom)
    chosen = data.draw(st.permutations(indices))[:threshold]
    assert recover({index: shares[index] for index in chosen}, threshold) == secret


def test_one_share_too_few_fits_every_secret_of_a_small_field(monkeypatch):
    monkeypatch.setattr(shamir, "FIELD", 31)
    shamir._lagrange.cache_clear()
    points = {1: 7, 3: 20}
    fitting = {shamir.interpolate(points | {5: third}, (1, 3, 5), at=0) for third in range(31)}
    shamir._lagrange.cache_clear()
    assert fitting == set(range(31))


def test_a_share_below_the_threshold_is_uniform_whatever_the_secret():
    counts = Counter(split(b"\xff" * 32, 2, (1, 2), os.urandom)[1][1] >> 4 for _ in range(3200))
    chi_square = sum((counts[value] - 200) ** 2 / 200 for value in range(16))
    assert chi_square < 44.3  # 15 degrees of freedom, p = 1e-4


def test_the_same_secret_is_shared_differently_every_time():
    assert split(bytes(32), 2, (1, 2), os.urandom) != split(bytes(32), 2, (1, 2), os.urandom)


@pytest.mark.parametrize(
    ("secret", "threshold", "indices"),
    [
        (bytes(31), 2, (1, 2, 3)),
        (bytes(33), 2, (1, 2, 3)),
        (bytes(32), 0, (1, 2, 3)),
        (bytes(32), 4, (1, 2, 3)),
        (bytes(32), 2, (0, 1, 2)),
        (bytes(32), 2, (1, 1, 2)),
        (bytes(32), 2, (-1, 1, 2)),
        (bytes(32), 2, (FIELD, 1, 2)),
    ],
)
def test_a_sharing_that_could_not_be_recovered_is_refused(secret, threshold, indices):
    with pytest.raises(ShareError):
        split(secret, threshold, indices, os.urandom)


@pytest.mark.parametrize(
    "change",
    [
        lambda shares: {1: shares[1]},
        lambda shares: {0: shares[1], 2: shares[2]},
        lambda shares: {1: shares[1][:-1], 2: shares[2]},
        lambda shares: {1: shares[1] + b"\0", 2: shares[2]},
        lambda shares: {1: FIELD.to_bytes(33, "big"), 2: shares[2]},
        lambda shares: {1: b"\xff" * 33, 2: shares[2]},
    ],
)
def test_malformed_or_too_few_shares_are_refused(change):
    shares = split(bytes(32), 2, (1, 2, 3), os.urandom)
    with pytest.raises(ShareError):
        recover(change(shares), 2)


def test_a_result_that_is_no_32_byte_secret_is_refused():
    shares = {1: (2**256 + 5).to_bytes(33, "big"), 2: (2**256 + 5).to_bytes(33, "big")}
    with pytest.raises(ShareError, match="32-byte secret"):
        recover(shares, 2)


@pytest.mark.parametrize("liars", [(), (1,), (3,), (5,), (1, 2), (2, 5), (1, 5)])
def test_liars_are_named_and_the_secret_is_still_recovered(liars):
    secret = bytes(range(32))
    shares = split(secret, 3, range(1, 6), os.urandom)
    for liar in liars:
        shares[liar] = bytes(32) + b"\x07"
    assert recover_verified(shares, 3, secret.__eq__, max_attempts=100) == (secret, liars)


def test_with_threshold_shares_a_lie_is_found_but_not_repaired():
    secret = bytes(range(32))
    shares = split(secret, 3, (1, 2, 3), os.urandom)
    shares[2] = bytes(33)
    with pytest.raises(ShareError, match="commitment"):
        recover_verified(shares, 3, secret.__eq__, max_attempts=100)


@pytest.mark.parametrize(("given", "threshold"), [(2, 3), (0, 1), (3, 0)])
def test_no_search_starts_with_too_few_shares(given, threshold):
    shares = split(bytes(32), 3, (1, 2, 3), os.urandom)
    few = {index: shares[index] for index in list(shares)[:given]}
    with pytest.raises(ShareError, match="are needed"):
        recover_verified(few, threshold, lambda _: True, max_attempts=100)


def test_a_set_of_shares_that_gives_no_32_byte_secret_is_passed_over():
    secret = bytes(range(32))
    shares = split(secret, 1, (1, 2), os.urandom)
    shares[1] = (2**256 + 5).to_bytes(33, "big")
    assert recover_verified(shares, 1, secret.__eq__, max_attempts=100) == (secret, (1,))


def test_the_search_for_liars_is_bounded():
    tried = []
    shares = split(bytes(32), 3, range(1, 12), os.urandom)
    with pytest.raises(ShareError):
        recover_verified(shares, 3, lambda secret: tried.append(secret) is not None, max_attempts=7)
    assert len(tried) == 7
