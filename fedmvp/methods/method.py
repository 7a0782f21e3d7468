"""The interface of a method: what is built, what it reads of the frozen tower, what is trained, what comes out.

A method is a frozen value with its hyper-parameters. From a tower and class sets it builds a module whose trained
parameters are exactly the vector that sites exchange, equal on all machines. The same vector serves other candidate
classes: build the module for those and write the vector into it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import StrEnum
from typing import Protocol

import torch
from torch import Tensor, nn

from fedmvp.methods.classes import ClassSet, Wording
from fedmvp.methods.objective import Objective
from fedmvp.methods.tower import FrozenTower

Features = Mapping[str, Tensor]
"""Frozen tensors by name, one row an image."""


class Reads(StrEnum):
    """What of the frozen tower takes part in a training step."""

    FEATURE = "feature"
    """The image feature alone, computed once for each image."""
    TAIL = "tail"
    """What the last block needs of its tokens, computed once for each image."""
    TOKENS = "tokens"
    """The embedded image; every step runs the whole vision tower."""
    TEXT = "text"
    """The text tower, once for all samples of a step and once more for each gradient."""


class MethodModel(nn.Module, ABC):
    """A method on one tower for one list of candidate classes.

    Args:
        tower: the frozen tower; stays outside this module's parameters.
        candidates: the classes in the order of the logits.
    """

    feature_names: tuple[str, ...] = ("zero_shot",)
    """What `forward` and the loss read, in the order of a training batch."""
    summary: str = "zero-shot"
    """Two models on one tower with equal summaries may share what `summarise` returns."""

    def __init__(self, tower: FrozenTower, candidates: ClassSet) -> None:
        super().__init__()
        self.tower = tower
        self.candidates = candidates

    @property
    def device(self) -> torch.device:
        """Where the tower runs and the parameters are."""
        return self.tower.backbone.device

    def summarise(self, pixels: Tensor) -> dict[str, Tensor]:
        """Compute what is frozen of normalised pixels (b, 3, s, s), whatever the parameters and the classes."""
        return self.tower.zero_shot(pixels)

    def complete(self, features: Features) -> dict[str, Tensor]:
        """Add to a summary what depends on the public start or the classes; exactly `feature_names` are returned."""
        return {name: features[name] for name in self.feature_names}

    @abstractmethod
    def forward(self, features: Features) -> Tensor:
        """Return class logits (b, n_classes)."""

    def loss_per_sample(self, features: Features, labels: Tensor, objective: Objective) -> Tensor:
        """Return the losses (b,) of a batch; a method adds its own terms here, each within a sample."""
        return objective(self(features), labels)


class Method(Protocol):
    """A method with its hyper-parameters."""

    @property
    def reads(self) -> frozenset[Reads]:
        """What of the tower a training step needs."""

    @property
    def neutral_start(self) -> Wording | None:
        """The wording of the zero-shot classifier that the untrained model equals; None where it equals none."""

    @property
    def names_classes(self) -> bool:
        """Whether it knows classes by words, so that it has an opinion of classes that nobody trained on."""

    def build(self, tower: FrozenTower, candidates: ClassSet, *, trained: ClassSet | None = None) -> MethodModel:
        """Build the module at its public start.

        Args:
            tower: the frozen tower.
            candidates: the classes among which a decision is made.
            trained: all classes of the study, where parameters belong to classes; None takes the candidates.

        Raises:
            UserError: sizes or sentences that do not fit the tower.
        """
