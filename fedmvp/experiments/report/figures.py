"""The figures with lines: utility against privacy, and against rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedmvp.experiments.report import drawing, wording
from fedmvp.experiments.report.drawing import Curve
from fedmvp.experiments.report.questions import one_size_each
from fedmvp.experiments.report.style import Theme, looks, new_figure
from fedmvp.experiments.report.summary import PLAIN, Comparison, Terms

_MARKS_ON_A_CURVE = 6
_ROW_INCHES = 2.8


def privacy_figure(comparison: Comparison, theme: Theme) -> Any:
    """Score by epsilon, one panel a mode, without privacy at the right."""
    panels = {mode: drawing.curves_by_epsilon(comparison, mode, theme) for mode in comparison.modes}
    limits = drawing.limits(
        comparison, [value for curves in panels.values() for curve in curves for value in curve.points.values()]
    )
    figure, all_axes = drawing.panels(len(panels), height=4.2)
    for axes, (mode, curves) in zip(all_axes, panels.items(), strict=True):
        places = drawing.epsilon_places(comparison, mode)
        drawing.epsilon_axis(axes, places, theme)
        axes.set(ylim=limits, title=mode, xlabel=f"ε ({wording.short_terms(comparison.facts, [mode])})")
        drawing.draw_by_epsilon(axes, curves, places[PLAIN])
        drawing.draw_baselines(axes, comparison, theme)
    drawing.name_curves(all_axes[-1], list(panels.values())[-1], comparison, theme, 3.3)
    all_axes[0].set_ylabel(drawing.score_words(comparison.facts))
    return figure


def convergence_figure(comparison: Comparison, theme: Theme) -> Any:
    """Score by round: without privacy, then the loosest and the strictest epsilon of each mode, a mode a row."""
    rows = _convergence_rows(comparison)
    marks = looks(theme, comparison.trained)
    curves = {
        terms: [
            Curve(
                entry, marks[entry], {float(number): value for number, value in comparison.rounds(entry, terms).items()}
            )
            for entry in one_size_each(comparison)
        ]
        for row in rows
        for terms in row
        if terms is not None
    }
    ends = [value for found in curves.values() for curve in found for value in curve.points.values()]
    limits = drawing.limits(comparison, ends)
    n_columns = max(len(row) for row in rows)
    figure = new_figure(drawing.PANEL_INCHES * n_columns + drawing.LABELS_INCHES, _ROW_INCHES * len(rows))
    grid = figure.subplots(len(rows), n_columns, sharey=True, squeeze=False)
    for panels, row in zip(grid, rows, strict=True):
        shown = [(axes, terms) for axes, terms in zip(panels, row, strict=True) if terms is not None]
        for axes, terms in shown:
            axes.set(ylim=limits, title=terms.label, xlabel="round")
            axes.tick_params(labelleft=axes is shown[0][0])
            for curve in curves[terms]:
                every = max(1, len(curve.points) // _MARKS_ON_A_CURVE)
                drawing.draw_line(axes, curve.points, curve.look, every=every)
            drawing.draw_baselines(axes, comparison, theme)
        shown[0][0].set_ylabel(drawing.score_words(comparison.facts))
        drawing.name_curves(shown[-1][0], curves[shown[-1][1]], comparison, theme, _ROW_INCHES - 0.75)
        for axes, place in zip(panels, row, strict=True):
            if place is None:
                axes.set_axis_off()
    _explain(grid, rows, curves[PLAIN])
    return figure


def _convergence_rows(comparison: Comparison) -> list[list[Terms | None]]:
    rows: list[list[Terms | None]] = []
    for mode in comparison.modes:
        own = [terms for terms in comparison.private if terms.mode == mode]
        rows.append([None if rows else PLAIN, *dict.fromkeys([own[0], own[-1]])])
    width = max((len(row) for row in rows), default=1)
    return [row + [None] * (width - len(row)) for row in rows] or [[PLAIN]]


def _explain(grid: Any, rows: Sequence[Sequence[Terms | None]], curves: Sequence[Curve]) -> None:
    """Colours and marks in the first place that no panel needs."""
    free = [
        axes
        for panels, row in zip(grid, rows, strict=True)
        for axes, terms in zip(panels, row, strict=True)
        if terms is None
    ]
    if not free:
        return
    for curve in curves:
        free[0].plot(
            [],
            [],
            color=curve.look.colour,
            marker=curve.look.marker,
            markersize=curve.look.size,
            linewidth=curve.look.width,
            label=curve.entry.label,
        )
    free[0].legend(loc="center left", frameon=False, fontsize=8.5, handlelength=2.6)
