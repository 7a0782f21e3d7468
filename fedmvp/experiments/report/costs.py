"""What a run costs a site: bytes, time, and how much of its budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedmvp.experiments.report.summary import Comparison, Entry, Terms, Values
from fedmvp.experiments.results import SCORE, Cell, Results

_ROUNDING = 1e-9
"""Relative; an epsilon is a sum of floats."""


@dataclass(frozen=True)
class RunCost:
    """Means over the epsilons and seeds of one method in one mode.

    Attributes:
        up_by_round: bytes that a site sends in a round; None where not measured, or where rounds are not known.
        down_by_round: bytes that it receives.
        up: bytes that a site sends in the whole run.
        rounds: of a run, the most.
        seconds: of a run.
    """

    up_by_round: float | None
    down_by_round: float | None
    up: float | None
    rounds: int | None
    seconds: float | None


def run_cost(comparison: Comparison, entry: Entry, mode: str) -> RunCost | None:
    """The cost of a method in a mode; None where it has no cell."""
    measured = [
        comparison.cells[cell]
        for (other, terms), cells in comparison.places.items()
        if (other, terms.mode) == (entry, mode)
        for cell in cells.values()
    ]
    if not measured:
        return None
    return RunCost(
        up_by_round=_mean([_by_round(comparison, values, "bytes-up") for values in measured]),
        down_by_round=_mean([_by_round(comparison, values, "bytes-down") for values in measured]),
        up=_mean([_by_site(comparison, values, "bytes-up") for values in measured]),
        rounds=max(
            (number for values in measured if (number := _rounds(comparison, values)) is not None), default=None
        ),
        seconds=_mean([_total(values, "seconds") for values in measured]),
    )


def spent(comparison: Comparison, entry: Entry, terms: Terms) -> float | None:
    """The largest epsilon that a site of any seed spent; None where not measured."""
    return comparison.largest(entry, terms, "epsilon")


def overspent(value: float, target: float) -> bool:
    """Whether an epsilon is above what was allowed."""
    return value > target * (1 + _ROUNDING)


def overspent_cells(results: Results) -> list[tuple[Cell, float]]:
    """Cells, finished or not, of which a site spent more than the cell's epsilon, with the most that one spent."""
    found: dict[Cell, float] = {}
    for cell, measured in results.rows:
        if measured.metric == "epsilon" and cell.epsilon is not None and overspent(measured.value, cell.epsilon):
            found[cell] = max(measured.value, found.get(cell, 0.0))
    return list(found.items())


def without_epsilon(comparison: Comparison) -> int:
    """How many private cells do not say what they spent."""
    return sum(
        not any(metric == "epsilon" for metric, _, _ in values)
        for cell, values in comparison.cells.items()
        if cell.epsilon is not None
    )


def largest_sum_error(comparison: Comparison) -> float | None:
    """The largest difference between a decoded secure sum and the plain one; None where no cell measured it."""
    found = [value for values in comparison.cells.values() for key, value in values.items() if key[0] == "sum-error"]
    return max(found, default=None)


def _by_round(comparison: Comparison, values: Values, metric: str) -> float | None:
    total, rounds = _by_site(comparison, values, metric), _rounds(comparison, values)
    return total / rounds if total is not None and rounds else None


def _by_site(comparison: Comparison, values: Values, metric: str) -> float | None:
    """The mean over sites where each was counted, else the whole over their number."""
    sites = [value for (name, group, number), value in values.items() if name == metric and group and number is None]
    if sites:
        return sum(sites) / len(sites)
    whole = values.get((metric, "", None))
    return None if whole is None else whole / max(1, comparison.n_sites)


def _total(values: Values, metric: str) -> float | None:
    whole = values.get((metric, "", None))
    if whole is not None:
        return whole
    parts = [value for (name, _, _), value in values.items() if name == metric]
    return sum(parts) if parts else None


def _rounds(comparison: Comparison, values: Values) -> int | None:
    """The last round with a score, else what the study says."""
    last = max((number for name, _, number in values if name == SCORE and number is not None), default=0)
    stated = comparison.facts.get("rounds")
    return last or (stated if isinstance(stated, int) else None)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
