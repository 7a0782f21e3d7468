"""Integer noise follows the discrete Gaussian law, to the last bit that is claimed."""

import bisect
import hashlib
import math
import subprocess
import sys
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import chisquare, norm, poisson

from privacy import discrete_gaussian as module
from privacy.discrete_gaussian import DiscreteGaussian, _cumulative, _exp_bounds, _LazyUniform, _Rejection, _table
from privacy.noise import gaussian
from tests.privacy.checks import SURPRISE

Draws = npt.NDArray[np.int64]

FORK_AND_PRINT = """
import hashlib, os
from privacy.discrete_gaussian import DiscreteGaussian
laws = DiscreteGaussian(40), DiscreteGaussian(1e6)
digest = lambda: [hashlib.sha256(law.sample(64).tobytes()).hexdigest() for law in laws]
digest()
for _ in range(3):
    if os.fork() == 0:
        print(*digest(), flush=True)
        os._exit(0)
    os.wait()
print(*digest())
"""


class Words:
    """A stream of known words."""

    def __init__(self, *words: int) -> None:
        self._left = list(words)

    def words(self, count: int) -> npt.NDArray[np.uint64]:
        taken, self._left = self._left[:count], self._left[count:]
        assert len(taken) == count
        return np.array(taken, dtype=np.uint64)


