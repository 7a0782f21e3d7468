"""The ring of a study whose noise is distributed: the grid, the room for noise, and what is refused."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from fedmvp.errors import ExitCode, UserError
from fedmvp.study.noise_shares import MAX_CLAMP, OVERFLOW_BITS, distributed_ring, largest_influence
from fedmvp.study.policy import StudyPolicy, parse_policy
from fedmvp.study.templates import policy_template
from privacy.distributed import noisy_sum, noisy_update, share_sigma
from privacy.mechanism import MAX_ROUNDING_INFLATION, MIN_LOCAL_DEVIATION, DistributedGaussian, Rounding
from secure_agg.errors import PolicyError
from secure_agg.policy import MAX_FRACTION_BITS
from secure_agg.ring import decode_sum, encode_integers

RECORD = {
    'mode = "record-local" ': 'mode = "record-distributed" ',
    "local_steps = 5": "local_steps = 1",
    "ring_bits = 32": "ring_bits = 64",
}
SILO = {
    'mode = "record-local" ': 'mode = "silo-distributed" ',
    'unit = "record"': 'unit = "site"',
    "ring_bits = 32": "ring_bits = 64",
}
DIMENSIONS = [1, 2, 1000, 4096, 1_000_000]


def text_of(changes: dict[str, str]) -> str:
    text = policy_template("run-1")
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def policy_of(base: dict[str, str], **more: str) -> StudyPolicy:
    """A policy; keyword arguments are keys of the template with the value to give them."""
    lines = text_of(base).splitlines()
    for key, value in more.items():
        (at,) = [number for number, line in enumerate(lines) if line.startswith(f"{key} = ")]
        lines[at] = f"{key} = {value}"
    return parse_policy("\n".join(lines).encode())


def no_noise(size: int, _sigma: Fraction, _randomness: object) -> np.ndarray:
    return np.zeros(size, dtype=np.int64)


@pytest.mark.parametrize("base", [RECORD, SILO], ids=["record", "silo"])
@pytest.mark.parametrize("dimension", DIMENSIONS)
@pytest.mark.parametrize("norm", ["0.5", "1.0", "3e-3"])
def test_the_grid_is_the_coarsest_on_which_rounding_adds_no_more_than_is_charged(
    base: dict[str, str], dimension: int, norm: str
) -> None:
    policy = policy_of(base, max_grad_norm=norm)
    ring = distributed_ring(policy, dimension)
    shares = ring.noise_shares

    assert shares.grid == largest_influence(policy) * 2.0**ring.secure_sum.fraction_bits
    assert math.sqrt(dimension) <= MAX_ROUNDING_INFLATION * shares.grid
    assert math.sqrt(dimension) > MAX_ROUNDING_INFLATION * shares.grid / 2


@pytest.mark.parametrize("base", [RECORD, SILO], ids=["record", "silo"])
@pytest.mark.parametrize("dimension", DIMENSIONS)
@pytest.mark.parametrize(("max_cohort", "noise"), [("4", "0.3"), ("32", "2.0"), ("5000", "40.0")])
def test_a_sum_of_vectors_at_their_limits_never_wraps_around(
    base: dict[str, str], dimension: int, max_cohort: str, noise: str
) -> None:
    ring = distributed_ring(policy_of(base, max_cohort=max_cohort, noise_multiplier=noise), dimension).secure_sum

    assert ring.max_cohort * ring.max_magnitude < 2 ** (ring.ring_bits - 1)


def overflow_bound(room: int, sigma: float, dimension: int) -> float:
    """Chance that any of the coordinates of discrete Gaussian noise is larger than its room."""
    return 2 * dimension * math.exp(-((room / sigma) ** 2) / 2)


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_the_largest_share_of_any_cohort_has_room_and_with_half_of_it_the_same_check_fails(dimension: int) -> None:
    policy = policy_of(RECORD)
    ring = distributed_ring(policy, dimension)
    parameters = policy.privacy_parameters(dimension)
    room = ring.secure_sum.max_magnitude - ring.noise_shares.clamp
    largest = max(
        float(share_sigma(parameters, ring.secure_sum.threshold(n) - ring.secure_sum.colluders))
        for n in range(ring.secure_sum.min_cohort, ring.secure_sum.max_cohort + 1)
    )

    assert overflow_bound(room, largest, dimension) <= 2.0**-OVERFLOW_BITS
    assert overflow_bound(room // 2, largest, dimension) > 2.0**-OVERFLOW_BITS


@pytest.mark.parametrize("n", [3, 4, 7, 32])
def test_the_guaranteed_survivors_of_every_cohort_add_the_promised_noise_together(n: int) -> None:
    policy = policy_of(RECORD)
    parameters, ring = policy.privacy_parameters(1000), policy.secure_sum(1000)
    survivors = ring.threshold(n) - ring.colluders
    promised = Fraction(policy.privacy.noise_multiplier) * Fraction(parameters.noise_shares.grid)

    assert survivors * share_sigma(parameters, survivors) ** 2 >= promised**2
    assert (survivors - 1) * share_sigma(parameters, survivors) ** 2 < promised**2  # one fewer would break it


@pytest.mark.parametrize(
    ("base", "rounding", "sample_rate"),
    [(RECORD, Rounding.DITHERED, 0.1), (SILO, Rounding.CONDITIONAL, 1.0)],
    ids=["record", "silo"],
)
def test_a_round_is_charged_for_the_shares_of_the_largest_cohort_on_the_rings_own_grid(
    base: dict[str, str], rounding: Rounding, sample_rate: float
) -> None:
    policy = policy_of(base)
    ring, mechanism = policy.secure_sum(1000), policy.privacy_parameters(1000).mechanism

    assert isinstance(mechanism, DistributedGaussian)
    assert mechanism.shares == ring.threshold(32) - ring.colluders == 16
    assert mechanism.grid == largest_influence(policy) * 2.0**ring.fraction_bits
    assert (mechanism.dimension, mechanism.steps, mechanism.noise_multiplier) == (1000, 1, 2.0)
    assert (mechanism.rounding, mechanism.sample_rate) == (rounding, sample_rate)
    assert mechanism.local_deviation >= MIN_LOCAL_DEVIATION


@pytest.mark.parametrize("base", [RECORD, SILO], ids=["record", "silo"])
@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_server_and_site_compute_the_same_ring_from_the_same_document(base: dict[str, str], dimension: int) -> None:
    document = text_of(base).encode()
    server, site = parse_policy(document), parse_policy(document)

    assert server.secure_sum(dimension) == site.secure_sum(dimension)
    assert server.privacy_parameters(dimension) == site.privacy_parameters(dimension)
    assert server.secure_sum(dimension) == distributed_ring(site, dimension).secure_sum


def test_everything_but_the_range_of_the_ring_is_that_of_a_study_without_distributed_noise() -> None:
    same = {"local_steps = 5": "local_steps = 1", "ring_bits = 32": "ring_bits = 64"}
    plain, noisy = policy_of(same).secure_sum(1000), policy_of(RECORD).secure_sum(1000)

    for name in ("colluders", "min_cohort", "min_honest", "max_cohort", "dimension", "ring_bits", "max_weight"):
        assert getattr(plain, name) == getattr(noisy, name)
    assert (plain.dropout_permille, plain.mask_cipher) == (noisy.dropout_permille, noisy.mask_cipher)
    assert (plain.fraction_bits, plain.max_magnitude) != (noisy.fraction_bits, noisy.max_magnitude)


def test_a_sum_of_clipped_gradients_is_decoded_as_the_learning_rate_over_the_batch_size_times_itself() -> None:
    policy = policy_of(RECORD)
    parameters, ring = policy.privacy_parameters(64), policy.secure_sum(64)
    clipped = np.random.default_rng(0).uniform(-3, 3, 64)
    on_grid = noisy_sum(clipped, parameters, 2, noise=no_noise)
    decoded = decode_sum(ring, encode_integers(ring, on_grid), 1).values

    step = policy.training.learning_rate / policy.privacy.expected_batch_size
    assert np.abs(decoded - step * clipped).max() <= 2.0**-ring.fraction_bits
    assert np.abs(decoded - 2 * step * clipped).max() > 2.0**-ring.fraction_bits  # the check sees a wrong unit


def test_a_sites_update_is_clipped_as_a_whole_and_decoded_as_itself() -> None:
    policy = policy_of(SILO)
    parameters, ring = policy.privacy_parameters(64), policy.secure_sum(64)
    norm = policy.privacy.max_grad_norm
    for length, expected in ((0.5 * norm, 0.5), (7 * norm, 1.0)):
        update = np.random.default_rng(1).normal(size=64)
        update *= length / np.linalg.norm(update)
        on_grid = noisy_update(update, parameters, 2, noise=no_noise)
        decoded = decode_sum(ring, encode_integers(ring, on_grid), 1).values
        wanted = update * (expected * norm / length)

        assert np.abs(decoded - wanted).max() <= 2.0**-ring.fraction_bits


def test_a_value_beyond_the_range_is_cut_before_the_noise_and_not_after() -> None:
    policy = policy_of(RECORD)
    parameters, ring = policy.privacy_parameters(64), policy.secure_sum(64)
    far = np.full(64, 1e12)
    silent = noisy_sum(far, parameters, 2, noise=no_noise)
    noisy = noisy_sum(far, parameters, 2)

    assert (silent == parameters.noise_shares.clamp).all()
    assert len(set(noisy.tolist())) > 32
    assert encode_integers(ring, noisy).shape == (64,)


@pytest.mark.parametrize(
    ("changes", "dimension", "reason"),
    [
        ({"ring_bits": "16"}, 1000, "no room for 32 vectors"),
        ({"ring_bits": "32"}, 1_000_000, "set ring_bits = 64"),
        ({"value_range": "1e-8"}, 1, "below one step of the grid"),
        ({"learning_rate": "1e-9", "value_range": "1.0"}, 1000, "too large for exact rounding"),
        ({"learning_rate": "1e-30", "value_range": "1.0"}, 1000, "too small for any grid"),
    ],
)
def test_a_ring_that_does_not_serve_is_refused_with_the_key_to_change(
    changes: dict[str, str], dimension: int, reason: str
) -> None:
    lines = {key: f"{key} = {value}" for key, value in changes.items()}
    text = "\n".join(
        next((line for key, line in lines.items() if old.startswith(f"{key} = ")), old)
        for old in text_of(RECORD).splitlines()
    )
    with pytest.raises((PolicyError, UserError)) as caught:
        parse_policy(text.encode()).secure_sum(dimension)

    assert reason in str(caught.value)
    assert any(key in str(caught.value) for key in ("ring_bits", "value_range", "learning_rate"))


def test_the_finest_grid_and_the_largest_clamp_are_those_of_exact_arithmetic() -> None:
    ring = distributed_ring(policy_of(RECORD, learning_rate="1e-8", value_range="1e-4"), 1000)

    assert ring.secure_sum.fraction_bits <= MAX_FRACTION_BITS
    assert ring.noise_shares.clamp <= MAX_CLAMP
    assert np.spacing(np.float64(MAX_CLAMP)) / 2 == 2.0**-10


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"local_steps = 1": "local_steps = 2"}, "record-distributed takes exactly one step a round, not 2"),
        ({'unit = "record"': 'unit = "site"'}, "a site is the unit of silo-distributed"),
        ({"noise_multiplier = 2.0": "noise_multiplier = 0.0"}, "needs noise_multiplier above 0"),
        ({"noise_multiplier = 2.0": "noise_multiplier = 0.1"}, "at least 0.3"),
        ({"epsilon_max = 8.0": "epsilon_max = inf"}, "finite epsilon_max"),
    ],
)
def test_a_distributed_study_that_could_not_be_accounted_for_is_refused_when_it_is_loaded(
    changes: dict[str, str], reason: str
) -> None:
    text = text_of(RECORD)
    for old, new in changes.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    with pytest.raises(UserError) as caught:
        parse_policy(text.encode())

    assert reason in caught.value.what
    assert caught.value.exit_code is ExitCode.CONFIG


def test_several_local_steps_are_what_a_silo_distributed_study_may_have() -> None:
    assert policy_of(SILO).privacy_parameters(10).steps_per_round == 5
    with pytest.raises(UserError, match="a site is the unit of silo-distributed"):
        parse_policy(text_of({**SILO, 'unit = "record"': 'unit = "patient"'}).encode())
