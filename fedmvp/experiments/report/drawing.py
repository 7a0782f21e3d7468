"""What several figures share: axes, limits, curves with their intervals, and zero-shot as a level."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedmvp.evaluation.intervals import OverSeeds
from fedmvp.experiments.report.questions import one_size_each
from fedmvp.experiments.report.style import Label, Look, Theme, label_ends, looks, new_figure
from fedmvp.experiments.report.summary import PLAIN, Comparison, Entry, Terms

PANEL_INCHES = 3.3
LABELS_INCHES = 1.8
_MARGIN = 0.06
_BELOW_ZERO_SHOT = 0.3
"""Of the height above zero-shot, how much is shown below it: a method that collapses must not flatten all others."""

_PLAIN_GAP = 1.6
"""From the loosest epsilon to the place of what has no noise, in doublings."""

_SIDE_BY_SIDE = 0.12
"""Of the width of the axes, how much the marks without noise take."""


@dataclass(frozen=True)
class Curve:
    """A line: a value over seeds at each place."""

    entry: Entry
    look: Look
    points: Mapping[float, OverSeeds]

    @property
    def end(self) -> float:
        """The mean at the last place, in percent."""
        return 100 * self.points[max(self.points)].mean


def score_words(facts: Mapping[str, Any]) -> str:
    """What the score is, and in what."""
    return f"{facts.get('score') or 'score'}, %"


def panels(number: int, *, height: float) -> tuple[Any, list[Any]]:
    """A row of axes with one scale, and room for words at the right."""
    figure = new_figure(PANEL_INCHES * max(number, 2) + LABELS_INCHES, height)
    return figure, list(figure.subplots(1, number, sharey=True, squeeze=False)[0])


def curves_by_epsilon(comparison: Comparison, mode: str, theme: Theme) -> list[Curve]:
    """A curve for every trained method over the epsilons of a mode, and without privacy."""
    marks, places = looks(theme, comparison.trained), epsilon_places(comparison, mode)
    found = []
    for entry in one_size_each(comparison):
        scores = {place: comparison.score(entry, terms) for terms, place in places.items()}
        points = {place: score for place, score in scores.items() if score is not None}
        if points:
            found.append(Curve(entry, marks[entry], points))
    return found


def epsilon_places(comparison: Comparison, mode: str) -> dict[Terms, float]:
    """Where columns are on an axis of log2 epsilon; without privacy apart at the right."""
    found = {terms: math.log2(terms.epsilon) for terms in comparison.private if terms.mode == mode and terms.epsilon}
    return {**found, PLAIN: max(found.values(), default=0.0) + _PLAIN_GAP}


def epsilon_axis(axes: Any, places: Mapping[Terms, float], theme: Theme) -> None:
    """Ticks at the epsilons and a place of its own for what has none."""
    words = [f"{terms.epsilon:g}" if terms.epsilon is not None else "no noise" for terms in places]
    axes.set_xticks(list(places.values()), words)
    axes.set_xlim(min(places.values()) - 0.3, places[PLAIN] + 0.5)
    axes.axvline(places[PLAIN] - 0.8, color=theme.muted, linewidth=0.8, linestyle=(0, (1, 3)))
    axes.grid(visible=False, axis="x")


def draw_by_epsilon(axes: Any, curves: Sequence[Curve], apart: float) -> None:
    """Lines through the private places; without privacy a mark each, side by side, joined by dots."""
    left, right = axes.get_xlim()
    side_by_side = _SIDE_BY_SIDE * (right - left)
    for number, curve in enumerate(curves):
        line = {place: value for place, value in curve.points.items() if place != apart}
        draw_line(axes, line, curve.look, every=1)
        if apart not in curve.points:
            continue
        value, place = curve.points[apart], apart + side_by_side * ((number + 0.5) / len(curves) - 0.5)
        draw_mark(axes, place, value, curve.look)
        if line:
            last = max(line)
            ends = [100 * line[last].mean, 100 * value.mean]
            axes.plot([last, place], ends, color=curve.look.colour, linewidth=0.8, linestyle=":", zorder=2)


def draw_line(axes: Any, points: Mapping[float, OverSeeds], look: Look, *, every: int) -> None:
    """A line with a mark at every so many places, and its interval as a band."""
    places = sorted(points)
    if not places:
        return
    axes.plot(
        places,
        [100 * points[place].mean for place in places],
        color=look.colour,
        marker=look.marker,
        markersize=look.size,
        markevery=every,
        markeredgecolor=axes.get_facecolor(),
        markeredgewidth=0.6,
        linewidth=look.width,
        zorder=4 if look.strong else 3,
    )
    lows = [(points[place].low, points[place].high) for place in places]
    known = [(place, low, high) for place, (low, high) in zip(places, lows, strict=True) if None not in (low, high)]
    axes.fill_between(
        [place for place, _, _ in known],
        [100 * (low or 0.0) for _, low, _ in known],
        [100 * (high or 0.0) for _, _, high in known],
        color=look.colour,
        alpha=0.16 if look.strong else 0.09,
        linewidth=0,
    )


def draw_mark(axes: Any, place: float, value: OverSeeds, look: Look) -> None:
    """A mark with its interval as a bar."""
    axes.errorbar(
        place,
        100 * value.mean,
        yerr=None if value.half_width is None else 100 * value.half_width,
        color=look.colour,
        marker=look.marker,
        markersize=look.size + 0.5,
        markeredgecolor=axes.get_facecolor(),
        markeredgewidth=0.6,
        elinewidth=1.1,
        zorder=4 if look.strong else 3,
    )


def limits(comparison: Comparison, scores: Iterable[OverSeeds]) -> tuple[float, float]:
    """The ends of the axis of scores, in percent: all that is above zero-shot, and some of what is below."""
    shown, level = list(scores), [score.mean for score in baseline_scores(comparison).values()]
    lows = [score.mean if score.low is None else score.low for score in shown] + level
    highs = [score.mean if score.high is None else score.high for score in shown] + level
    low, high = max(0.0, min(lows)), min(1.0, max(highs))
    if level:
        low = max(low, min(level) - max(0.05, _BELOW_ZERO_SHOT * (high - min(level))))
    room = max(0.005, (high - low) * _MARGIN)
    return 100 * (low - room), 100 * (high + room)


def baseline_scores(comparison: Comparison) -> dict[Entry, OverSeeds]:
    """Zero-shot."""
    found = {entry: comparison.score(entry, PLAIN) for entry in comparison.baselines}
    return {entry: score for entry, score in found.items() if score is not None}


def draw_baselines(axes: Any, comparison: Comparison, theme: Theme) -> None:
    """Zero-shot as level lines."""
    for number, score in enumerate(baseline_scores(comparison).values()):
        axes.axhline(
            100 * score.mean, color=theme.muted, linewidth=1.3, linestyle=(":", "--", "-.")[number % 3], zorder=1.5
        )


def baseline_labels(comparison: Comparison, theme: Theme) -> list[Label]:
    """Their names."""
    return [Label(100 * score.mean, entry.label, theme.muted) for entry, score in baseline_scores(comparison).items()]


def name_curves(axes: Any, curves: Sequence[Curve], comparison: Comparison, theme: Theme, height_inches: float) -> None:
    """Names at the right ends of curves and level lines."""
    ends = [
        Label(curve.end, curve.entry.label, curve.look.colour, curve.look.strong) for curve in curves if curve.points
    ]
    label_ends(axes, [*ends, *baseline_labels(comparison, theme)], height_inches)