def _bins(sigma: float, size: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Upper ends of bins and the mass of each, every one expected at least fifty times."""
    if sigma > 100:  # a sum over whole bins and the integral between half-integers differ by about 1 / sigma^2
        ends = np.unique(np.floor(norm.ppf(np.arange(1, 400) / 400) * sigma).astype(np.int64))
        cumulative = norm.cdf((ends + 0.5) / sigma)
    else:
        support = np.arange(-math.ceil(12 * sigma) - 2, math.ceil(12 * sigma) + 3)
        weights = np.exp(-(support**2) / (2 * sigma**2))
        mass = np.cumsum(weights / weights.sum())
        chosen, last = [], 0.0
        for i, below in enumerate(mass):
            if below - last >= 50 / size and 1 - below >= 50 / size:
                chosen.append(i)
                last = below
        ends, cumulative = support[chosen], mass[chosen]
    return ends, np.diff(np.concatenate([[0.0], cumulative, [1.0]]))


def check_law(draws: Draws, sigma: float) -> None:
    """Assert spread, shape, tail and independence of draws of the discrete Gaussian law."""
    size = draws.size
    support = np.arange(-40, 41)
    weights = np.exp(-(support**2) / (2 * sigma**2))
    deviation = sigma if sigma > 2 else math.sqrt((weights * support**2).sum() / weights.sum())
    fourth = 3 * sigma**4 if sigma > 2 else (weights * support**4).sum() / weights.sum()
    spread = math.sqrt((fourth / deviation**4 - 1) / size) / 2
    assert abs(draws.mean()) < 6.2 * deviation / math.sqrt(size), "mean is not zero"
    assert abs(draws.std() / deviation - 1) < 6.2 * spread, "wrong standard deviation"
    ends, mass = _bins(sigma, size)
    counts = np.bincount(np.searchsorted(ends, draws, side="left"), minlength=len(mass))
    assert chisquare(counts, mass * size).pvalue > SURPRISE, "wrong law"
    for beyond in (4, 6):
        tail = weights[np.abs(support) > beyond * sigma].sum() / weights.sum() if sigma <= 2 else 2 * norm.sf(beyond)
        assert poisson.sf((np.abs(draws) > beyond * sigma).sum() - 1, 1.2 * size * tail) > SURPRISE, "heavy tail"
    for lag in (1, 2, 8192, 12288):
        first, second = draws[:-lag].astype(np.float64), draws[lag:].astype(np.float64)
        for one, other in ((first, second), (np.abs(first), np.abs(second))):
            assert abs(np.corrcoef(one, other)[0, 1]) < 6.2 / math.sqrt(size - lag), "draws depend on each other"


def _masses(sigma: Fraction, reach: int) -> list[Decimal]:
    """The law on 0 to ``reach``, to the digits of the context."""
    variance = Decimal(sigma.numerator) ** 2 / Decimal(sigma.denominator) ** 2
    weights = [(-(Decimal(x) ** 2) / (2 * variance)).exp() for x in range(reach + 1)]
    whole = 2 * sum(weights) - 1
    return [weight / whole for weight in weights]


def _total_variation(thresholds: list[int], sigma: Fraction) -> Fraction:
    """Between the law of a table of words and the true one, to sixty digits."""
    tail = len(thresholds) // 2
    with localcontext() as context:
        context.prec = 60
        reach = math.ceil(15 * sigma) + 3
        masses = _masses(sigma, reach)
        edges = [0, *thresholds, 2**64]
        drawn = {x: Decimal(edges[x + tail + 1] - edges[x + tail]) / 2**64 for x in range(-tail, tail + 1)}
        apart = (abs(drawn.get(x, Decimal(0)) - masses[abs(x)]) for x in range(-reach, reach + 1))
        return Fraction(sum(apart, start=Decimal(0)) / 2)


@pytest.mark.parametrize("sigma", [0.5, 1, 4, 64, 1e6, 2**40])
def test_draws_follow_the_law(sigma: float) -> None:
    check_law(DiscreteGaussian(sigma).sample(1_000_000), sigma)


@pytest.mark.parametrize("sigma", [2, 4, 5.5, 64])
def test_rejection_gives_the_same_law_where_every_integer_can_be_counted(sigma: float) -> None:
    check_law(_Rejection.of(Fraction(sigma)).sample(500_000, module.KeyStream(module.os.urandom, 2**15)), sigma)


@pytest.mark.parametrize(
    ("sigma", "message"), [(0.5, "wrong law|standard deviation"), (1, "wrong law|standard deviation")]
)
def test_control_a_rounded_continuous_gaussian_fails_the_same_check(sigma: float, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_law(np.rint(gaussian(1_000_000, sigma)).astype(np.int64), sigma)


@pytest.mark.parametrize("sigma", [1, 64, 1e6])
def test_control_noise_one_per_cent_off_fails_the_same_check(sigma: float) -> None:
    for wrong in (1.01, 0.99):
        with pytest.raises(AssertionError, match="standard deviation"):
            check_law(DiscreteGaussian(wrong * sigma).sample(1_000_000), sigma)


def test_control_heavy_tails_shifts_and_repeats_fail_the_same_check() -> None:
    draws = DiscreteGaussian(64).sample(1_000_000)
    heavy = draws.copy()
    heavy[:20] = 7 * 64
    with pytest.raises(AssertionError, match="heavy tail"):
        check_law(heavy, 64)
    with pytest.raises(AssertionError, match="mean"):
        check_law(draws + 1, 64)
    repeated = draws.copy()
    repeated[12288:36864] = np.tile(draws[:12288], 2)
    with pytest.raises(AssertionError, match="depend"):
        check_law(repeated, 64)


@pytest.mark.parametrize("sigma", [Fraction(1, 2), Fraction(1), Fraction(4), Fraction(64), Fraction(1000.1)])
def test_a_table_of_words_is_as_close_to_the_law_as_its_words_allow(sigma: Fraction) -> None:
    thresholds = _cumulative(sigma, 64)
    assert len(thresholds) < 21 * sigma + 12
    assert _total_variation(thresholds, sigma) <= Fraction(len(thresholds) + 1, 2**64)


def test_control_a_table_built_in_float64_fails_the_same_bound() -> None:
    sigma = Fraction(64)
    entries = len(_cumulative(sigma, 64)) + 1
    tail = entries // 2
    weights = np.exp(-(np.arange(-tail, tail + 1.0) ** 2) / (2 * 64.0**2))
    cumulative = np.minimum(np.cumsum(weights / weights.sum())[:-1], 1 - 2.0**-53)
    words = [int(Fraction(float(c)) * 2**64) for c in cumulative]
    assert _total_variation(words, sigma) > 100 * Fraction(entries, 2**64)


@pytest.mark.parametrize("sigma", [Fraction(1, 2), Fraction(4), Fraction(101, 10)])
def test_a_word_on_an_entry_of_the_table_is_decided_by_further_bits(sigma: Fraction) -> None:
    """On both sides of the true cumulative distribution, to 2^-118: a bare table would draw one value for both."""
    table = _table(sigma)
    with localcontext() as context:
        context.prec = 80
        masses = _masses(sigma, math.ceil(25 * sigma) + 3)
        below = sum(masses[table.tail + 1 :], start=Decimal(0))
        for x in range(-table.tail, table.tail):
            below += masses[abs(x)]
            word, rest = divmod(int(below * 2**128), 2**64)
            if not 2**10 < rest < 2**64 - 2**10:
                continue
            assert table.sample(1, Words(word, rest - 2**10)).tolist() == [x]  # type: ignore[arg-type]
            assert table.sample(1, Words(word, rest + 2**10)).tolist() == [x + 1]  # type: ignore[arg-type]


def test_control_the_first_word_alone_does_not_decide_these() -> None:
    table = _table(Fraction(4))
    entries = [int(t) for t in table.thresholds]
    assert {bisect.bisect_right(entries, word) for word in entries} == set(range(1, len(entries) + 1))


@pytest.mark.parametrize("sigma", [Fraction(1, 20), Fraction(1, 2), Fraction(4)])
@pytest.mark.parametrize("end", [0, 2**64 - 1])
def test_the_law_has_no_last_value(sigma: Fraction, end: int) -> None:
    """The first word is all zeros or all ones, as is the beginning of the second: beyond the end of the table."""
    table = _table(sigma)
    second = 2**20 if end == 0 else 2**64 - 1 - 2**20
    draw = int(table.sample(1, Words(end, second))[0])  # type: ignore[arg-type]
    with localcontext() as context:
        context.prec = 80
        masses = _masses(sigma, math.ceil(25 * sigma) + 12)
        left = (Decimal(2) ** 20 + Decimal("0.5")) / 2**128  # the mass further out
        tails = [sum(masses[x:], start=Decimal(0)) for x in range(len(masses) - 1)]
    expected = max(x for x, tail in enumerate(tails) if tail > left)
    assert draw == (-expected if end == 0 else expected)
    assert sigma < Fraction(1, 2) or expected > table.tail


@pytest.mark.parametrize("sigma", [0.05, 0.5, 4, 1024])
def test_the_guide_of_a_table_changes_no_draw(sigma: float) -> None:
    table = _table(Fraction(sigma))
    plain = [int(t) for t in table.thresholds]
    cells = [i << 48 for i in range(1, 2**16)]
    words = [2, 3, 2**64 - 3, *(t + 4 for t in plain), *(t - 4 for t in plain), *cells, *(c - 1 for c in cells)]
    closed = [w for w in words if 2 <= w < 2**64 - 2 and bisect.bisect(plain, w - 2) == bisect.bisect(plain, w + 1)]
    assert len(closed) > 2**16
    parts = (closed[i : i + 1000] for i in range(0, len(closed), 1000))
    drawn = np.concatenate([table.sample(len(part), Words(*part)) for part in parts])  # type: ignore[arg-type]
    assert drawn.tolist() == [bisect.bisect_right(plain, word) - table.tail for word in closed]


@pytest.mark.parametrize("exponent", ["0", "1/7", "1", "44", "1000003/65536", "999/10", "63", "1/1152921504606846976"])
@pytest.mark.parametrize("bits", [16, 64, 80, 300])
def test_the_exponential_is_bounded_from_both_sides(exponent: str, bits: int) -> None:
    value = Fraction(exponent)
    low, high = _exp_bounds(value, bits)
    with localcontext() as context:
        context.prec = 150
        true = (-Decimal(value.numerator) / value.denominator).exp() * 2**bits
        assert low <= true <= high
    assert high - low <= 2


@pytest.mark.parametrize("sigma", [2, 3, 1025, 2**20 * 1.41421356, 2**20 * 1.41421357, 2**28, 2**29.3, 2**40, 2**48])
def test_the_first_pass_of_a_rejection_stays_within_its_margin(sigma: float) -> None:
    worst = _worst_first_pass(sigma)
    assert worst <= 1600 < module._MARGIN


def test_control_a_margin_of_a_tenth_would_be_passed() -> None:
    assert _worst_first_pass(2**40) > module._MARGIN / 10


def _worst_first_pass(sigma: float) -> float:
    """Largest error of the first pass in units of 2^-32."""
    law = _Rejection.of(Fraction(sigma))
    rng = np.random.default_rng(5)
    top = 2**law.shift - 1
    block = np.concatenate([rng.integers(0, 4, 1500), np.arange(16), np.arange(16)]).astype(np.uint8)
    remainder = np.concatenate([rng.integers(0, top, 1500, endpoint=True), [0] * 16, [top] * 16]).astype(np.uint64)
    found = law._keep_probability(block, remainder)
    errors = []
    for v, u, p in zip(block.tolist(), remainder.tolist(), found.tolist(), strict=True):
        low, high = _exp_bounds(law.exponent(u, v), 40)
        errors.append(max(abs(p - low / 256), abs(p - high / 256)))
    return max(errors)


def test_one_trial_has_the_probability_of_the_two_of_the_paper() -> None:
    for sigma, remainder, block in ((Fraction(5), 3, 2), (Fraction(10001, 7), 700, 0), (Fraction(2**40), 2**39, 5)):
        law = _Rejection.of(sigma)
        t = 2**law.shift
        y = remainder + t * block
        assert law.exponent(remainder, block) == Fraction(remainder, t) + (y - sigma**2 / t) ** 2 / (2 * sigma**2) >= 0


@pytest.mark.parametrize("word", [0, 1, 12345, 2**64 - 1])
def test_a_geometric_draw_far_in_the_tail_is_the_exact_inverse(word: int) -> None:
    """The 16 known bits are zero and the next 64 are ``word``, then ones."""
    uniform = _LazyUniform(0, 16, Words(word, 2**64 - 1))  # type: ignore[arg-type]
    blocks = 0
    while uniform.is_below_exp(Fraction(blocks + 1)):
        blocks += 1
    assert blocks == math.floor(-math.log((word + 1 - 2**-50) / 2**80))


def test_the_bits_left_open_are_decided_by_further_bits() -> None:
    low, _ = _exp_bounds(Fraction(1), 80)
    for offset, below in ((-1, True), (3, False)):
        prefix, rest = divmod(low + offset, 2**64)
        assert _LazyUniform(prefix, 16, Words(rest)).is_below_exp(Fraction(1)) is below  # type: ignore[arg-type]


def test_every_candidate_that_the_first_pass_leaves_open_is_settled_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MARGIN", 2**31)  # half of all candidates are now open
    check_law(_Rejection.of(Fraction(4)).sample(20_000, module.KeyStream(module.os.urandom, 2**15)), 4)


def test_the_sum_of_shares_has_the_law_of_the_whole() -> None:
    total = sum(DiscreteGaussian(8).sample(1_000_000) for _ in range(9))
    check_law(np.asarray(total), 24)


def test_control_shares_from_one_key_do_not() -> None:
    total = sum(DiscreteGaussian(8).sample(100_000, lambda size: bytes(range(size))) for _ in range(9))
    with pytest.raises(AssertionError, match="standard deviation"):
        check_law(np.asarray(total), 24)


@pytest.mark.parametrize("sigma", [16, 1e6])
def test_every_call_takes_a_whole_fresh_key(sigma: float) -> None:
    asked: list[int] = []

    def source(size: int) -> bytes:
        asked.append(size)
        return hashlib.sha256(str(len(asked)).encode()).digest()

    law = DiscreteGaussian(sigma)
    assert not np.array_equal(law.sample(50, source), law.sample(50, source))
    assert asked == [32, 32]
    assert not np.array_equal(law.sample(50), law.sample(50))


def test_noise_is_fresh_in_forked_and_in_newly_started_processes() -> None:
    digests: list[str] = []
    for _ in range(2):
        run = subprocess.run([sys.executable, "-c", FORK_AND_PRINT], capture_output=True, text=True, check=True)
        digests += run.stdout.split()
    assert len(digests) == len(set(digests)) == 16


@pytest.mark.parametrize("sigma", [0.01, 3, 5000.0])
@pytest.mark.parametrize("size", [0, 1, 12288, 24577])
def test_any_size_can_be_drawn(sigma: float, size: int) -> None:
    draws = DiscreteGaussian(sigma).sample(size)
    assert (draws.shape, draws.dtype) == ((size,), np.int64)


def test_a_float_stands_for_its_exact_value() -> None:
    assert DiscreteGaussian(0.1).sigma == Fraction(0.1) != Fraction(1, 10)
    assert DiscreteGaussian(Fraction(1, 10)).sigma == Fraction(1, 10)


def test_rejection_begins_above_the_tables() -> None:
    assert isinstance(DiscreteGaussian(1024)._law, module._Table)
    assert isinstance(DiscreteGaussian(Fraction(1024) + Fraction(1, 10**9))._law, _Rejection)
    with pytest.raises(ValueError, match="at least 2"):
        _Rejection.of(Fraction(1))


@pytest.mark.parametrize("sigma", [0, -1.0, float("nan"), float("inf"), 2**48 + 1])
def test_a_sigma_that_is_no_size_is_refused(sigma: float) -> None:
    with pytest.raises(ValueError, match="sigma"):
        DiscreteGaussian(sigma)


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(ValueError, match="size"):
        DiscreteGaussian(3).sample(-1)
