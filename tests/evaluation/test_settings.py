from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from fedmvp.evaluation.accuracy import Accuracy
from fedmvp.evaluation.intervals import OverSeeds, difference
from fedmvp.evaluation.settings import BaseToNew, BySite, Domains, harmonic_mean, share_of_gain


def test_local_is_the_mean_over_sites_and_hm_that_of_the_three() -> None:
    local = BySite({"a": Accuracy(9, 10), "b": Accuracy(50, 100)})
    run = BaseToNew(local, base=Accuracy(6, 10), new=Accuracy(8, 10))
    assert local.mean == pytest.approx(0.7)
    assert local.worst == ("b", Accuracy(50, 100))
    assert run.harmonic_mean == pytest.approx(statistics.harmonic_mean([0.7, 0.6, 0.8]))


def test_the_papers_own_harmonic_mean_comes_out() -> None:
    assert harmonic_mean([0.7672, 0.7051, 0.7578]) == pytest.approx(0.7424, abs=2e-4)  # zero-shot CLIP with a template
    assert harmonic_mean([0.5, 0.0, 0.9]) == 0.0


@pytest.mark.parametrize("values", [[], [0.5, -0.1]])
def test_a_harmonic_mean_of_nothing_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="at least zero"):
        harmonic_mean(values)


def test_a_target_that_was_trained_on_is_refused() -> None:
    targets = {"sketch": Accuracy(1, 2), "photo": Accuracy(1, 1)}
    assert Domains(targets, sources=("art",)).mean == pytest.approx(0.75)
    with pytest.raises(ValueError, match="'photo' is a source"):
        Domains(targets, sources=("photo",))
    with pytest.raises(ValueError, match="no target"):
        Domains({}, sources=("photo",))
    with pytest.raises(ValueError, match="no site"):
        BySite({})


def test_the_interval_over_seeds_is_that_of_students_test() -> None:
    values = (0.61, 0.64, 0.58)
    found = OverSeeds(values)
    wanted = ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    assert str(found) == "0.610 ± 0.075 (3 runs)"


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).normal(size=(2000, 3))
    runs = [OverSeeds(tuple(row)) for row in draws]
    share = np.mean([run.low <= 0 <= run.high for run in runs])
    assert abs(share - 0.95) < 5 * math.sqrt(0.95 * 0.05 / 2000)
    normal = np.mean([abs(run.mean) < 1.96 * statistics.stdev(run.values) / math.sqrt(3) for run in runs])
    assert normal < 0.9  # the control: with three runs the normal quantile promises too much


def test_one_run_has_no_interval_over_seeds() -> None:
    only = OverSeeds((0.5,))
    assert only.low is only.high is only.half_width is None
    assert str(only) == "0.500 (one run)"


@pytest.mark.parametrize("values", [(), (0.5, math.nan)])
def test_runs_without_a_value_are_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="finite"):
        OverSeeds(values)


def test_what_seeds_share_drops_out_of_a_difference() -> None:
    first, second = (0.60, 0.70, 0.80), (0.58, 0.68, 0.79)
    between = difference(first, second)
    assert between.low is not None
    assert between.low > 0
    assert OverSeeds(first).low < OverSeeds(second).high  # type: ignore[operator]
    with pytest.raises(ValueError, match="by seed"):
        difference(first, second[:2])


def test_the_share_of_the_gain_is_one_without_loss_and_zero_at_the_floor() -> None:
    assert share_of_gain(0.8, plain=0.8, floor=0.5) == pytest.approx(1.0)
    assert share_of_gain(0.5, plain=0.8, floor=0.5) == 0.0
    with pytest.raises(ValueError, match="does not gain"):
        share_of_gain(0.6, plain=0.5, floor=0.5)
