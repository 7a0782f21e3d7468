"""What a report is made from: results files, each checked before anything is drawn."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmvp.errors import ExitCode, UserError
from fedmvp.experiments.report.summary import Comparison, comparisons, missing
from fedmvp.experiments.results import Results, read_results

RESULTS_FILE = "results.parquet"


@dataclass(frozen=True)
class Study:
    """One study, checked.

    Attributes:
        results: as read.
        name: for file names and links: letters, digits, dots, dashes and underscores.
        missing: cells that were planned or begun and are not finished.
        comparisons: one for each number of sites, at least one.
    """

    results: Results
    name: str
    missing: tuple[str, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def title(self) -> str:
        """The title, or the name where there is none."""
        return str(self.results.facts.get("title") or self.results.facts.get("name"))


def read_studies(paths: Sequence[Path]) -> tuple[Study, ...]:
    """Read results files, or folders that hold one.

    Args:
        paths: at least one, each of another study.

    Raises:
        UserError: a file is missing, is no results file, holds nothing to report or what cannot be a measurement, or is
            the second one of a study.
    """
    found: dict[str, tuple[Path, Study]] = {}
    for given in paths:
        path = given / RESULTS_FILE if given.is_dir() else given
        study = as_study(read_results(path), where=str(path))
        if study.name in found:
            raise UserError(
                f"{found[study.name][0]} and {path} are both of the study '{study.name}'",
                remedy="name one of them; a report compares the methods of a study, not two runs of it",
                exit_code=ExitCode.USAGE,
            )
        found[study.name] = (path, study)
    return tuple(study for _, study in found.values())


def as_study(results: Results, *, where: str = "results") -> Study:
    """Check what a study measured.

    Args:
        results: of one study.
        where: what messages call them.

    Raises:
        UserError: no rows, no finished cell, a value that is not a number, or two values in one place.
    """
    again = "run the study again: fedmvp-experiment run STUDY.toml"
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", str(results.facts.get("name") or "")).strip("-.")
    if not name:
        raise UserError(f"{where} does not name its study", remedy=again)
    if not results.rows:
        raise UserError(f"{where} has no rows", remedy=again)
    seen = set()
    for cell, measured in results.rows:
        place = cell, measured.metric, measured.group, measured.round
        if math.isnan(measured.value) or (math.isinf(measured.value) and measured.metric != "epsilon"):
            raise UserError(
                f"{where}: {measured.metric} of {cell.name} is {measured.value}, not a number", remedy=again
            )
        if place in seen:
            raise UserError(f"{where}: {cell.name} has two values of {measured.metric} in one place", remedy=again)
        seen.add(place)
    found = comparisons(results)
    if not found:
        raise UserError(
            f"{where}: none of the cells is finished", remedy="let fedmvp-experiment run finish at least one of them"
        )
    return Study(results, name, tuple(missing(results)), found)
