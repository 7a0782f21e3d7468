"""One compact picture of several studies, for a first page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from fedmvp.errors import ExitCode, UserError
from fedmvp.experiments.report import drawing, wording
from fedmvp.experiments.report.output import saved
from fedmvp.experiments.report.questions import best_other, chosen, floor, probe
from fedmvp.experiments.report.reading import Study, as_study
from fedmvp.experiments.report.style import LIGHT, Label, label_ends, new_figure, themed
from fedmvp.experiments.report.summary import PLAIN, Comparison
from fedmvp.experiments.results import Results
from fedmvp.study.storage import write_atomic

_COLUMNS = 3
_WIDTH_INCHES = 3.6
_HEIGHT_INCHES = 2.9
_TITLE_LETTERS, _LABEL_LETTERS = 34, 32
"""What fits above and beside a panel."""


def privacy_utility_picture(results: Sequence[Results], path: Path) -> None:
    """Draw one panel a study: score by epsilon with noise in shares, and without privacy.

    Shown are FedMVP's entry and the best other trained method (both by their score without privacy), the linear probe
    and zero-shot. A study without `record-distributed` shows the mode it has, and says so.

    Args:
        results: one a study, at least one.
        path: the file; .png or .svg chooses the format.

    Raises:
        UserError: another suffix, results that hold nothing to show, or no matplotlib.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in {"png", "svg"}:
        raise UserError(f"{path} is neither .png nor .svg", remedy="choose one of them", exit_code=ExitCode.USAGE)
    studies = [as_study(found) for found in results]
    with themed(LIGHT):
        write_atomic(path, saved(_draw(studies), kind))


def _draw(studies: Sequence[Study]) -> Any:
    n_columns = min(_COLUMNS, len(studies))
    n_rows = math.ceil(len(studies) / n_columns)
    figure = new_figure(_WIDTH_INCHES * n_columns, _HEIGHT_INCHES * n_rows)
    panels = list(figure.subplots(n_rows, n_columns, squeeze=False).flat)
    for axes in panels[len(studies) :]:
        axes.set_visible(False)
    for axes, study in zip(panels, studies, strict=False):
        _panel(axes, study, study.comparisons[-1])
    return figure


def _panel(axes: Any, study: Study, comparison: Comparison) -> None:
    """The study's largest number of sites."""
    shown = {chosen(comparison), best_other(comparison), probe(comparison)}
    mode = comparison.headline[0].mode if comparison.headline else ""
    places = drawing.epsilon_places(comparison, mode)
    curves = [curve for curve in drawing.curves_by_epsilon(comparison, mode, LIGHT) if curve.entry in shown]
    drawing.epsilon_axis(axes, places, LIGHT)
    drawing.draw_by_epsilon(axes, curves, places[PLAIN])
    ends = [Label(curve.end, curve.entry.method, curve.look.colour, curve.look.strong) for curve in curves]
    start = floor(comparison)
    level = comparison.score(start, PLAIN) if start is not None else None
    if level is not None:
        axes.axhline(100 * level.mean, color=LIGHT.muted, linewidth=1.3, linestyle="--")
        ends.append(Label(100 * level.mean, "zero-shot", LIGHT.muted))
    axes.set_ylim(drawing.limits(comparison, [value for curve in curves for value in curve.points.values()]))
    axes.set_title(fill(study.title, _TITLE_LETTERS), fontsize=9.5)
    axes.set_ylabel(fill(drawing.score_words(comparison.facts), _LABEL_LETTERS), fontsize=8)
    axes.set_xlabel(f"ε{f', {mode}' if mode else ''}\n{wording.short_terms(comparison.facts, [mode])}", fontsize=7.5)
    label_ends(axes, ends, _HEIGHT_INCHES * 0.65)
