"""The figures of a comparison by group: local, base, new, targets, and the sites of a personalised setting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fedmvp.experiments.report.questions import one_size_each
from fedmvp.experiments.report.style import LABEL_POINTS, Theme, looks, new_figure
from fedmvp.experiments.report.summary import PLAIN, Comparison, Entry, Terms

MAX_PANELS = 8
"""More groups than this are drawn as one strip of marks a method."""

_COLUMNS = 4
_ROW_INCHES = 0.30


def group_terms(comparison: Comparison) -> list[Terms]:
    """Without privacy, and the loosest epsilon of the mode that is shown where only one can be."""
    return [PLAIN, *comparison.headline[:1]]


def group_figure(comparison: Comparison, groups: Sequence[str], theme: Theme) -> Any:
    """A panel a group with two bars a method, or a strip of all groups where they are many."""
    if len(groups) > MAX_PANELS:
        return _strips(comparison, groups, theme)
    entries = (*comparison.baselines, *one_size_each(comparison))
    terms = group_terms(comparison)
    n_columns = min(_COLUMNS, len(groups))
    n_rows = math.ceil(len(groups) / n_columns)
    figure = new_figure(max(2.3 * n_columns, 4.6) + 1.6, (_ROW_INCHES * len(entries) + 0.75) * n_rows + 0.35)
    grid = figure.subplots(n_rows, n_columns, sharey=True, squeeze=False)
    for axes in grid.flat[len(groups) :]:
        axes.set_visible(False)
    for axes, group in zip(grid.flat, groups, strict=False):
        _bars(axes, comparison, entries, group, theme)
        axes.set_title(group)
    grid[0][0].set_ylim(len(entries) - 0.4, -0.6)
    words = " · ".join(f"{'solid' if number == 0 else 'hatched'}: {place.label}" for number, place in enumerate(terms))
    figure.supxlabel(
        f"accuracy, %   ({words})" if _is_accuracy(comparison) else f"average precision, %   ({words})", fontsize=9
    )
    return figure


def _bars(axes: Any, comparison: Comparison, entries: Sequence[Entry], group: str, theme: Theme) -> None:
    marks = looks(theme, comparison.trained)
    for row, entry in enumerate(entries):
        places = group_terms(comparison) if comparison.trains(entry) else [PLAIN]
        thickness = 0.76 / len(places)
        for number, terms in enumerate(places):
            score = comparison.share(entry, terms, group)
            if score is None:
                continue
            colour = marks[entry].colour if entry in marks else theme.muted
            height = row + (number - (len(places) - 1) / 2) * thickness
            axes.barh(
                height,
                100 * score.mean,
                height=thickness * 0.92,
                color=colour if number == 0 else theme.paper,
                edgecolor=colour,
                hatch=None if number == 0 else "////",
                linewidth=0.8,
                xerr=None if score.half_width is None else 100 * score.half_width,
                error_kw={"ecolor": theme.ink, "elinewidth": 0.9, "capsize": 1.5},
            )
            end = 100 * (score.mean + (score.half_width or 0.0))
            axes.annotate(
                f"{100 * score.mean:.1f}",
                (end, height),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=LABEL_POINTS - 1.5,
            )
    axes.set_yticks(range(len(entries)), [entry.label for entry in entries])
    axes.set_xlim(0, 118)
    axes.set_xticks([0, 50, 100])
    axes.grid(visible=False, axis="y")


def _strips(comparison: Comparison, groups: Sequence[str], theme: Theme) -> Any:
    """A row a method, a mark a group, the mean as a bar and the worst by name."""
    entries = (*comparison.baselines, *one_size_each(comparison))
    marks = looks(theme, comparison.trained)
    terms = group_terms(comparison)
    figure = new_figure(4.4 * len(terms) + 1.2, 0.5 * len(entries) + 1.0)
    panels = figure.subplots(1, len(terms), sharey=True, sharex=True, squeeze=False)[0]
    for axes, place in zip(panels, terms, strict=True):
        axes.set_title(place.label)
        for row, entry in enumerate(entries):
            found = {
                group: score.mean for group in groups if (score := comparison.share(entry, place, group)) is not None
            }
            if not found:
                continue
            colour = marks[entry].colour if entry in marks else theme.muted
            values = [100 * value for value in found.values()]
            axes.scatter(values, [row] * len(values), s=18, color=colour, alpha=0.45, linewidths=0)
            axes.plot([sum(values) / len(values)] * 2, [row - 0.32, row + 0.32], color=colour, linewidth=2.2)
            worst = min(found, key=lambda group: found[group])
            axes.annotate(
                worst,
                (100 * found[worst], row),
                xytext=(0, 4),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=LABEL_POINTS - 1,
                color=theme.muted,
            )
        axes.set_xlabel("accuracy, %" if _is_accuracy(comparison) else "average precision, %")
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.08)
    panels[0].set_yticks(range(len(entries)), [entry.label for entry in entries])
    panels[0].set_ylim(len(entries) - 0.4, -0.6)
    return figure


def _is_accuracy(comparison: Comparison) -> bool:
    return any(key[0] == "accuracy" and key[1] for values in comparison.cells.values() for key in values)
