"""How long a site waits for the command line, and for its first training step with the embedded model."""

# ruff: noqa: PLC0415 - what is imported where is what is measured

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measuring import Times

ROOT = Path(__file__).resolve().parents[1]
FIRST_STEP = "from benchmarks.startup import take_first_step; take_first_step({images})"


def startup_row(runs: int, images: int = 64) -> dict[str, Any]:
    """Measure both in processes of their own, after one run that fills the disk's cache."""
    program = Path(sys.executable).with_name("fedmvp-client")
    asked = Times(*zip(*[_run([str(program), "--help"]) for _ in range(runs + 1)][1:], strict=True))
    first = [sys.executable, "-c", FIRST_STEP.format(images=images)]
    stepped = Times(*zip(*[_run(first) for _ in range(runs + 1)][1:], strict=True))
    return {
        "help_s": asked.seconds,
        "help_processor_s": statistics.median(asked.processor),
        "first_step_s": stepped.seconds,
        "first_step_processor_s": statistics.median(stepped.processor),
        "images": images,
    }


def _run(command: list[str]) -> tuple[float, float]:
    """Wall and processor seconds of a process."""
    wall, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - wall, processor


def take_first_step(images: int) -> None:
    """From nothing to the end of the first private step: load, encode the texts, run the tower, train."""
    import torch

    from benchmarks.steps import PARAMETERS
    from fedmvp.model.attributes import build_attribute_bank
    from fedmvp.model.features import extract_features
    from fedmvp.model.loading import EMBEDDED_TAG, BackboneSpec, load_backbone
    from fedmvp.model.parameters import get_vector
    from fedmvp.model.prompt_config import PromptConfig
    from fedmvp.model.prompted import PromptedModel
    from fedmvp.model.task import Task, TaskClass
    from fedmvp.training.local import LocalTrainer, LocalTraining
    from privacy import Ledger

    backbone = load_backbone(BackboneSpec("fedmvp-tiny", EMBEDDED_TAG))
    task = Task(tuple(TaskClass(name, (f"the shape of a {name}",)) for name in ("cat", "car", "tree")))
    model = PromptedModel(backbone, build_attribute_bank(backbone, task), PromptConfig())
    size = backbone.image_size
    features = extract_features(model, torch.randint(0, 256, (images, 3, size, size), dtype=torch.uint8))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.db"
        with Ledger.create(path, dataset_id="first step", delta=PARAMETERS.delta, epsilon_max=8.0) as ledger:
            LocalTrainer.for_prompts(
                model,
                features,
                torch.arange(images) % len(task.classes),
                training=LocalTraining(learning_rate=0.1),
                privacy=PARAMETERS,
                ledger=ledger,
            ).train_round(get_vector(model))
