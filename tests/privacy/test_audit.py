"""The audit accuses a broken mechanism, and accuses a sound one no more often than its confidence permits."""

import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import cache
from itertools import product
from math import comb
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.stats import beta, binom, norm

from privacy import ADD_OR_REMOVE_ONE, Mode, PrivacyParameters, SubsampledGaussian, dpsgd, epsilon, gradient_sums
from privacy.audit import (
    audit_mechanism,
    audit_one_step,
    canaries,
    epsilon_lower_bound,
    epsilon_lower_bound_from_rates,
    membership,
    membership_attack,
)
from privacy.audit.bounds import p_value
from privacy.audit.canaries import guess_inclusions
from privacy.optimizer import NoisyOptimizer, Units
from privacy.sampling import PoissonSampler
from tests.privacy.checks import SURPRISE

CLAIMS_TWO = PrivacyParameters(
    mode=Mode.RECORD_LOCAL,
    unit="record",
    neighboring_relation=ADD_OR_REMOVE_ONE,
    sample_rate=0.064,
    noise_multiplier=3.005,
    max_grad_norm=0.5,
    expected_batch_size=64,
    steps_per_round=250,
    delta=1e-5,
)
ROUNDS = 2  # of 250 steps: epsilon 2.00 at delta 1e-5
CANARIES, GUESS_FRACTION = 1000, 0.5
ONE_STEP_CLAIMS_TWO = replace(CLAIMS_TWO, sample_rate=1.0, noise_multiplier=2.0)
CONFIDENCE = 0.95


class NoNoise(NoisyOptimizer):
    def add_noise(self) -> None:
        self.noise_multiplier = 0.0
        super().add_noise()


class NoClipping(NoisyOptimizer):
    def accumulate(self, batch_size: int, units: Units | None = None) -> None:
        self.max_grad_norm, bound = 1e12, self.max_grad_norm
        super().accumulate(batch_size, units)
        self.max_grad_norm = bound


class NoiseOverBatchSize(NoisyOptimizer):
    def add_noise(self) -> None:
        self.noise_multiplier, former = self.noise_multiplier / self.expected_batch_size, self.noise_multiplier
        super().add_noise()
        self.noise_multiplier = former


class ClipsRecordsOfPatients(NoisyOptimizer):
    def accumulate(self, batch_size: int, units: Units | None = None) -> None:
        super().accumulate(batch_size)


class TakesEveryUnit(PoissonSampler):
    def __init__(self, n_records: int, sample_rate: float) -> None:
        super().__init__(n_records, 1.0)


class OneNoiseForAllSteps(NoisyOptimizer):
    def __init__(self, optimizer: torch.optim.Optimizer, params: PrivacyParameters) -> None:
        frozen = np.random.default_rng(1).standard_normal(CANARIES)
        super().__init__(optimizer, params, lambda size, deviation: frozen[:size] * deviation)


BROKEN_STEPS = [NoNoise, NoClipping, NoiseOverBatchSize]


# One run with canaries. All 500 guesses right give a bound of 5.09, 497 of 4.15, and a bound above 2 takes 453. The
# sound mechanism has 324 +- 11 of them (4,000 simulations), records clipped where patients are promised 499.6 +- 0.6
# (never below 496), each other breakage all 500. So every assertion fails by bad luck less than once in a million runs.


@pytest.mark.parametrize("unit", ["record", "patient"])
def test_the_engine_is_not_accused(unit: str) -> None:
    params = replace(CLAIMS_TWO, unit=unit)
    report = audit_mechanism(params, ROUNDS, canaries=CANARIES, guess_fraction=GUESS_FRACTION)
    assert report.epsilon_claimed == pytest.approx(2.0, abs=0.005)
    assert report.epsilon_lower <= report.epsilon_claimed
    assert not report.contradicts_claim
    assert 250 <= report.correct < report.guesses  # the canaries do act on the update
    assert (report.canaries, report.guesses, report.delta, report.confidence) == (1000, 500, 1e-5, 0.95)
    assert (report.unit, report.neighboring_relation) == (unit, ADD_OR_REMOVE_ONE)
    assert report.epsilon_ceiling == pytest.approx(5.09, abs=0.005)


