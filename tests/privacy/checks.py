"""Checks that the real mechanism passes and a broken one must fail."""

import math

import numpy as np
import numpy.typing as npt
from scipy.stats import binom, kstest

SURPRISE = 1e-9
"""Probability with which a check may fail by bad luck."""


def check_gaussian(draws: npt.NDArray[np.float64], deviation: float) -> None:
    """Assert mean, spread, shape and distinctness of independent normal draws."""
    size = draws.size
    assert len(np.unique(draws)) > 0.99 * size, "draws repeat"
    assert abs(draws.mean()) < 6.2 * deviation / math.sqrt(size), "mean is not zero"
    assert abs(draws.std() / deviation - 1) < 6.2 / math.sqrt(2 * size), "wrong standard deviation"
    assert kstest(draws / deviation, "norm").pvalue > SURPRISE, "not normal"


def check_inclusions(batches: list[npt.NDArray[np.int64]], n_records: int, rate: float) -> None:
    """Assert that batches look like independent inclusions of probability ``rate``."""
    steps = len(batches)
    included = np.zeros((steps, n_records))
    for step, batch in enumerate(batches):
        assert len(np.unique(batch)) == len(batch)
        included[step, batch] = 1
    total = included.sum()
    assert SURPRISE < binom.cdf(total, included.size, rate) < 1 - SURPRISE, "wrong inclusion rate"
    by_record = included.sum(axis=0)
    assert binom.cdf(by_record.min(), steps, rate) * n_records > SURPRISE, "a record comes too seldom"
    assert binom.sf(by_record.max() - 1, steps, rate) * n_records > SURPRISE, "a record comes too often"
    sizes = included.sum(axis=1)
    ratio = sizes.var() / (n_records * rate * (1 - rate))  # 1 if inclusions are independent
    assert abs(ratio - 1) < 6.2 * math.sqrt(2 / steps), "records are not included independently of each other"
    consecutive = np.corrcoef(included[:-1].ravel(), included[1:].ravel())[0, 1]
    assert abs(consecutive) < 6.2 / math.sqrt(included[1:].size), "a step depends on the one before"
