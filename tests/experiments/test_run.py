import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from fedmvp.cli.experiment import experiment
from fedmvp.errors import UserError
from fedmvp.experiments.results import read_results, write_results
from fedmvp.experiments.run import LocalEngine, StudyRun, run_study
from fedmvp.experiments.sweep import CellPlan
from fedmvp.study.templates import toml_value
from tests.experiments.tiny_study import lasting, make_run, make_study, study_values, write_images

ROOT = Path(__file__).parents[2]


class Counting:
    """The local engine, which says what it was asked to run."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.asked: list[str] = []
        self._stop_after = stop_after

    def run(self, run: StudyRun, groups: Sequence[Sequence[CellPlan]], watch: Callable[[], None]) -> None:
        plans = [plan for group in groups for plan in group]
        self.asked = [plan.cell.name for plan in plans]
        LocalEngine().run(run, [[plan] for plan in plans[: self._stop_after]], watch)
        if self._stop_after is not None:
            raise KeyboardInterrupt


def write_study(folder: Path, **changes: object) -> Path:
    values = study_values(folder, **changes)
    lines = []
    for name, value in values.items():
        if isinstance(value, dict):
            lines += [f"[{name}]", *(f"{key} = {toml_value(item)}" for key, item in value.items())]
    for entry in values["methods"]:
        lines += ["[[methods]]", *(f"{key} = {toml_value(item)}" for key, item in entry.items())]
    path = folder / "STUDY.toml"
    path.write_text("\n".join(lines))
    return path


def test_what_was_finished_before_a_stop_is_not_run_again(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    first = Counting(stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        run_study(run, first)
    assert not (run.out / "results.parquet").exists()
    second = Counting()
    seen: list[tuple[int, int]] = []
    results = read_results(run_study(run, second, lambda done, total: seen.append((done, total))))
    assert second.asked == first.asked[2:]
    assert seen[0] == (2, len(first.asked))
    assert seen[-1] == (len(first.asked), len(first.asked))
    assert {cell.name for cell in results.cells} == set(first.asked)
    third = Counting()
    run_study(run, third)
    assert third.asked == []


def test_a_killed_process_leaves_whole_cells_and_the_next_one_goes_on(tmp_path: Path) -> None:
    write_images(tmp_path)
    study = write_study(tmp_path, study={"seeds": [0, 1, 2]})
    command = [sys.executable, "-c", "from fedmvp.cli.experiment import main; main()", "run", str(study)]
    command += ["--data", str(tmp_path), "--out", str(tmp_path / "run"), "--workers", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    cells = tmp_path / "run" / "cells"
    while len(list(cells.glob("*.parquet"))) < 4 and child.poll() is None:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    kept = {path: path.stat().st_mtime_ns for path in cells.glob("*.parquet")}
    assert 4 <= len(kept) < 9
    for path in kept:
        assert read_results(path).rows
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(read_results(tmp_path / "run" / "results.parquet").cells) == 9
    assert "report" in done.stderr


def test_cells_of_other_settings_are_not_taken_for_this_studys(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run_study(run, LocalEngine())
    other = replace(run, study=make_study(tmp_path, training={"learning_rate": 0.25}))
    with pytest.raises(UserError, match="other settings") as refused:
        run_study(other, LocalEngine())
    assert "--out" in refused.value.remedy
    words = tmp_path / "colours.toml"
    words.write_text(words.read_text().replace("a red square", "a red patch"))
    with pytest.raises(UserError, match="other settings, data or software"):
        run_study(run, LocalEngine())


def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    run = make_run(tmp_path, study={"seeds": [0, 1]})
    alone = run_study(run, LocalEngine())
    together = run_study(replace(run, out=tmp_path / "other"), LocalEngine(workers=2))
    assert lasting(alone) == lasting(together)
    assert read_results(alone).facts == read_results(together).facts


def test_a_workers_mistake_reaches_the_person(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (tmp_path / "squares/dark/red/3.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"squares/dark/red/3\.png"):
        run_study(run, LocalEngine(workers=2))


def test_the_results_say_what_every_report_must_say(tmp_path: Path) -> None:
    run = make_run(tmp_path, settings_from={"kind": "private-uncharged", "note": "looked at the targets"})
    facts = read_results(run_study(run, LocalEngine())).facts
    assert facts["delta"] == 1e-3
    assert facts["unit"] == "record"
    assert facts["neighboring_relation"] == "add-or-remove-one"
    assert "PLD" in facts["accountant"]
    assert "cifar10" in facts["tower"]["data"]
    assert [site["name"] for site in facts["sites"]] == ["dark", "noisy", "plain"]
    assert facts["settings_from"] == "private-uncharged: looked at the targets"
    assert any("not charged" in note for note in facts["notes"])
    assert any("seeds" in note for note in facts["notes"])
    assert len(facts["planned"]) == 3


def test_the_command_prints_where_the_results_are_and_a_mistake_names_the_key(tmp_path: Path) -> None:
    write_images(tmp_path)
    study = write_study(tmp_path, methods=[{"name": "zero-shot-attributes"}])
    arguments = ["run", str(study), "--data", str(tmp_path), "--out", str(tmp_path / "run"), "--workers", "1"]
    done = CliRunner().invoke(experiment, arguments)
    assert done.exit_code == 0, done.output
    assert "results.parquet" in done.output
    study.write_text(study.read_text().replace("rounds =", "rouns ="))
    broken = CliRunner().invoke(experiment, arguments)
    assert isinstance(broken.exception, UserError)
    assert "[training] rouns" in broken.exception.what


def test_a_results_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_results(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("rows")
    with pytest.raises(UserError, match="cannot be read"):
        read_results(tmp_path / "text.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet  # noqa: PLC0415

    parquet.write_table(pyarrow.table({"method": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(UserError, match="holds no results"):
        read_results(tmp_path / "other.parquet")
    write_results(tmp_path / "empty.parquet", {"name": "a"}, [])
    assert read_results(tmp_path / "empty.parquet").rows == ()
