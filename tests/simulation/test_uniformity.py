"""A masked vector is uniform whatever is in it: one battery of statistics, and broken masks that it catches.

Every bound is a tail bound at a chance of e^-23 a comparison, so that a correct run fails less than once in a million:

* chi-square of k cells: k +- 2 sqrt(k L) (+ 2 L above), after Laurent and Massart (2000);
* fullest and emptiest cell: Chernoff's bound on a binomial count, over all cells at once;
* Kolmogorov and Smirnov: 2 exp(-2 N D^2), after Dvoretzky, Kiefer and Wolfowitz with Massart's constant;
* serial correlation: the normal tail, at several millions of values;
* collisions of the first eight bytes of many masks: none at 64 bits, but for a chance of N^2 / 2^65.
"""

import hashlib
import itertools
import math
import os

import numpy as np
import pytest

from secure_agg.dealing import AttemptSecrets
from secure_agg.keystream import SEGMENT_BYTES
from secure_agg.masks import CHUNK_BYTES, add_masks
from tests.simulation.federation import Federation

pytestmark = [pytest.mark.timeout(400), pytest.mark.no_cover]  # coverage doubles its time and gains no branch

LOG_CHANCE = 23.0  # -ln of the chance that one comparison fails by accident: 1.03e-10
AES_BLOCK_BYTES = 16
VECTOR_BYTES = 5 * 2**20  # 40 expected in each of the 65,536 cells: an empty one is seen
SEEDS = 350_000  # seeds of 32 bits would collide but for a chance of exp(-SEEDS^2 / 2^33) = 6.4e-7
KINDS = ("zero", "constant", "largest", "smallest")
LARGEST = {16: 2**12, 32: 2**28}
COMPARISONS_OF_A_VECTOR = 4 + 4 + 1 + 5


def chi_square(counts):
    mean, freedom = counts.mean(), counts.size - 1
    statistic = float(((counts - mean) ** 2).sum() / mean)
    spread = 2 * math.sqrt(freedom * LOG_CHANCE)
    return freedom - spread < statistic < freedom + spread + 2 * LOG_CHANCE


def rate(count, mean):
    """Chernoff's exponent: a binomial count is as far from its mean as this with a chance of at most exp(-rate)."""
    return mean - count + (count * math.log(count / mean) if count else 0.0)


def no_extreme_cell(counts):
    mean, needed = counts.mean(), LOG_CHANCE + math.log(counts.size)
    return rate(int(counts.max()), mean) < needed and rate(int(counts.min()), mean) < needed


def evenly_spread(vector):
    """Kolmogorov and Smirnov's distance to the uniform distribution on the ring."""
    expected = (np.sort(vector).astype(np.float64) + 0.5) / 2.0 ** (8 * vector.itemsize)
    # The ring is discrete: half a step on either side, and the highest rank of equal values.
    ranks = np.arange(vector.size + 1) / vector.size
    distance = max(float((ranks[1:] - expected).max()), float((expected - ranks[:-1]).max()))
    half_step = 0.5 / 2.0 ** (8 * vector.itemsize)
    return distance < math.sqrt((LOG_CHANCE + math.log(2)) / (2 * vector.size)) + half_step


def uncorrelated(vector, lag):
    values = vector.astype(np.float64) / 2.0 ** (8 * vector.itemsize) - 0.5
    count = values.size - lag
    statistic = 12 * float(values[:-lag] @ values[lag:]) / math.sqrt(count)
    return abs(statistic) < math.sqrt(2 * (LOG_CHANCE + math.log(2)))


