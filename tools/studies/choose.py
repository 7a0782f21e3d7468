"""Choose the settings of every method on public images: the same number of trials, over the same grid, for each.

    python -m tools.studies.choose studies/choice-styled.toml --data DATA --out studies/choice-styled.jsonl

Without privacy the server's step size and the sites' are tried; with privacy the server's step size and the clipping
norm, by the mean score over the study's epsilons. Trials that are in the file already are not run again. Prints what
was chosen as the tables of a study; every trial stays in the file.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fedmvp.experiments.cell import Bench
from fedmvp.experiments.results import NON_PRIVATE, SCORE
from fedmvp.experiments.run import log_errors_alone
from fedmvp.experiments.study import MethodEntry, Study, TrainingChange, load_study
from fedmvp.experiments.sweep import plan_cells

SERVER_STEPS = (0.003, 0.01, 0.03, 0.1)
SITE_STEPS = (0.1, 1.0)
CLIPPING_NORMS = (0.1, 1.0)


def trials(mode: str) -> Iterator[dict[str, float]]:
    """Yield the settings that are tried in a mode."""
    second = ("learning_rate", SITE_STEPS) if mode == NON_PRIVATE else ("max_grad_norm", CLIPPING_NORMS)
    for server, other in itertools.product(SERVER_STEPS, second[1]):
        yield {"server_learning_rate": server, second[0]: other}


def run_trials(study: Study, data: Path, out: Path) -> list[dict[str, Any]]:
    """Run the trials that are not in the file, and return all of them."""
    done = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
    known = {(trial["method"], trial["mode"], json.dumps(trial["settings"])) for trial in done}
    bench: Bench | None = None
    for entry in study.methods:
        for mode in study.privacy.modes:
            for settings in trials(mode):
                if (entry.name, mode, json.dumps(settings)) in known:
                    continue
                if bench is None:
                    bench = Bench(study, data, out.parent / "scratch")
                scores = _scores(study, bench, entry, mode, settings)
                trial = {"method": entry.name, "mode": mode, "settings": settings, "scores": scores}
                done.append(trial)
                with out.open("a") as file:
                    file.write(json.dumps(trial) + "\n")
    return done


def _scores(
    study: Study, bench: Bench, entry: MethodEntry, mode: str, settings: dict[str, float]
) -> dict[str, list[float]]:
    """The final score by epsilon, one a seed."""
    changed = entry.model_copy(update={"training": TrainingChange.model_validate(settings)})
    privacy = study.privacy.model_copy(update={"modes": (mode,)})
    tried = study.model_copy(update={"methods": (changed,), "privacy": privacy})
    scores: dict[str, list[float]] = {}
    for plan in plan_cells(tried, bench.material.site_counts):
        measured = bench.run(plan)
        final = next(row.value for row in measured if row.metric == SCORE and row.round is None)
        scores.setdefault("none" if plan.cell.epsilon is None else f"{plan.cell.epsilon:g}", []).append(final)
    return scores


def best(done: list[dict[str, Any]], method: str, mode: str) -> dict[str, Any]:
    """Return the trial with the highest mean over epsilons and seeds; of equals the first."""
    return max((t for t in done if (t["method"], t["mode"]) == (method, mode)), key=mean_score)


def mean_score(trial: dict[str, Any]) -> float:
    """Return the mean over epsilons and seeds."""
    values = [value for scores in trial["scores"].values() for value in scores]
    return sum(values) / len(values)


def main() -> None:
    """Choose settings."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="trials, one a line; goes on from here if it exists")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    log_errors_alone()
    study = load_study(arguments.study)
    done = run_trials(study, arguments.data, arguments.out)
    for entry in study.methods:
        print(f'\n[[methods]]\nname = "{entry.name}"')
        for mode in study.privacy.modes:
            chosen = best(done, entry.name, mode)
            settings = ", ".join(f"{name} = {value:g}" for name, value in chosen["settings"].items())
            print(f"modes.{mode} = {{ {settings} }}  # {mean_score(chosen):.3f} on public images")


if __name__ == "__main__":
    main()
