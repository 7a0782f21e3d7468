"""Trainings whose memory is estimated and then measured, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import re
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from fedmvp.model.attributes import build_attribute_bank
from fedmvp.model.features import FrozenFeatures, extract_features
from fedmvp.model.loading import random_backbone
from fedmvp.model.prompt_config import Injection, PromptConfig, Variant
from fedmvp.model.prompted import PromptedModel
from fedmvp.training.local import prompt_records
from fedmvp.training.memory import StepMemory, measure_step
from privacy import Ledger
from privacy.dpsgd import DpSgdEngine
from privacy.mechanism import PerformanceParameters
from tests.model.tiny import TASK, random_images, tiny_config
from tests.privacy.conftest import PARAMS

_PIECES = 3


@dataclass(frozen=True)
class Case:
    """A training by its model and the records of a piece."""

    variant: Variant
    injection: Injection
    records: int


@dataclass(frozen=True)
class Measured:
    """What was estimated, and how much the process grew, bytes."""

    memory: StepMemory
    grown: int


def measure(case: Case) -> Measured:
    """Estimate and train a case in a fresh process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.memory_case"])
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_train, args=(case, there))
    child.start()
    there.close()
    try:
        measured: Measured = here.recv()
    finally:
        child.join()
        here.close()
    return measured


def _train(case: Case, answer: Connection) -> None:
    torch.set_num_threads(1)
    model, features = _model_and_features(case)
    records, loss = prompt_records(model, features, torch.zeros(len(features), dtype=torch.int64))
    params = replace(PARAMS, sample_rate=1.0, noise_multiplier=20.0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger"
        with Ledger.create(path, dataset_id="d", delta=params.delta, epsilon_max=100.0) as ledger:
            engine = DpSgdEngine(
                model,
                loss,
                params=params,
                ledger=ledger,
                learning_rate=0.1,
                momentum=0.5,
                performance=PerformanceParameters(case.records),
            )
            with suppress(OSError):  # where it is forbidden the mark is that of building the model
                Path("/proc/self/clear_refs").write_text("5")
            before = _status("VmRSS")
            engine.run(records, 1)
            grown = _status("VmHWM") - before
            # Last, so that what a rehearsal leaves in the heap does not make the growth look smaller.
            answer.send(Measured(measure_step(engine, records, most=case.records), grown))


def _model_and_features(case: Case) -> tuple[PromptedModel, FrozenFeatures]:
    backbone = random_backbone(
        tiny_config(width=256, layers=3, image_size=64, patch_size=8, head_width=64), seed=1, name="measured"
    )
    config = PromptConfig(case.variant, case.injection, n_prompts=8, n_heads=4, bottleneck_width=16)
    model = PromptedModel(backbone, build_attribute_bank(backbone, TASK), config)
    features = extract_features(model, random_images(2, size=64))
    count = _PIECES * case.records // 2
    many = {name: value.repeat(count, *[1] * (value.dim() - 1)) for name, value in features.tensors.items()}
    return model, FrozenFeatures(many)


def _status(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024
