"""What the benchmark of training trains on: a prompted CLIP with random weights, random images, nothing downloaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedmvp.model.attributes import AttributeBank, build_attribute_bank
from fedmvp.model.backbone import Backbone
from fedmvp.model.clip_library import open_clip
from fedmvp.model.embedded import EMBEDDED_WEIGHTS
from fedmvp.model.loading import random_backbone
from fedmvp.model.prompt_config import Injection, PromptConfig, Variant
from fedmvp.model.prompted import PromptedModel
from fedmvp.model.task import Task, TaskClass
from privacy.per_sample import Batch, trainable_parameters

SMALL = "fedmvp-tiny"
_IMAGES_AT_ONCE = 32


@dataclass(frozen=True)
class Workload:
    """One batch of one model.

    Args:
        architecture: an open_clip name, or the embedded model's; weights are random.
        variant: which module makes the prompts.
        injection: through the encoder or before its last block.
        batch: images.
        n_classes: of the task.
        n_attributes: of each class.
        device: where everything runs.
        reads_text: whether the text tower has all its layers; else one, and the bank's features are random.
    """

    architecture: str
    variant: Variant
    injection: Injection
    batch: int
    n_classes: int = 20
    n_attributes: int = 10
    device: str = "cpu"
    reads_text: bool = False

    def build(self) -> Trained:
        """Build the model and compute what is frozen."""
        backbone = self._backbone()
        bank = build_attribute_bank(backbone, self.task) if self.reads_text else self._random_bank(backbone.joint_width)
        config = PromptConfig(self.variant, self.injection, n_prompts=self.n_prompts, consistency_weight=10.0)
        model = PromptedModel(backbone, bank, config).eval()
        draws = torch.Generator().manual_seed(1)
        size = backbone.image_size
        images = torch.randint(0, 256, (self.batch, 3, size, size), dtype=torch.uint8, generator=draws)
        return Trained(model, images, torch.arange(self.batch, device=self.device) % self.n_classes)

    @property
    def n_prompts(self) -> int:
        """The paper's four through the encoder; sixteen before the last block, as in the product."""
        return 4 if self.injection is Injection.INPUT else 16

    @property
    def task(self) -> Task:
        """Sentences of a usual length."""
        return Task(
            tuple(
                TaskClass(f"thing {label}", tuple(f"a long and pointed tail {k}" for k in range(self.n_attributes)))
                for label in range(self.n_classes)
            )
        )

    def _backbone(self) -> Backbone:
        config: dict[str, Any]
        if self.architecture == SMALL:
            config = json.loads(EMBEDDED_WEIGHTS.with_suffix(".json").read_text(encoding="utf-8"))
        else:
            config = open_clip.get_model_config(self.architecture)
        if not self.reads_text:
            config["text_cfg"]["layers"] = 1
        return random_backbone(config, seed=0, name=self.architecture, device=self.device)

    def _random_bank(self, width: int) -> AttributeBank:
        draws = torch.Generator().manual_seed(2)
        features = F.normalize(torch.randn(self.n_classes, self.n_attributes, width, generator=draws), dim=-1)
        mask = torch.ones(self.n_classes, self.n_attributes, dtype=torch.bool)
        return AttributeBank(features, mask, features.mean(dim=1), self.task.class_names)


class Trained:
    """A model, its batch with everything frozen computed, and its loss."""

    def __init__(self, model: PromptedModel, images: Tensor, labels: Tensor) -> None:
        self.model = model
        self.images = images
        self.parameters = trainable_parameters(model)
        parts = [self._frozen(part) for part in torch.split(images, _IMAGES_AT_ONCE)]
        self.features = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        self.batch: Batch = (*(self.features[name] for name in model.feature_names), labels)

    def losses(self, module: nn.Module, batch: Batch) -> Tensor:
        """The losses (b,) of a batch."""
        *tensors, labels = batch
        part = dict(zip(self.model.feature_names, tensors, strict=True))
        losses: Tensor = self.model.loss_per_sample(module(part), part, labels)
        return losses

    @property
    def dimension(self) -> int:
        """Trained parameters."""
        return sum(parameter.numel() for parameter in self.parameters)

    def _frozen(self, images: Tensor) -> dict[str, Tensor]:
        features = self.model.summarise(self.model.backbone.normalise(images))
        return features | {"anchor": self.model.anchor(features)}
