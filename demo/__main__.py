"""``make demo``: runs everything and leaves runs/demo behind. MODE chooses who adds the noise; see demo/modes.py."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from demo.digits import DigitFolders, write_digits
from demo.modes import CHANGES, DEFAULT_MODE, TRUST, chosen_mode, policy_text
from demo.outcome import Outcome, check_sums
from demo.processes import Processes, free_port
from demo.references import LabelledFeatures, nonprivate_accuracy, probe_accuracy
from demo.watch import Display, EventTail, Progress
from fedmvp.cli.program import report
from fedmvp.client.trainer import feature_cache_of
from fedmvp.data.dataset import image_folder
from fedmvp.data.source import ImageFiles
from fedmvp.errors import ExitCode, UserError
from fedmvp.evaluation.accuracy import accuracy_of, prompted_logits, zero_shot_logits
from fedmvp.model.feature_cache import FeatureCache
from fedmvp.model.feature_records import gather_features
from fedmvp.model.features import FrozenFeatures
from fedmvp.model.from_policy import build_prompted_model
from fedmvp.model.parameters import dimension
from fedmvp.model.prompted import PromptedModel
from fedmvp.study.config import load_client_config
from fedmvp.study.policy import StudyPolicy
from fedmvp.study.prompts import read_prompts
from fedmvp.study.site import SiteOptions
from fedmvp.study.workshop import Study, create_study
from privacy.ledger import Ledger

N_SITES = 4
KILLED_SITE = "site-3"
KILLED_IN_ROUND = 10
MAX_SECONDS = 600.0
N_SAMPLES = 16


@dataclass(frozen=True)
class Prepared:
    """The folders of one demo."""

    digits: DigitFolders
    study: Study


def prepare(folder: Path, text: str) -> Prepared:
    """Write images and the study of a policy's text; every site makes its own keys and its own ledger."""
    digits = write_digits(folder / "images", N_SITES)
    sites = [
        SiteOptions(
            name=f"site-{i + 1}",
            organisation=f"Organisation {i + 1}",
            data=digits.sites[i],
            dataset_id=f"digits-{i + 1}",
        )
        for i in range(N_SITES)
    ]
    study = create_study(
        folder / "study", text, sites=sites, listen=f"127.0.0.1:{free_port()}", evaluation_images=digits.public
    )
    for options in sites:
        config = study.site_configs[options.name]
        one_thread(config)
        Ledger.create(
            config.parent / "ledger.sqlite",
            dataset_id=options.dataset_id,
            delta=study.policy.privacy.delta,
            epsilon_max=study.policy.privacy.epsilon_max,
            unit=study.policy.privacy.unit,
        ).close()
    return Prepared(digits, study)


def one_thread(config: Path) -> None:
    """Five processes share this machine's cores."""
    config.write_text(config.read_text(encoding="utf-8").replace("threads = 0 ", "threads = 1 "), encoding="utf-8")


def federate(folder: Path, study: Study, *, killed_in_round: int = KILLED_IN_ROUND) -> tuple[Progress, float]:
    """Run server and sites to the last round; kill one site on the way and start it again."""
    processes = Processes(folder)
    tail = EventTail(study.server_config.parent / "state" / "events.jsonl")
    progress = Progress(study.policy.study.rounds)
    start = time.monotonic()
    try:
        processes.start_server(study.server_config)
        for name, config in study.site_configs.items():
            processes.start_site(name, config, die_in_round=killed_in_round if name == KILLED_SITE else 0)
        restarted = False
        with Display(progress) as display:
            while not progress.finished:
                for event in tail.read():
                    progress.take(event)
                if not restarted and processes.was_killed(KILLED_SITE):
                    display.note(
                        f"{KILLED_SITE} was killed in round {killed_in_round}, its keys shared, its vector not yet "
                        "sent; starting it again"
                    )
                    processes.start_site(KILLED_SITE, study.site_configs[KILLED_SITE])
                    restarted = True
                processes.check(may_be_killed="" if restarted else KILLED_SITE)
                if time.monotonic() - start > MAX_SECONDS:
                    raise UserError(
                        f"the demo did not finish in {MAX_SECONDS:.0f} s",
                        remedy=f"read {folder / 'logs'}",
                        exit_code=ExitCode.INTERNAL,
                    )
                display.refresh()
                time.sleep(0.05)
            processes.wait(30)
            processes.check(may_be_killed="")
    finally:
        processes.stop()
    return progress, time.monotonic() - start


def labelled(model: PromptedModel, folder: Path, policy: StudyPolicy, cache: FeatureCache | None) -> LabelledFeatures:
    """Frozen features of one folder."""
    dataset = image_folder(folder, policy.task.class_names)
    records = gather_features(model, ImageFiles(dataset, model.backbone.image_size), cache=cache)
    return LabelledFeatures(FrozenFeatures(records.all()), torch.tensor(dataset.labels, dtype=torch.int64))