@pytest.mark.parametrize("broken", BROKEN_STEPS)
def test_control_an_engine_with_a_broken_step_is_accused(
    broken: type[NoisyOptimizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradient_sums, "NoisyOptimizer", broken)
    report = audit_mechanism(CLAIMS_TWO, ROUNDS, canaries=CANARIES, guess_fraction=GUESS_FRACTION)
    assert report.epsilon_lower >= 4
    assert report.contradicts_claim


def test_control_an_engine_that_takes_every_record_in_every_step_is_accused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dpsgd, "PoissonSampler", TakesEveryUnit)
    report = audit_mechanism(CLAIMS_TWO, ROUNDS, canaries=CANARIES, guess_fraction=GUESS_FRACTION)
    assert report.epsilon_lower >= 4


def test_control_clipping_records_where_patients_are_promised_is_accused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_sums, "NoisyOptimizer", ClipsRecordsOfPatients)
    params = replace(CLAIMS_TWO, unit="patient")
    report = audit_mechanism(params, ROUNDS, canaries=CANARIES, guess_fraction=GUESS_FRACTION)
    assert report.contradicts_claim


def test_the_unsafe_mode_shows_what_it_leaks_and_claims_nothing() -> None:
    unsafe = replace(CLAIMS_TWO, mode=Mode.UNSAFE_NO_DP, noise_multiplier=0.0)
    report = audit_mechanism(unsafe, ROUNDS, canaries=CANARIES, guess_fraction=GUESS_FRACTION)
    assert report.epsilon_lower >= 4
    assert math.isinf(report.epsilon_claimed)
    assert not report.contradicts_claim


def test_the_audit_charges_every_round_to_a_ledger_that_is_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []
    budgets: list[object] = []
    create = canaries.Ledger.create

    def remember(path: Path, **fields: object) -> object:
        made.append(path)
        budgets.append(fields["epsilon_max"])
        return create(path, **fields)  # type: ignore[arg-type]

    monkeypatch.setattr(canaries.Ledger, "create", remember)
    report = audit_mechanism(replace(CLAIMS_TWO, steps_per_round=3), 4, canaries=20)
    assert report.epsilon_claimed == epsilon([SubsampledGaussian(0.064, 3.005, 12)], 1e-5)
    assert budgets == [report.epsilon_claimed]  # one step more would have been refused
    assert made[0].is_relative_to(tempfile.gettempdir())
    assert not made[0].parent.exists()


