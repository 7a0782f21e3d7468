"""The numbers of SECURITY.md, computed again."""

from __future__ import annotations

import math

import pytest

from secure_agg.policy import SecureSumPolicy
from tests.docs.documents import ROOT

DELTA = 1e-5


def table(first_heading: str) -> list[list[str]]:
    """The rows of the table of SECURITY.md whose first column has this heading."""
    lines = (ROOT / "SECURITY.md").read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first_heading} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_thresholds_dropouts_and_colluders_are_those_of_the_policy() -> None:
    rows = table("cohort n")
    assert len(rows) > 5
    for n, c, t, may_drop, honest, unmasking in ([int(cell) for cell in row] for row in rows):
        policy = SecureSumPolicy(
            colluders=c, min_cohort=n, min_honest=2, max_cohort=n, dimension=1, fraction_bits=16, max_magnitude=2**20
        )
        assert t == policy.threshold(n)
        assert (may_drop, honest) == (n - t, t - c)
        assert unmasking == fewest_unmasking(n, t) > c


def fewest_unmasking(n: int, t: int) -> int:
    """Fewest colluders with whom a server learns one honest site's update, by trying every number.

    They do when a list of t survivors may hold all of them and one honest site only, or when the honest sites can be
    split into two views so that each view, with the colluders in both, has t signatures.
    """
    for k in range(1, n):
        alone = k + 1 >= t
        two_views = any(part + k >= t and (n - k - part) + k >= t for part in range(1, n - k))
        if alone or two_views:
            return k
    raise AssertionError("n - 1 sites always know the last one's update")


@pytest.mark.parametrize("row", table("false alarms"), ids=lambda row: row[0])
def test_the_power_of_a_membership_test_is_bounded_as_the_table_says(row: list[str]) -> None:
    false_alarms = 1 / int(row[0].removeprefix("1 in ").replace(",", ""))
    for epsilon, cell in zip((1, 2, 4, 8), row[1:], strict=True):
        digits = len(cell.removesuffix(" %").partition(".")[2])
        assert float(cell.removesuffix(" %")) == pytest.approx(100 * power(epsilon, false_alarms), abs=10**-digits)


def power(epsilon: float, false_alarms: float) -> float:
    """Largest share of used records that a test may call used, under (epsilon, DELTA) in both directions."""
    return min(math.exp(epsilon) * false_alarms + DELTA, 1 - math.exp(-epsilon) * (1 - DELTA - false_alarms))
