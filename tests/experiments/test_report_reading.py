"""What a report refuses, and the command."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fedmvp.errors import ExitCode, UserError
from fedmvp.experiments.report.output import write_report
from fedmvp.experiments.report.reading import as_study, read_studies
from fedmvp.experiments.results import Measurement, Results, write_results
from tests.cli.conftest import Run, run
from tests.experiments.synthetic import FACTS, MODES, SMALL, Synthetic, titled

__all__ = ["run"]  # a fixture

PROGRAM = "fedmvp-experiment"


def saved(folder: Path, results: Results, name: str = "results.parquet") -> Path:
    write_results(folder / name, results.facts, results.rows)
    return folder / name


def test_a_folder_of_a_study_is_read_and_what_cannot_be_is_refused(tmp_path: Path) -> None:
    results = SMALL.results()
    path = saved(tmp_path / "run", results)
    assert read_studies([tmp_path / "run"]) == read_studies([path])
    copied = saved(tmp_path / "again", results)
    for paths, words in (
        ([tmp_path / "no.parquet"], "does not exist"),
        ([tmp_path], "does not exist"),
        ([path, copied], "are both of the study 'pacs-sketch'"),
    ):
        with pytest.raises(UserError, match=words):
            read_studies(paths)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (Results(FACTS, ()), "has no rows"),
        (replace(SMALL.results(), facts={}), "does not name its study"),
        (Results(FACTS, SMALL.results().rows[:1]), "none of the cells is finished"),
        (Results(FACTS, SMALL.results().rows[:2] * 2), "two values of parameters"),
        (Results(FACTS, ((SMALL.results().cells[0], Measurement("score", float("nan"))),)), "is nan, not a number"),
        (Results(FACTS, ((SMALL.results().cells[0], Measurement("score", float("inf"))),)), "is inf, not a number"),
    ],
)
def test_results_that_hold_nothing_to_report_are_refused(broken: Results, words: str) -> None:
    with pytest.raises(UserError, match=words):
        as_study(broken)


def test_the_command_writes_page_pictures_and_tables(run: Run, tmp_path: Path) -> None:
    trained = {("promptfl", ""): (0.8, 2048)}
    results = Synthetic(trained=trained, modes=MODES[:1], epsilons=(8.0,), seeds=(0,), rounds=0).results()
    path = saved(tmp_path, results)
    result = run(PROGRAM, "report", path, "--out", tmp_path / "out", "--markdown")
    assert (result.code, result.out) == (0, (tmp_path / "out" / "tables.md").read_text("utf-8"))
    assert (tmp_path / "out" / "report.html").is_file()
    assert f"wrote {tmp_path / 'out' / 'report.html'}" in result.err
    assert "No entry of FedMVP was finished without privacy" in result.out


def test_the_command_fails_after_writing_where_too_much_was_spent(run: Run, tmp_path: Path) -> None:
    trained = {("promptfl", ""): (0.8, 2048)}
    results = Synthetic(trained=trained, modes=MODES[:1], epsilons=(8.0,), seeds=(0,), rounds=0).results()
    rows = [(cell, replace(found, value=9.0) if found.metric == "epsilon" else found) for cell, found in results.rows]
    path = saved(tmp_path, titled(replace(results, rows=tuple(rows)), planned=["one-more"]))
    result = run(PROGRAM, "report", path, "--out", tmp_path / "out")
    assert (result.code, result.out) == (ExitCode.BUDGET, "")
    assert "promptfl-record-local-eps8-3sites-seed0 spent ε 9, above its target 8 (δ = 1e-05, record" in result.err
    assert "1 cells are not finished" in result.err
    assert (tmp_path / "out" / "report.html").is_file()


def test_the_commands_mistakes_have_one_message(run: Run, tmp_path: Path) -> None:
    result = run(PROGRAM, "report", tmp_path / "none", "--out", tmp_path / "out")
    assert (result.code, result.err.count("error:"), result.err.count("remedy:")) == (ExitCode.CONFIG, 1, 1)
    assert run(PROGRAM, "report", "--out", tmp_path / "out").code == ExitCode.USAGE


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="matplotlib") as caught:
        write_report([as_study(SMALL.results())], tmp_path)
    assert caught.value.remedy == 'pip install "fedmvp[experiments]"'
    assert list(tmp_path.iterdir()) == []
