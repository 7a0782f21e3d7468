"""What nobody who looks at a study may overlook."""

from __future__ import annotations

from dataclasses import dataclass

from fedmvp.experiments.report import wording
from fedmvp.experiments.report.costs import overspent_cells, without_epsilon
from fedmvp.experiments.report.reading import Study
from fedmvp.experiments.report.summary import finished


@dataclass(frozen=True)
class Alert:
    """Something that nobody may overlook.

    Attributes:
        kind: "error", "warning" or "note".
        text: a sentence or two.
        items: what it is about, one a line.
    """

    kind: str
    text: str
    items: tuple[str, ...] = ()


def alerts_of(study: Study) -> list[Alert]:
    """Errors first, then warnings, then what the study itself notes."""
    facts, alerts = study.results.facts, []
    if beyond_target := overspent_cells(study.results):
        alerts.append(
            Alert(
                "error",
                "A site spent more than its cell's ε. These cells do not have the privacy that their column says; "
                "nothing may be concluded from them until that is explained.",
                tuple(f"{cell.name}: spent {value:.4g}, target {cell.epsilon:g}" for cell, value in beyond_target),
            )
        )
    if silent := sum(without_epsilon(comparison) for comparison in study.comparisons):
        alerts.append(Alert("error", f"{silent} private cells do not say what their sites spent of ε."))
    if study.missing:
        done = len(finished(study.results))
        alerts.append(
            Alert(
                "warning",
                f"Not finished, and not in what follows: {len(study.missing)} of {len(study.missing) + done} cells.",
                study.missing,
            )
        )
    for line, warning in wording.settings_lines(facts):
        words = f"Where hyper-parameters come from: {line.rstrip('.')}."
        alerts.append(Alert("warning", f"{words} {warning}") if warning else Alert("note", words))
    alerts += [Alert("note", line) for line in wording.lines(facts.get("notes"))]
    return alerts
