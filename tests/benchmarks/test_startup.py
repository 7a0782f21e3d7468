"""The benchmark of the start runs on a tiny site; nothing here looks at how long anything took."""

from __future__ import annotations

import json

import pytest

from benchmarks import startup

PARTS = {
    "Python, gRPC, cryptography",
    "configuration, ledger, budget",
    "PyTorch, open_clip, Opacus",
    "backbone, attributes, images, features",
    "the step",
    "in all",
}


@pytest.mark.long
def test_the_start_of_both_programs_and_of_a_site_is_timed_part_by_part(capsys):
    startup.main(["--repeats", "1", "--images", "20", "--threads", "1", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {f"{name} --help" for name in startup.PROGRAMS} | {f"first step: {part}" for part in PARTS}
    parts = [report[f"first step: {part}"][0][0] for part in PARTS - {"in all"}]
    assert report["first step: in all"][0][0] == pytest.approx(sum(parts))


def test_the_table_has_the_fastest_and_the_median_of_the_repeats(capsys, monkeypatch):
    monkeypatch.setattr(startup, "measure", lambda *_options: {"a start": [(3.0, 1.5), (1.0, 0.5), (2.0, 1.0)]})
    startup.main([])
    assert capsys.readouterr().out.splitlines()[1].split() == ["a", "start", "1.00", "2.00", "0.50"]
