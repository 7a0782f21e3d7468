"""Turns the signed policy into the model's own values; the only module of the model that knows a policy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fedmvp.model.attributes import build_attribute_bank
from fedmvp.model.compute import TowerOptions
from fedmvp.model.loading import BackboneSpec, load_backbone
from fedmvp.model.prompt_config import Injection, NeutralStart, PromptConfig, Variant
from fedmvp.model.prompted import PromptedModel
from fedmvp.model.task import Task, TaskClass

if TYPE_CHECKING:
    from fedmvp.study.policy import StudyPolicy


def task_of(policy: StudyPolicy) -> Task:
    """Return the classes, attributes and template of a policy."""
    classes = tuple(TaskClass(item.name, tuple(item.attributes)) for item in policy.task.classes)
    return Task(classes=classes, template=policy.task.template)


def backbone_spec_of(policy: StudyPolicy, *, checkpoint: Path | None = None) -> BackboneSpec:
    """Return which backbone a policy names; `checkpoint` is this site's own file with its weights, if it has one."""
    model = policy.model
    return BackboneSpec(model.backbone, model.pretrained, model.backbone_sha256, checkpoint)


def prompt_config_of(policy: StudyPolicy) -> PromptConfig:
    """Return the shape, place and start of a policy's prompts."""
    model = policy.model
    return PromptConfig(
        variant=Variant(model.variant),
        injection=Injection(model.injection),
        n_prompts=model.n_prompts,
        n_heads=model.n_heads,
        bottleneck_width=model.bottleneck_width,
        lora_rank=model.lora_rank,
        neutral_start=NeutralStart(model.neutral_start),
        consistency_weight=model.consistency_weight,
        flip=model.flip,
        probe_gain=model.probe_gain,
        initial_seed=model.initial_seed,
    )


def build_prompted_model(
    policy: StudyPolicy,
    *,
    device: torch.device | str = "cpu",
    options: TowerOptions | None = None,
    checkpoint: Path | None = None,
    cache_dir: Path | None = None,
    announce: Callable[[str], None] | None = None,
) -> PromptedModel:
    """Load the backbone, encode the attributes and build the prompts of a policy.

    Args:
        policy: the verified policy.
        device: where everything runs.
        options: how the frozen tower runs.
        checkpoint: this site's own file with the backbone's weights.
        cache_dir: where attribute features are kept.
        announce: called with one line before each step that may take long.

    Raises:
        UserError: anything the policy or this machine has wrong.
    """
    say = announce or (lambda _line: None)
    say(f"loading backbone {policy.model.backbone}")
    backbone = load_backbone(backbone_spec_of(policy, checkpoint=checkpoint), device=device, options=options)
    say("encoding attributes")
    bank = build_attribute_bank(backbone, task_of(policy), cache_dir=cache_dir)
    return PromptedModel(backbone, bank, prompt_config_of(policy))
