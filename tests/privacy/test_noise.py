"""The noise is Gaussian, of the stated size, and never the same twice."""

import hashlib
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy.stats import kstest

from privacy import noise
from privacy.noise import gaussian
from tests.privacy.checks import check_gaussian

FORK_AND_PRINT = """
import hashlib, os, numpy
from privacy.noise import gaussian
digest = lambda: hashlib.sha256(gaussian(64, 1.0).tobytes()).hexdigest()
gaussian(8, 1.0)
for _ in range(3):
    sys_out = os.fork()
    if sys_out == 0:
        print(digest(), flush=True)
        os._exit(0)
    os.wait()
print(digest())
"""


def test_draws_are_gaussian_with_the_stated_deviation() -> None:
    check_gaussian(gaussian(400_000, 3.25), 3.25)


def _check_million(draws: np.ndarray, deviation: float) -> None:
    """The bounds of the design, for fixed keys: one of ten thousand samples of the right law misses the second."""
    assert draws.size == 10**6
    assert abs(draws.std() / deviation - 1) < 0.01, "wrong standard deviation"
    assert kstest(draws / deviation, "norm").pvalue > 1e-4, "not normal"


@pytest.mark.parametrize("key", [bytes([number]) * 32 for number in range(3)], ids=["0", "1", "2"])
def test_of_a_million_draws_deviation_and_law_are_those_stated(key: bytes) -> None:
    _check_million(gaussian(10**6, 3.25, lambda size: key[:size]), 3.25)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (1.011, "standard deviation"),
        (0.989, "standard deviation"),
        ("cut at 2.5", "not normal"),
        ("coarse", "not normal"),
    ],
)
def test_control_a_million_draws_of_another_deviation_or_law_fail_the_same_check(
    broken: float | str, message: str
) -> None:
    draws = gaussian(10**6, 1.0, bytes)
    if isinstance(broken, float):
        draws *= broken
    elif broken == "cut at 2.5":
        draws = np.clip(draws, -2.5, 2.5)
        draws /= draws.std()
    else:
        draws = np.round(draws * 32) / 32
    with pytest.raises(AssertionError, match=message):
        _check_million(draws, 1.0)


def test_both_halves_of_the_transform_are_independent() -> None:
    draws = gaussian(400_000, 1.0)
    halves = np.corrcoef(draws[:200_000], draws[200_000:])[0, 1]
    squares = np.corrcoef(draws[:200_000] ** 2, draws[200_000:] ** 2)[0, 1]
    assert max(abs(halves), abs(squares)) < 5 / math.sqrt(200_000)


@pytest.mark.parametrize("broken", ["uniform", "half the deviation", "two per cent short", "coarse", "shifted"])
def test_control_noise_of_another_law_fails_the_same_check(broken: str) -> None:
    draws = gaussian(400_000, 1.0)
    wrong = {
        "uniform": np.random.default_rng(1).uniform(-math.sqrt(3), math.sqrt(3), 400_000),
        "half the deviation": draws / 2,
        "two per cent short": draws * 0.98,
        "coarse": np.round(draws * 4) / 4,
        "shifted": draws + 0.02,
    }[broken]
    with pytest.raises(AssertionError):
        check_gaussian(wrong, 1.0)


def test_a_known_key_gives_the_draws_of_a_plain_box_muller() -> None:
    key = bytes(range(32))
    draws = gaussian((3, 1), 2.0, lambda size: key[:size])
    stream = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor().update(bytes(32))
    uniform = [((int.from_bytes(stream[i : i + 8], "little") >> 11) + 1) / 2**53 for i in range(0, 32, 8)]
    first, second = (math.sqrt(-2 * math.log(u)) for u in uniform[:2])
    expected = [
        2 * first * math.cos(2 * math.pi * uniform[2]),
        2 * second * math.cos(2 * math.pi * uniform[3]),
        2 * first * math.sin(2 * math.pi * uniform[2]),
    ]
    assert draws.shape == (3, 1)
    assert draws[:, 0] == pytest.approx(expected, rel=1e-12)


def _plain_box_muller(key: bytes, size: int) -> np.ndarray:
    """The same stream in blocks of 8192 pairs, through numpy's own cosine and sine."""
    encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    blocks = []
    for start in range(0, size, 16384):
        pairs = (min(16384, size - start) + 1) // 2
        whole = np.frombuffer(encryptor.update(bytes(16 * pairs)), dtype="<u8") >> np.uint64(11)
        radius = np.sqrt(-2 * np.log((whole[:pairs] + 1.0) / 2**53))
        angle = 2 * math.pi * whole[pairs:] / 2**53
        blocks += [radius * np.cos(angle), radius * np.sin(angle)]
    return np.concatenate(blocks)[:size]


@pytest.mark.parametrize("size", [1, 2, 16383, 16384, 16385, 50_001])
def test_every_block_of_a_long_vector_is_a_box_muller_of_fresh_words(size: int) -> None:
    key = bytes(range(32))
    draws = gaussian(size, 1.0, lambda count: key[:count])
    assert np.abs(draws - _plain_box_muller(key, size)).max() < 1e-14
    assert len(np.unique(draws)) == size


def test_control_a_shorter_polynomial_or_a_repeated_block_fails_the_same_comparison(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = bytes(range(32))
    plain = _plain_box_muller(key, 50_001)
    monkeypatch.setattr(noise, "_SINE", noise._SINE[:-1])
    assert np.abs(gaussian(50_001, 1.0, lambda count: key[:count]) - plain).max() > 1e-14
    repeated = np.tile(plain[:16384], 4)[:50_001]
    assert np.abs(repeated - plain).max() > 1e-14
    assert len(np.unique(repeated)) < 50_001


@pytest.mark.parametrize("deviation", [0.0, 1e-200, 1e200])
def test_extreme_deviations_only_scale_the_draws(deviation: float) -> None:
    key = bytes(range(32))
    draws = gaussian(5000, deviation, lambda count: key[:count])
    assert np.abs(draws - deviation * _plain_box_muller(key, 5000)).max() <= 1e-14 * deviation


def test_a_stream_refuses_more_words_than_it_was_made_for() -> None:
    with pytest.raises(ValueError, match="8 words"):
        noise.KeyStream(os.urandom, 8).words(9)


def test_the_smallest_uniform_does_not_become_an_infinite_draw() -> None:
    assert np.isfinite(gaussian(10_000, 1.0)).all()
    assert gaussian(0, 1.0).shape == (0,)


def test_every_call_takes_a_whole_fresh_key() -> None:
    asked: list[int] = []

    def source(size: int) -> bytes:
        asked.append(size)
        return hashlib.sha256(str(len(asked)).encode()).digest()

    assert not np.array_equal(gaussian(10, 1.0, source), gaussian(10, 1.0, source))
    assert asked == [32, 32]


def test_noise_is_fresh_in_forked_and_in_newly_started_processes() -> None:
    digests: list[str] = []
    for _ in range(2):
        run = subprocess.run([sys.executable, "-c", FORK_AND_PRINT], capture_output=True, text=True, check=True)
        digests += run.stdout.split()
    assert len(digests) == len(set(digests)) == 8


@pytest.mark.parametrize("deviation", [-1.0, float("nan"), float("inf")])
def test_a_deviation_that_is_no_size_is_refused(deviation: float) -> None:
    with pytest.raises(ValueError, match="standard_deviation"):
        gaussian(4, deviation)


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        gaussian(-1, 1.0)