def failures_of(vector):
    """The names of the statistics that one vector fails."""
    octets = np.bincount(vector.view(np.uint8), minlength=2**8)
    cells = np.bincount(vector.view(np.uint16), minlength=2**16)
    lags = {1, 2, 3, AES_BLOCK_BYTES // vector.itemsize}
    lags |= {size // vector.itemsize for size in (CHUNK_BYTES, SEGMENT_BYTES) if size < vector.nbytes}
    outcomes = {
        "bytes": chi_square(octets),
        "values": chi_square(cells),
        "extreme bytes": no_extreme_cell(octets),
        "extreme values": no_extreme_cell(cells),
        "distribution": evenly_spread(vector),
    } | {f"correlation at {lag}": uncorrelated(vector, lag) for lag in lags}
    return {name for name, passed in outcomes.items() if not passed}


def battery(vectors, beginnings):
    """The names of the statistics that the masked vectors of one round, or the beginnings of many masks, fail."""
    failures = {name for vector in vectors for name in failures_of(vector)}
    for one, other in itertools.combinations(vectors, 2):
        failures |= {f"difference: {name}" for name in failures_of(one - other)}
    if len(set(beginnings)) < len(beginnings):
        failures.add("collisions")
    return failures


def masked_vectors(kind, masker=add_masks, ring_bits=32):
    """The masked vectors of one round of three sites that all hold the same input."""
    federation = Federation(
        3,
        dimension=VECTOR_BYTES * 8 // ring_bits,
        ring_bits=ring_bits,
        policy_changes={"max_magnitude": LARGEST[ring_bits]},
        client_masker=lambda _site: masker,
        inputs={},
    )
    value = {"zero": 0, "constant": 777, "largest": LARGEST[ring_bits], "smallest": -LARGEST[ring_bits]}[kind]
    for vector in federation.inputs.values():
        vector[:] = value % 2**ring_bits
    federation.keys()
    federation.shares()
    federation.masked()
    return [message.vector for message in federation.records["input"].values()]


def beginnings_of_masks(masker, count=SEEDS):
    """The first eight bytes of a mask for each of many secrets drawn afresh; ends early at the first that recurs."""
    shares_hash = hashlib.sha256(b"shares").digest()
    beginnings, seen = [], set()
    for _ in range(count):
        secrets = AttemptSecrets(11, os.urandom)
        secrets.draw_self_mask()
        vector = np.zeros(8, np.uint8).view(np.uint32)
        masker(vector, secrets.mask_jobs((), shares_hash), cipher="aes-256-ctr")
        beginnings.append(vector.tobytes())
        if beginnings[-1] in seen:
            break
        seen.add(beginnings[-1])
    return beginnings


@pytest.fixture(scope="module")
def beginnings():
    return beginnings_of_masks(add_masks)


def test_a_correct_run_fails_less_than_once_in_a_million():
    vectors_tested = 3 + 3  # of a round, and their differences
    rounds = len(KINDS) * len(LARGEST) + 1
    comparisons = COMPARISONS_OF_A_VECTOR * vectors_tested * rounds
    assert comparisons * math.exp(-LOG_CHANCE) + SEEDS**2 / 2**65 < 1e-6
    assert math.exp(-(SEEDS**2) / 2**33) < 1e-6


@pytest.mark.parametrize("ring_bits", LARGEST)
@pytest.mark.parametrize("kind", KINDS)
def test_masked_vectors_are_uniform_whatever_is_in_them(kind, ring_bits, beginnings):
    assert battery(masked_vectors(kind, ring_bits=ring_bits), beginnings) == set()


def test_what_the_server_and_a_colluder_cannot_take_out_is_uniform(beginnings):
    jobs_of_11 = []

    def recording(vector, jobs, *, cipher):
        jobs_of_11.append(jobs)
        add_masks(vector, jobs, cipher=cipher)

    vectors = masked_vectors("constant", recording)
    # The server recovers the self mask; site 13 knows the mask it shares with 11, which comes last.
    own, _with_12, with_13 = jobs_of_11[0]
    left = vectors[0].copy()
    add_masks(left, [(seed, not subtract) for seed, subtract in (own, with_13)])
    assert battery([left], beginnings) == set()


def real_valued(vector, jobs, *, cipher):
    """A broken masker that draws real numbers and rounds them."""
    for seed, subtract in jobs:
        noise = np.random.Generator(np.random.Philox(int.from_bytes(seed[:16], "big"))).standard_normal(vector.size)
        mask = np.rint(noise * 2.0 ** (8 * vector.itemsize - 5)).astype(np.int64).astype(vector.dtype)
        (np.subtract if subtract else np.add)(vector, mask, out=vector)


def single_precision(vector, jobs, *, cipher):
    """A broken masker that draws from the whole ring, but in floating point of 24 bits."""
    for seed, subtract in jobs:
        generator = np.random.Generator(np.random.Philox(int.from_bytes(seed[:16], "big")))
        scaled = generator.random(vector.size, dtype=np.float32) * np.float32(2.0 ** (8 * vector.itemsize))
        mask = scaled.astype(np.int64).astype(vector.dtype)
        (np.subtract if subtract else np.add)(vector, mask, out=vector)


def one_seed_for_all(vector, jobs, *, cipher):
    """A broken masker that masks every vector with the same seed."""
    add_masks(vector, [(bytes(32), False)], cipher=cipher)


def modulo_one_less(vector, jobs, *, cipher):
    """A broken masker that computes modulo 2^b - 1."""
    total = vector.astype(np.int64)
    for seed, subtract in jobs:
        mask = np.zeros_like(vector)
        add_masks(mask, [(seed, False)], cipher=cipher)
        total += -mask.astype(np.int64) if subtract else mask
    vector[:] = total % (2 ** (8 * vector.itemsize) - 1)


def folded_seeds(vector, jobs, *, cipher):
    """A broken masker that uses 32 bits of each seed."""
    add_masks(vector, [(seed[:4] * 8, subtract) for seed, subtract in jobs], cipher=cipher)


def repeating(vector, jobs, *, cipher):
    """A broken masker that starts the keystream anew in every chunk."""
    size = CHUNK_BYTES // vector.itemsize
    for start in range(0, vector.size, size):
        add_masks(vector[start : start + size], jobs, cipher=cipher)


def no_mask(vector, jobs, *, cipher):
    """A broken masker that masks nothing."""


@pytest.mark.parametrize(
    ("masker", "ring_bits", "caught_by"),
    [
        (real_valued, 32, {"bytes", "values", "extreme values", "distribution"}),
        (single_precision, 32, {"bytes", "values"}),
        (one_seed_for_all, 32, {"difference: bytes", "difference: values", "difference: distribution"}),
        (modulo_one_less, 16, {"extreme values"}),
        (repeating, 32, {f"correlation at {CHUNK_BYTES // 4}"}),
        (no_mask, 32, {"bytes", "values", "difference: bytes"}),
    ],
)
def test_a_broken_mask_fails_the_same_battery(masker, ring_bits, caught_by, beginnings):
    assert caught_by <= battery(masked_vectors("constant", masker, ring_bits), beginnings)


def test_one_seed_for_two_vectors_is_seen_only_in_their_difference(beginnings):
    failures = battery(masked_vectors("constant", one_seed_for_all), beginnings)
    assert failures
    assert all(name.startswith("difference") for name in failures)


def test_seeds_of_32_bits_are_seen_only_by_their_collisions():
    beginnings = beginnings_of_masks(folded_seeds)
    assert len(beginnings) < SEEDS
    assert battery(masked_vectors("zero", folded_seeds), beginnings) == {"collisions"}


def test_every_mask_is_stretched_from_its_own_256_bit_seed():
    seeds = []

    def recording(vector, jobs, *, cipher):
        seeds.extend(seed for seed, _ in jobs)
        add_masks(vector, jobs, cipher=cipher)

    Federation(4, client_masker=lambda _site: recording).run()
    assert all(len(seed) == 32 for seed in seeds)
    assert len(seeds) == 16  # a self mask and three pair masks at each of four sites
    assert len(set(seeds)) == 4 + 6
    assert len({seed[i : i + 4] for seed in set(seeds) for i in (0, 28)}) == 20
