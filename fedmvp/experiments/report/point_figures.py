"""The figures with a mark a method: utility against its size, and against what a site sends."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from fedmvp.evaluation.intervals import OverSeeds
from fedmvp.experiments.report import drawing, wording
from fedmvp.experiments.report.costs import run_cost
from fedmvp.experiments.report.style import Label, Theme, label_ends, label_points, looks
from fedmvp.experiments.report.summary import PLAIN, Comparison, Entry, Terms

_MAX_TICKS = 5
Measure = Callable[[Comparison, Entry, Terms], float | None]
Points = dict[Entry, tuple[float, OverSeeds]]


def size_figure(comparison: Comparison, theme: Theme) -> Any:
    """Score by trained parameters, all sizes of all methods."""
    return _figure(comparison, theme, "trained parameters", _parameters, wording.count)


def bytes_figure(comparison: Comparison, theme: Theme) -> Any:
    """Score by what a site sends in a whole run."""
    return _figure(comparison, theme, "sent by a site in the whole run", _sent, wording.size)


def shown_terms(comparison: Comparison) -> list[Terms]:
    """Without privacy, and the loosest and strictest epsilon of the mode that is shown where only one can be."""
    return list(dict.fromkeys([PLAIN, *comparison.headline[:1], *comparison.headline[-1:]]))


def _parameters(comparison: Comparison, entry: Entry, _: Terms) -> float | None:
    return comparison.parameters(entry)


def _sent(comparison: Comparison, entry: Entry, terms: Terms) -> float | None:
    cost = run_cost(comparison, entry, terms.mode)
    return None if cost is None else cost.up


def _figure(comparison: Comparison, theme: Theme, words: str, measure: Measure, form: Callable[[float], str]) -> Any:
    """Score against a positive number on a log axis, a panel for each of few columns."""
    panels = {terms: _points(comparison, terms, measure) for terms in shown_terms(comparison)}
    everywhere = [place for points in panels.values() for place, _ in points.values()]
    limits = drawing.limits(comparison, [score for points in panels.values() for _, score in points.values()])
    figure, all_axes = drawing.panels(len(panels), height=4.3)
    for axes, (terms, points) in zip(all_axes, panels.items(), strict=True):
        axes.set_xscale("log")
        axes.set(ylim=limits, title=terms.label, xlabel=words, xlim=(min(everywhere) / 3, max(everywhere) * 3))
        _ticks(axes, form)
        drawing.draw_baselines(axes, comparison, theme)
        _draw(axes, comparison, points, theme)
    all_axes[0].set_ylabel(drawing.score_words(comparison.facts))
    label_ends(all_axes[-1], drawing.baseline_labels(comparison, theme), 3.4)
    marks = looks(theme, comparison.trained)
    for axes, points in zip(all_axes, panels.values(), strict=True):
        words_of = _words(list(points))
        labels = [
            Label(
                100 * score.mean,
                words_of[entry],
                marks[entry].colour,
                marks[entry].strong,
                place,
                100 * (score.half_width or 0.0),
            )
            for entry, (place, score) in points.items()
        ]
        label_points(figure, axes, labels)
    return figure


def _points(comparison: Comparison, terms: Terms, measure: Measure) -> Points:
    found = {}
    for entry in comparison.trained:
        place, score = measure(comparison, entry, terms), comparison.score(entry, terms)
        if place and score is not None:
            found[entry] = (float(place), score)
    return found


def _draw(axes: Any, comparison: Comparison, points: Points, theme: Theme) -> None:
    marks = looks(theme, comparison.trained)
    methods: dict[str, list[tuple[float, float]]] = {}
    for entry, (place, score) in points.items():
        drawing.draw_mark(axes, place, score, marks[entry])
        methods.setdefault(entry.method, []).append((place, 100 * score.mean))
    for entry in {entry.method: entry for entry in points}.values():
        places, heights = zip(*sorted(methods[entry.method]), strict=True)
        axes.plot(places, heights, color=marks[entry].colour, linewidth=1.0, zorder=2)


def _words(entries: Sequence[Entry]) -> dict[Entry, str]:
    """Of a method with several sizes its name once; a line joins them."""
    named: set[str] = set()
    words = {}
    for entry in entries:
        words[entry] = entry.size if entry.method in named and entry.size else entry.label
        named.add(entry.method)
    return words


def _ticks(axes: Any, form: Callable[[float], str]) -> None:
    """Powers of ten, in words; a pair of rounder numbers where none is within."""
    low, high = axes.get_xlim()
    powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    ticks = [10.0**power for power in powers][:: math.ceil(len(powers) / _MAX_TICKS) or 1]
    if len(ticks) < 2:
        ticks = [math.sqrt(low * high)]
    axes.set_xticks(ticks, [form(tick) for tick in ticks])
    axes.minorticks_off()