def conclude(folder: Path, prepared: Prepared, progress: Progress, seconds: float) -> tuple[Outcome, list[Any]]:
    """Measure the references, check the sums, read the ledgers, choose sample predictions."""
    study, policy = prepared.study, prepared.study.policy
    names = {entry.site_id: entry.name for entry in study.roster.entries}
    model = build_prompted_model(policy)
    error, checked = check_sums(folder / "sums", policy.secure_sum(dimension(model)), names)
    spent = {}
    for name, config in study.site_configs.items():
        with Ledger.open(config.parent / "ledger.sqlite", read_only=True) as ledger:
            spent[name] = ledger.spent()
    public = labelled(model, prepared.digits.public, policy, None)
    sites = [
        labelled(model, path, policy, feature_cache_of(load_client_config(study.site_configs[f"site-{i + 1}"])))
        for i, path in enumerate(prepared.digits.sites)
    ]
    prompts = read_prompts(folder / "prompts.safetensors")
    with torch.no_grad():
        before, after = (
            zero_shot_logits(model, public.features),
            prompted_logits(model, public.features, parameters=prompts.parameters),
        )
    samples = sample_predictions(prepared.digits.public, policy, before, after)
    reference = folder / "references"
    reference.mkdir()
    say("measuring the references: the same study without privacy, and a private linear probe")
    probe, probe_epsilon = probe_accuracy(policy, model, sites, public, reference)
    outcome = Outcome(
        zero_shot=accuracy_of(before, public.labels),
        tuned=accuracy_of(after, public.labels),
        nonprivate=nonprivate_accuracy(policy, model, sites, public, reference),
        probe=probe,
        probe_epsilon=probe_epsilon,
        spent=spent,
        rounds=progress.rounds_seen,
        dropped=tuple((names[site], event["round"]) for event in progress.rounds_seen for site in event["dropped"]),
        max_abs_sum_error=error,
        rounds_checked=checked,
        seconds=seconds,
        dimension=dimension(model),
        names=progress.names,
        mode=policy.privacy.mode,
    )
    return outcome, samples


def sample_predictions(folder: Path, policy: StudyPolicy, before: torch.Tensor, after: torch.Tensor) -> list[Any]:
    """Public images spread evenly over the classes, chosen by position and not by result."""
    from demo.report import SamplePrediction  # noqa: PLC0415 (matplotlib takes a second)

    names = policy.task.class_names
    dataset = image_folder(folder, names)
    chosen = np.linspace(0, len(dataset) - 1, N_SAMPLES).astype(int)
    return [
        SamplePrediction(
            image=dataset.paths[i],
            truth=names[dataset.labels[i]],
            zero_shot=names[int(before[i].argmax())],
            tuned=names[int(after[i].argmax())],
            probability=float(after[i].softmax(0).max()),
        )
        for i in chosen
    ]


def print_outcome(outcome: Outcome, folder: Path) -> None:
    """The closing tables on standard output."""
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    results = Table(
        "model",
        "accuracy",
        "95 % interval",
        "epsilon",
        title="Public images that no site owns",
        title_justify="left",
        box=None,
    )
    for name, found, epsilon in (
        ("zero-shot", outcome.zero_shot, "0"),
        ("tuned prompts, private", outcome.tuned, f"{outcome.epsilon:.2f}"),
        ("without privacy (UNSAFE-no-dp)", outcome.nonprivate, "unbounded"),
        ("private linear probe", outcome.probe, f"{outcome.probe_epsilon:.2f}"),
    ):
        results.add_row(name, f"{found.value:.3f}", f"{found.low:.3f} - {found.high:.3f}", epsilon)
    console.print(results)
    sites = Table(
        "site",
        "epsilon",
        "delta",
        "adjacency",
        "accountant",
        "charged rounds",
        "MB sent",
        title="Budgets, from each site's own ledger",
        title_justify="left",
        box=None,
    )
    for name, spent in outcome.spent.items():
        sites.add_row(
            name,
            f"{spent.epsilon:.3f}",
            f"{spent.delta:g}",
            f"{spent.neighboring_relation} {spent.unit}",
            spent.accountant,
            str(spent.rounds),
            f"{outcome.bytes_up_by_site[name] / 1e6:.2f}",
        )
    console.print(sites)
    if outcome.mode != DEFAULT_MODE:
        console.print(outcome.guarantee())
    for sentence in outcome.dropouts():
        console.print(sentence)
    console.print(f"largest error of {outcome.rounds_checked} published sums: {outcome.max_abs_sum_error:g}")
    console.print(f"{len(outcome.rounds)} rounds in {outcome.seconds:.0f} s; look at {folder / 'report.html'}")


def say(line: str) -> None:
    """One line for people."""
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Run the demo in runs/demo, which is made anew."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument(
        "--mode", default=None, help=f"{', '.join(CHANGES)}; or the environment variable MODE; default {DEFAULT_MODE}"
    )
    mode = chosen_mode(parser.parse_args().mode)
    folder = Path("runs/demo")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    say("writing 5,000 handwritten digits, keys, certificates, policy and ledgers to runs/demo")
    prepared = prepare(folder, policy_text(mode))
    if mode != DEFAULT_MODE:
        say(f"mode {mode}: {TRUST[mode]}")
    say("starting one server and four sites, each a process of its own")
    progress, seconds = federate(folder, prepared.study)
    shutil.copyfile(
        prepared.study.server_config.parent / "state" / "prompts.safetensors", folder / "prompts.safetensors"
    )
    outcome, samples = conclude(folder, prepared, progress, seconds)
    from demo.report import write_report  # noqa: PLC0415 (matplotlib takes a second)

    write_report(folder / "report.html", outcome, samples)
    (folder / "summary.json").write_text(json.dumps(outcome.summary(), indent=1) + "\n", encoding="utf-8")
    print_outcome(outcome, folder)


def stop(_number: int, _frame: object) -> None:
    """End as Ctrl-C does, so that no process is left behind."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 (shown as the commands show it)
        sys.exit(report(error))
