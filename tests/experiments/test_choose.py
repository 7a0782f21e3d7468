import json
from pathlib import Path

import pytest

from fedmvp.experiments.study import load_study
from tests.experiments.tiny_study import make_study, write_images
from tools.studies.choose import best, mean_score, run_trials, trials

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.mark.parametrize("name", ["choice-styled", "choice-pacs"])
def test_every_method_had_the_same_number_of_trials(name: str) -> None:
    done = [json.loads(line) for line in (STUDIES / f"{name}.jsonl").read_text().splitlines()]
    study = load_study(STUDIES / f"{name}.toml")
    for entry in study.methods:
        for mode in study.privacy.modes:
            tried = [t["settings"] for t in done if (t["method"], t["mode"]) == (entry.name, mode)]
            assert sorted(map(str, tried)) == sorted(map(str, trials(mode))), (entry.name, mode)


def test_trials_are_run_once_and_the_best_is_that_with_the_highest_mean(tmp_path: Path) -> None:
    write_images(tmp_path)
    study = make_study(
        tmp_path,
        methods=[{"name": "linear-probe"}],
        privacy={"modes": ["non-private"], "secure_sum": False},
        training={"rounds": 1, "server_optimizer": "adam"},
    )
    out = tmp_path / "trials.jsonl"
    done = run_trials(study, tmp_path, out)
    kept = out.read_text()
    assert len(done) == len(list(trials("non-private")))
    assert run_trials(study, tmp_path, out) == done
    assert out.read_text() == kept
    assert mean_score(best(done, "linear-probe", "non-private")) == max(map(mean_score, done))