def test_noise_that_repeats_is_invisible_to_the_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said in the module, and the reason why the freshness of the noise has tests of its own."""
    monkeypatch.setattr(gradient_sums, "NoisyOptimizer", OneNoiseForAllSteps)
    report = audit_mechanism(CLAIMS_TWO, ROUNDS, canaries=CANARIES, guess_fraction=GUESS_FRACTION)
    assert not report.contradicts_claim


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"canaries": 1}, "nothing to guess"),
        ({"guess_fraction": 0.0}, "nothing to guess"),
        ({"guess_fraction": 1.1}, "nothing to guess"),
        ({"rounds": 0}, "rounds"),
        ({"canary_norm": 0.0}, "canary_norm"),
        ({"canary_norm": math.inf}, "canary_norm"),
        ({"confidence": 1.0}, "confidence"),
    ],
)
def test_an_audit_that_could_show_nothing_is_refused(arguments: dict[str, float], message: str) -> None:
    short = replace(CLAIMS_TWO, steps_per_round=1)
    with pytest.raises(ValueError, match=message):
        audit_mechanism(short, **{"rounds": 1, "canaries": 10, **arguments})  # type: ignore[arg-type]


def test_the_coins_are_fair_and_never_the_same_twice() -> None:
    first, second = canaries._toss_coins(40_001), canaries._toss_coins(40_001)
    assert len(first) == 40_001
    assert SURPRISE < binom.cdf(first.sum(), 40_001, 0.5) < 1 - SURPRISE
    assert SURPRISE < binom.cdf((first != second).sum(), 40_001, 0.5) < 1 - SURPRISE


def test_the_highest_scores_are_guessed_in_and_the_lowest_out() -> None:
    assert guess_inclusions(np.array([0.1, 5.0, -2.0, 0.2, 7.0]), 4).tolist() == [-1, 1, -1, 0, 1]


# Many single steps.


def test_one_step_is_not_accused() -> None:
    report = audit_one_step(ONE_STEP_CLAIMS_TWO, trials=400)
    assert report.epsilon_claimed == epsilon([SubsampledGaussian(1.0, 2.0, 1)], 1e-5)
    assert report.epsilon_lower <= report.epsilon_claimed
    assert not report.contradicts_claim
    assert report.true_positives > report.false_positives  # 240 against 160 +- 14: the canary does act on the step
    assert (report.unit, report.neighboring_relation, report.trials) == ("record", ADD_OR_REMOVE_ONE, 400)


@pytest.mark.parametrize("broken", BROKEN_STEPS)
def test_control_one_broken_step_is_accused(broken: type[NoisyOptimizer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_sums, "NoisyOptimizer", broken)
    assert audit_one_step(ONE_STEP_CLAIMS_TWO, trials=400).contradicts_claim


def test_a_threshold_that_says_yes_to_everything_shows_nothing() -> None:
    assert audit_one_step(ONE_STEP_CLAIMS_TWO, trials=20, threshold=-100.0).epsilon_lower == 0.0


def test_trials_are_counted_from_one() -> None:
    with pytest.raises(ValueError, match="trials"):
        audit_one_step(ONE_STEP_CLAIMS_TWO, trials=0)


# The bounds. The laws below are known, so how often a bound passes the truth is computed, not sampled.

Bound = Callable[[int], float]


def accusation_rate(bound: Bound, law: npt.NDArray[np.float64], truth: float) -> float:
    """Probability that the bound passes the true epsilon, if ``law[v]`` is that of v right guesses."""
    return float(sum(mass for correct, mass in enumerate(law) if mass and bound(correct) > truth))


def bound_for(n_canaries: int, guesses: int, delta: float) -> Bound:
    @cache
    def bound(correct: int) -> float:
        return epsilon_lower_bound(canaries=n_canaries, guesses=guesses, correct=min(correct, guesses), delta=delta)

    return bound


def accuracy(truth: float) -> float:
    return 1 / (1 + math.exp(-truth))


def randomised_response(guesses: int, truth: float) -> npt.NDArray[np.float64]:
    return np.asarray(binom.pmf(np.arange(guesses + 1), guesses, accuracy(truth)))


def randomised_response_that_leaks(size: int, truth: float, delta: float, at_once: int) -> npt.NDArray[np.float64]:
    """With probability m delta / i it tells i random canaries outright, so that each is told with delta."""
    leak = size * delta / at_once
    told = np.zeros(size + 1)
    told[at_once:] = binom.pmf(np.arange(size + 1 - at_once), size - at_once, accuracy(truth))
    return (1 - leak) * randomised_response(size, truth) + leak * told


@pytest.mark.parametrize("guesses", [20, 60, 100])
@pytest.mark.parametrize("truth", [0.0, 1.0])
def test_randomised_response_is_accused_no_more_often_than_permitted(guesses: int, truth: float) -> None:
    bound = bound_for(100, guesses, 0.0)
    assert accusation_rate(bound, randomised_response(guesses, truth), truth) <= 1 - CONFIDENCE


@pytest.mark.parametrize("guesses", [20, 60, 100])
def test_control_a_bound_that_counts_one_guess_too_many_accuses_too_often(guesses: int) -> None:
    bound = bound_for(100, guesses, 0.0)
    assert accusation_rate(lambda v: bound(v + 1), randomised_response(guesses, 1.0), 1.0) > 1 - CONFIDENCE


def test_a_mechanism_that_uses_its_delta_up_is_accused_no_more_often_than_permitted() -> None:
    for at_once in (2, 5, 20, 40):
        law = randomised_response_that_leaks(100, 1.0, 0.02, at_once)
        assert accusation_rate(bound_for(100, 100, 0.02), law, 1.0) <= 1 - CONFIDENCE


def test_control_a_bound_that_ignores_delta_accuses_too_often() -> None:
    law = randomised_response_that_leaks(100, 1.0, 0.02, 20)
    assert accusation_rate(bound_for(100, 100, 0.0), law, 1.0) > 1 - CONFIDENCE


def test_no_mechanism_of_that_family_is_better_than_the_p_value_says() -> None:
    for delta, at_once in product((0.001, 0.01), (1, 3, 10, 30)):
        tail = np.cumsum(randomised_response_that_leaks(60, 0.7, delta, at_once)[::-1])[::-1]
        for correct in range(61):
            assert tail[correct] <= p_value(60, 60, correct, 0.7, delta) + 1e-12


@pytest.mark.parametrize("delta", [Fraction(0), Fraction(1, 500)])
def test_the_p_value_is_the_one_counted_over_all_outcomes(delta: Fraction) -> None:
    guesses, n_canaries, right = 7, 11, Fraction(3, 4)  # epsilon = log 3
    mass = [comb(guesses, k) * right**k * (1 - right) ** (guesses - k) for k in range(guesses + 1)]
    assert sum(mass) == 1
    for correct in range(guesses + 1):
        gain = max((sum(mass[correct - i : correct]) / i for i in range(1, correct + 1)), default=Fraction(0))
        expected = min(Fraction(1), sum(mass[correct:]) + 2 * n_canaries * delta * gain)
        found = p_value(n_canaries, guesses, correct, math.log(3), float(delta))
        assert found == pytest.approx(float(expected), rel=1e-12)


def test_without_delta_the_bound_is_the_exact_one_of_a_binomial_rate() -> None:
    for guesses, correct in ((10, 9), (50, 30), (500, 500), (800, 610)):
        rate = beta.ppf(1 - CONFIDENCE, correct, guesses - correct + 1)
        expected = max(0.0, math.log(rate / (1 - rate)))
        assert bound_for(1000, guesses, 0.0)(correct) == pytest.approx(expected, abs=3e-6)


@pytest.mark.parametrize(
    ("n_canaries", "guesses", "correct", "delta", "published"),
    [(1000, 100, 75, 1e-4, 0.673), (100_000, 1510, 1439, 1e-5, 2.675)],
)
def test_the_bound_has_the_values_of_the_paper(
    n_canaries: int, guesses: int, correct: int, delta: float, published: float
) -> None:
    assert bound_for(n_canaries, guesses, delta)(correct) == pytest.approx(published, abs=1e-3)


def test_the_bound_grows_with_right_guesses_and_falls_with_delta_canaries_and_confidence() -> None:
    bounds = [bound_for(500, 200, 1e-5)(correct) for correct in range(100, 201, 5)]
    assert bounds == sorted(bounds)
    assert bounds[0] == 0.0 < bounds[-1]
    by_delta = [bound_for(500, 200, delta)(190) for delta in (0.0, 1e-6, 1e-5, 1e-4, 1e-3)]
    assert by_delta == sorted(by_delta, reverse=True)
    assert by_delta[0] > by_delta[-1]
    by_size = [bound_for(size, 200, 1e-4)(190) for size in (200, 400, 800)]
    assert by_size == sorted(by_size, reverse=True)
    by_confidence = [
        epsilon_lower_bound(canaries=500, guesses=200, correct=150, delta=1e-5, confidence=confidence)
        for confidence in (0.5, 0.9, 0.99, 0.999999)
    ]
    assert by_confidence == sorted(by_confidence, reverse=True)


def test_a_bound_from_scores_of_randomised_response_passes_the_truth_in_few_of_many_runs() -> None:
    generator = np.random.default_rng(7)
    bound, runs, size = bound_for(400, 100, 0.0), 2000, 400
    honest = careless = 0
    for _ in range(runs):
        included = generator.random(size) < 0.5
        answers = included ^ (generator.random(size) > accuracy(1.0))
        guessed = guess_inclusions(answers + generator.random(size) / 2, 100)
        honest += bound(int((guessed == np.where(included, 1, -1)).sum())) > 1.0
        told = guess_inclusions(answers + included / 8 + generator.random(size) / 2, 100)
        careless += bound(int((told == np.where(included, 1, -1)).sum())) > 1.0
    assert binom.sf(honest - 1, runs, 1 - CONFIDENCE) > SURPRISE
    assert binom.sf(careless - 1, runs, 1 - CONFIDENCE) < SURPRISE  # control: the scores tell more than epsilon 1


Rates = Callable[[int, int], float]


def rates_accusation(bound: Rates, trials: int, truth: float, delta: float) -> float:
    """Probability that a bound passes the true epsilon, for a test with the best rates that (truth, delta) allows."""
    right = accuracy(truth)
    true = binom.pmf(np.arange(trials + 1), trials, delta + (1 - delta) * right)
    false = binom.pmf(np.arange(trials + 1), trials, (1 - delta) * (1 - right))
    pairs = product(range(trials + 1), repeat=2)
    return float(sum(true[t] * false[f] for t, f in pairs if true[t] * false[f] > 1e-9 and bound(t, f) > truth))


def rate_bound(trials: int, delta: float) -> Rates:
    return lambda true, false: epsilon_lower_bound_from_rates(
        true_positives=true, positives=trials, false_positives=false, negatives=trials, delta=delta
    )


@pytest.mark.parametrize("delta", [0.0, 0.4])
def test_the_bound_from_two_rates_accuses_no_more_often_than_permitted(delta: float) -> None:
    assert rates_accusation(rate_bound(25, delta), 25, 1.0, delta) <= 1 - CONFIDENCE


def test_control_point_estimates_and_a_forgotten_delta_accuse_too_often() -> None:
    def point_estimate(true: int, false: int) -> float:
        return math.log(max(true, 1e-9) / max(false, 1e-9))

    assert rates_accusation(point_estimate, 25, 1.0, 0.0) > 1 - CONFIDENCE
    assert rates_accusation(rate_bound(25, 0.0), 25, 1.0, 0.4) > 1 - CONFIDENCE


def test_the_bound_from_two_rates_sees_both_directions_of_guessing() -> None:
    forward = rate_bound(1000, 1e-5)(100, 0)
    backward = rate_bound(1000, 1e-5)(1000, 900)
    assert forward == pytest.approx(backward)
    never = 0.025 ** (1 / 1000)  # half of the permitted error: a rate that shows nothing in a thousand trials
    assert rate_bound(1000, 1e-5)(1000, 0) == pytest.approx(math.log((never - 1e-5) / (1 - never)))
    assert forward > 2.5
    assert rate_bound(1000, 1e-5)(0, 1000) == 0.0


@pytest.mark.parametrize(
    "counts",
    [(101, 100, 100), (5, 200, 100), (-1, 10, 100)],
)
def test_counts_that_do_not_fit_are_refused(counts: tuple[int, int, int]) -> None:
    correct, guesses, size = counts
    with pytest.raises(ValueError, match="correct <= guesses"):
        epsilon_lower_bound(canaries=size, guesses=guesses, correct=correct, delta=0.0)
    with pytest.raises(ValueError, match="no rates"):
        epsilon_lower_bound_from_rates(true_positives=3, positives=2, false_positives=0, negatives=2, delta=0.0)


@pytest.mark.parametrize(("delta", "confidence"), [(-0.1, 0.95), (1.0, 0.95), (0.0, 0.0), (0.0, 1.0)])
def test_a_delta_or_confidence_that_is_none_is_refused(delta: float, confidence: float) -> None:
    with pytest.raises(ValueError, match=r"delta|confidence"):
        epsilon_lower_bound(canaries=9, guesses=8, correct=8, delta=delta, confidence=confidence)
    with pytest.raises(ValueError, match=r"delta|confidence"):
        membership_attack([0.0, 1.0], [0.0, 1.0], delta=delta, confidence=confidence)


# Losses of a released model.


def test_a_model_that_knows_its_members_is_seen() -> None:
    generator = np.random.default_rng(3)
    report = membership_attack(generator.random(1000), 9 + generator.random(1200), delta=1e-5)
    assert (report.auc, report.balanced_accuracy) == (1.0, 1.0)
    assert (report.tpr_at_1_percent, report.tpr_at_0_1_percent) == (1.0, 1.0)
    assert report.auc_high == 1.0
    assert report.auc_low == pytest.approx(0.025 ** (1 / 1000))
    each = 0.05 / 4  # two thresholds, two rates
    assert report.epsilon_lower == pytest.approx(math.log((each ** (1 / 500) - 1e-5) / (1 - each ** (1 / 600))))
    assert (report.members, report.nonmembers, report.neighboring_relation) == (1000, 1200, ADD_OR_REMOVE_ONE)


def test_the_area_counts_pairs_and_half_of_the_ties() -> None:
    members, others = np.array([0.0, 1, 1, 2, 5]), np.array([1.0, 1, 3, 4])
    pairs = [(m < o) + (m == o) / 2 for m, o in product(members, others)]
    report = membership_attack(members, others, delta=0.0)
    assert report.auc == pytest.approx(np.mean(pairs))
    assert report.auc_low < report.auc < report.auc_high


def test_rates_are_read_where_few_non_members_are_accused() -> None:
    others = np.arange(1000.0)
    report = membership_attack([-1.0, 0.5, 9.5, 50.0], others, delta=0.0)
    assert report.tpr_at_0_1_percent == 0.5  # the loss 0.5 costs one non-member of a thousand
    assert report.tpr_at_1_percent == 0.75
    assert membership_attack([-1.0, 0.5], others[:100], delta=0.0).tpr_at_0_1_percent == 0.5  # at none at all


def leaking_losses(generator: np.random.Generator, size: int, truth: float) -> tuple[list[float], list[float]]:
    """Losses of which a threshold at 1/2 is randomised response of epsilon ``truth``, and no other test is better."""
    members = (generator.random(size) > accuracy(truth)) + generator.random(size) / 4
    others = (generator.random(size) < accuracy(truth)) + generator.random(size) / 4
    return members.tolist(), others.tolist()


def membership_accusations(truth: float, runs: int = 300) -> int:
    generator = np.random.default_rng(11)
    reports = [membership_attack(*leaking_losses(generator, 80, truth), delta=0.0) for _ in range(runs)]
    return sum(report.epsilon_lower > truth for report in reports)


@pytest.mark.parametrize("truth", [0.0, 1.0])
def test_losses_that_tell_no_more_than_epsilon_are_accused_no_more_often_than_permitted(truth: float) -> None:
    assert binom.sf(membership_accusations(truth) - 1, 300, 1 - CONFIDENCE) > SURPRISE


def chance_accusations(runs: int, confidence: float) -> int:
    generator = np.random.default_rng(17)
    pairs = ((generator.random(2000), generator.random(2000)) for _ in range(runs))
    return sum(membership_attack(*pair, delta=0.0, confidence=confidence).epsilon_lower > 0 for pair in pairs)


def test_losses_that_tell_nothing_are_accused_less_than_half_of_the_time_at_even_odds() -> None:
    assert chance_accusations(200, confidence=0.5) < 100


def test_control_a_threshold_judged_by_the_losses_that_chose_it_accuses_too_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(membership, "_halves", lambda losses, generator: (losses, losses))
    assert binom.sf(chance_accusations(200, confidence=0.5) - 1, 200, 0.5) < 0.01  # the seed is fixed: 122 or so


def area_misses(runs: int = 400, size: int = 60) -> int:
    generator = np.random.default_rng(13)
    truth = float(norm.cdf(1 / math.sqrt(2)))  # of two normal laws one deviation apart
    misses = 0
    for _ in range(runs):
        report = membership_attack(generator.normal(0, 1, size), generator.normal(1, 1, size), delta=0.0)
        misses += not report.auc_low <= truth <= report.auc_high
    return misses


def test_the_interval_of_the_area_holds_the_truth() -> None:
    assert binom.sf(area_misses() - 1, 400, 1 - CONFIDENCE) > SURPRISE


def test_control_an_interval_that_counts_pairs_as_independent_misses_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    interval = membership._interval
    monkeypatch.setattr(membership, "_interval", lambda area, independent, error: interval(area, independent**2, error))
    assert binom.sf(area_misses() - 1, 400, 1 - CONFIDENCE) < SURPRISE


@pytest.mark.parametrize("losses", [[], [1.0], [[1.0, 2.0]], [1.0, math.nan], [1.0, math.inf]])
def test_losses_that_are_none_are_refused(losses: list[float]) -> None:
    with pytest.raises(ValueError, match="member_losses"):
        membership_attack(losses, [1.0, 2.0], delta=0.0)
    with pytest.raises(ValueError, match="nonmember_losses"):
        membership_attack([1.0, 2.0], losses, delta=0.0)


def test_importing_the_audit_loads_neither_torch_nor_scipy() -> None:
    program = "import sys, privacy.audit; print({'torch', 'scipy', 'opacus'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
