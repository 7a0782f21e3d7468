"""Finding the polynomial behind shares of which some are wrong."""

import random

import pytest

from secure_agg import shamir
from secure_agg.decoding import decode
from secure_agg.shamir import recover_verified, split

SMALL = 257


def points_of(coefficients, xs, field):
    return {x: sum(c * pow(x, power, field) for power, c in enumerate(coefficients)) % field for x in xs}


@pytest.mark.parametrize("seed", range(40))
def test_as_many_wrong_points_as_half_the_spare_ones_are_found(seed):
    chance = random.Random(seed)
    size, spare = chance.randint(1, 6), chance.randint(2, 9)
    coefficients = [chance.randrange(SMALL) for _ in range(size)]
    points = points_of(coefficients, chance.sample(range(1, SMALL), size + spare), SMALL)
    for x in chance.sample(sorted(points), chance.randint(0, spare // 2)):
        points[x] = (points[x] + chance.randrange(1, SMALL)) % SMALL
    assert decode(points, size, SMALL) == coefficients


def test_with_more_wrong_points_the_polynomial_is_another_or_none():
    chance, outcomes = random.Random(1), set()
    for _ in range(200):
        points = {x: chance.randrange(SMALL) for x in range(1, 8)}
        found = decode(points, 3, SMALL)
        outcomes.add(found is None)
        if found is not None:
            assert sum(points_of(found, points, SMALL)[x] == y for x, y in points.items()) >= 5
    assert True in outcomes


def test_without_spare_points_nothing_is_decoded():
    assert decode({1: 5, 2: 6, 3: 7}, 3, SMALL) is None
    assert decode({1: 5, 2: 6, 3: 7, 4: 8}, 3, SMALL) is None


def test_points_that_contradict_every_polynomial_are_none():
    # Two of five points wrong where one can be found.
    points = points_of([4, 1], range(1, 6), SMALL) | {4: 200, 5: 13}
    assert decode(points, 2, SMALL) is None


def many_shares(sites, threshold, liars):
    secret = bytes(range(32))
    shares = split(secret, threshold, range(1, sites + 1), random.Random(7).randbytes)
    wrong = {index: (int.from_bytes(shares[index], "big") ^ 1).to_bytes(33, "big") for index in liars}
    return secret, shares | wrong


@pytest.mark.parametrize("liars", [(66, 67), (1, 2), (3, 40, 67), tuple(range(50, 66))])
def test_liars_among_a_hundred_sites_are_found_wherever_they_stand(liars):
    secret, shares = many_shares(100, 67, liars)
    assert recover_verified(shares, 67, secret.__eq__, max_attempts=2) == (secret, liars)


def test_by_sets_of_shares_alone_two_liars_at_the_end_are_not_found_so_soon(monkeypatch):
    monkeypatch.setattr(shamir, "decode", lambda *_: None)
    secret, shares = many_shares(100, 67, (66, 67))
    with pytest.raises(shamir.ShareError):
        recover_verified(shares, 67, secret.__eq__, max_attempts=100)


def test_who_lied_before_is_asked_last():
    secret, shares = many_shares(20, 11, (2, 3))
    assert recover_verified(shares, 11, secret.__eq__, max_attempts=1, distrusted={2, 3}) == (secret, (2, 3))
    with pytest.raises(shamir.ShareError):
        recover_verified(shares, 11, secret.__eq__, max_attempts=1)
