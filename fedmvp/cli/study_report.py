"""``fedmvp-experiment report``: results files as a page, pictures and tables."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from fedmvp.cli.program import say
from fedmvp.errors import ExitCode
from fedmvp.experiments.report.costs import overspent_cells
from fedmvp.experiments.report.output import TABLES_FILE, write_report
from fedmvp.experiments.report.picture import privacy_utility_picture
from fedmvp.experiments.report.reading import read_studies
from fedmvp.experiments.report.wording import full_terms

OVERVIEW_FILE = "overview.svg"
"""One small picture of all studies, for a first page."""


def report_studies(paths: Sequence[Path], folder: Path, *, markdown: bool) -> ExitCode:
    """Write a report and say where.

    Args:
        paths: results files, or folders of studies.
        folder: where the report is written.
        markdown: whether the tables are printed too.

    Returns:
        BUDGET where a site spent more than its cell's epsilon; the report is written then too, and shows it.

    Raises:
        UserError: results cannot be read or reported, or the report cannot be written.
    """
    studies = read_studies(paths)
    written = write_report(studies, folder)
    privacy_utility_picture([study.results for study in studies], folder / OVERVIEW_FILE)
    if markdown:
        sys.stdout.write((folder / TABLES_FILE).read_text(encoding="utf-8"))
    for study in studies:
        if study.missing:
            say(f"warning: {study.name}: {len(study.missing)} cells are not finished; the report names them")
    say(f"wrote {written[0]}, {written[1].name}, {OVERVIEW_FILE} and {len(written) - 2} pictures")
    code = ExitCode.OK
    for study in studies:
        for cell, spent in overspent_cells(study.results):
            terms = full_terms(study.results.facts, [cell.mode])
            say(f"error: {study.name}: {cell.name} spent ε {spent:.4g}, above its target {cell.epsilon:g} ({terms})")
            code = ExitCode.BUDGET
    return code
