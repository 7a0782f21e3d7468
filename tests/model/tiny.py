"""A backbone small enough for tests, with random weights, and a task for it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fedmvp.model.attributes import AttributeBank, build_attribute_bank
from fedmvp.model.backbone import Backbone
from fedmvp.model.loading import random_backbone
from fedmvp.model.prompt_config import Injection, NeutralStart, PromptConfig, Variant
from fedmvp.model.prompted import PromptedModel
from fedmvp.model.task import Task, TaskClass

CHOICES = [(variant, injection, start) for variant in Variant for injection in Injection for start in NeutralStart]

TASK = Task(
    classes=(
        TaskClass("cat", ("whiskers", "soft fur", "pointed ears")),
        TaskClass("car", ("four wheels", "a metal body")),
        TaskClass("tree", ("green leaves", "a trunk", "many branches")),
    )
)


def tiny_config(**vision: Any) -> dict[str, Any]:
    """open_clip's model configuration of a tower of width 32 on 16 px images of 16 patches."""
    return {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 16, "layers": 3, "width": 32, "head_width": 16, "patch_size": 4, **vision},
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }


@lru_cache(maxsize=1)
def tiny_backbone() -> Backbone:
    return random_backbone(tiny_config(), seed=3, name="tiny")


@lru_cache(maxsize=1)
def tiny_bank() -> AttributeBank:
    return build_attribute_bank(tiny_backbone(), TASK)


def tiny_model(
    variant: Variant = Variant.NARROW,
    injection: Injection = Injection.LAST_BLOCK,
    start: NeutralStart = NeutralStart.ANCHOR,
    **other: Any,
) -> PromptedModel:
    config = PromptConfig(
        variant, injection, n_prompts=4, n_heads=2, bottleneck_width=8, lora_rank=2, neutral_start=start
    )
    return PromptedModel(tiny_backbone(), tiny_bank(), PromptConfig(**{**config.__dict__, **other}))


def random_images(count: int, seed: int = 0, size: int = 16) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=draws)


def disturb(module: torch.nn.Module, seed: int = 5, scale: float = 0.3) -> None:
    """Move every trained parameter away from the start, so that nothing is zero by design."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            if value.requires_grad:
                value.add_(0.7 if name == "gate.weight" else scale * torch.randn(value.shape, generator=draws))
