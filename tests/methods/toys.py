"""Methods on the tiny tower, small enough to be trained in a test, and a task that zero-shot does not know."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fedmvp.methods.classes import ClassSet, Wording
from fedmvp.methods.fedclip import AdapterForm, FedClip
from fedmvp.methods.fedmvp import FedMvp
from fedmvp.methods.fedtpg import FedTpg
from fedmvp.methods.fedvpt import FedVpt
from fedmvp.methods.linear_probe import Probe
from fedmvp.methods.method import Method, MethodModel
from fedmvp.methods.objective import MultiLabel, Objective, SingleLabel
from fedmvp.methods.promptfl import PromptFl
from fedmvp.methods.task_residual import TaskResidual
from fedmvp.methods.tower import FrozenTower
from fedmvp.methods.zero_shot import ZeroShot
from fedmvp.model.prompt_config import Injection, NeutralStart, PromptConfig, Variant
from fedmvp.model.task import Task, TaskClass
from tests.model.tiny import TASK, random_images, tiny_backbone

CLASSES = ClassSet(TASK)
UNSEEN = ClassSet(Task((TaskClass("dog", ("a wet nose",)), TaskClass("bus", ("many seats", "two doors")))))
TOWER = FrozenTower(tiny_backbone())
SMALL = PromptConfig(n_prompts=4, n_heads=2, bottleneck_width=8, lora_rank=2)

TRAINED: dict[str, Method] = {
    "fedmvp-narrow": FedMvp(SMALL),
    "fedmvp-full": FedMvp(replace(SMALL, variant=Variant.FULL)),
    "fedmvp-lora": FedMvp(replace(SMALL, variant=Variant.LORA)),
    "fedmvp at the input": FedMvp(replace(SMALL, injection=Injection.INPUT)),
    "fedmvp with a gate": FedMvp(replace(SMALL, neutral_start=NeutralStart.MIX)),
    "fedmvp with consistency": FedMvp(replace(SMALL, consistency_weight=2.0, flip=True)),
    "fedmvp-probe": FedMvp(replace(SMALL, probe_gain=4.0)),
    "promptfl": PromptFl(),
    "promptfl before attributes": PromptFl(Wording.ATTRIBUTES),
    "fedvpt": FedVpt(n_prompts=4),
    "fedvpt at the input": FedVpt(n_prompts=4, injection=Injection.INPUT),
    "fedclip": FedClip(width=4),
    "fedclip by a residual": FedClip(width=4, form=AdapterForm.RESIDUAL, wording=Wording.ATTRIBUTES),
    "fedtpg": FedTpg(width=8, n_heads=2),
    "linear-probe": Probe(),
    "task-residual": TaskResidual(),
}
UNTRAINED: dict[str, Method] = {
    "zero-shot-template": ZeroShot(Wording.TEMPLATE),
    "zero-shot-attributes": ZeroShot(Wording.ATTRIBUTES),
}
EVERY = {**TRAINED, **UNTRAINED}

SINGLE = SingleLabel()
OBJECTIVES: dict[str, Objective] = {
    "single": SINGLE,
    "binary": MultiLabel(),
    "asymmetric": MultiLabel.asymmetric(),
}


def build(name: str, candidates: ClassSet = CLASSES) -> MethodModel:
    return EVERY[name].build(TOWER, candidates, trained=CLASSES)


def labels_for(objective: Objective, count: int) -> Tensor:
    single = torch.arange(count) % len(CLASSES)
    if isinstance(objective, SingleLabel):
        return single
    several = torch.nn.functional.one_hot(single, len(CLASSES))
    several[::2, 0] = 1
    several[1, 2] = -1
    return several


def coloured_images(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images of three classes that differ by their brightest channel."""
    images, labels = random_images(count, seed), torch.arange(count) % 3
    for index, label in enumerate(labels.tolist()):
        images[index] //= 4
        images[index, label] += 150
    return images, labels
