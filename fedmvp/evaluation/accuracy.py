"""Accuracy with its 95 % interval, and the predictions behind it.

Only for images that no site owns: an accuracy on private images is a release and has no place here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmvp.model.features import FrozenFeatures
from fedmvp.model.inference import Predictor
from fedmvp.model.parameters import Vector, set_vector
from fedmvp.model.prompted import PromptedModel

_Z = 1.959963984540054
"""Two-sided 95 % quantile of the standard normal."""


@dataclass(frozen=True)
class Accuracy:
    """A share of correct answers with its Wilson interval (Wilson 1927), in [0, 1].

    Attributes:
        correct: correct answers.
        total: answers, at least 1.
    """

    correct: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.total or self.total < 1:
            raise ValueError(f"{self.correct} of {self.total} is not a share")

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @property
    def value(self) -> float:
        """The share itself."""
        return self.correct / self.total

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval."""
        return min(self.value, max(0.0, self._centre - self._half_width))

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval."""
        return max(self.value, min(1.0, self._centre + self._half_width))

    @property
    def _centre(self) -> float:
        return (self.value + _Z**2 / (2 * self.total)) / (1 + _Z**2 / self.total)

    @property
    def _half_width(self) -> float:
        spread = self.value * (1 - self.value) / self.total + _Z**2 / (4 * self.total**2)
        return _Z * math.sqrt(spread) / (1 + _Z**2 / self.total)


def accuracy_of(logits: Tensor, labels: Tensor) -> Accuracy:
    """Return the accuracy of logits (n, n_classes) against class indices (n,)."""
    correct = logits.argmax(dim=-1).cpu() == labels.cpu()
    return Accuracy(int(correct.sum()), len(labels))


def zero_shot_logits(model: PromptedModel, features: FrozenFeatures) -> Tensor:
    """Return class logits (n, n_classes) of the frozen features: CLIP with the attribute sentences, no prompts."""
    return Predictor(model, tuned=False).logits(features.tensors["zero_shot"].to(model.backbone.device))


def prompted_logits(
    model: PromptedModel, features: FrozenFeatures, *, parameters: Vector | None = None, batch_size: int = 256
) -> Tensor:
    """Return class logits (n, n_classes) of the prompted features.

    Args:
        model: the prompted model.
        features: from `extract_features` of the same model.
        parameters: written into the model first; None takes the model as it is.
        batch_size: images at once.
    """
    predictor = Predictor(model)
    return torch.cat([predictor.logits(part) for part in _prompted(predictor, model, features, parameters, batch_size)])


def zero_shot_accuracy(model: PromptedModel, features: FrozenFeatures, labels: Tensor) -> Accuracy:
    """Return the accuracy before any tuning: the floor at epsilon 0."""
    zero_shot = features.tensors["zero_shot"].to(model.backbone.device)
    return _accuracy_of_classes(Predictor(model, tuned=False).rank(zero_shot, 1).classes, labels)


def prompted_accuracy(
    model: PromptedModel,
    features: FrozenFeatures,
    labels: Tensor,
    *,
    parameters: Vector | None = None,
    batch_size: int = 256,
) -> Accuracy:
    """Return the accuracy with prompts, without ever holding all logits; arguments as in `prompted_logits`."""
    predictor = Predictor(model)
    parts = _prompted(predictor, model, features, parameters, batch_size)
    return _accuracy_of_classes(torch.cat([predictor.rank(part, 1).classes.cpu() for part in parts]), labels)


def _prompted(
    predictor: Predictor, model: PromptedModel, features: FrozenFeatures, parameters: Vector | None, batch_size: int
) -> Iterator[Tensor]:
    """Yield prompted features (b, joint_width), part by part."""
    if parameters is not None:
        set_vector(model, parameters)
    for part in features.parts(batch_size):
        yield predictor.feature({name: value.to(model.backbone.device) for name, value in part.items()})


def _accuracy_of_classes(classes: Tensor, labels: Tensor) -> Accuracy:
    return Accuracy(int((classes[:, 0].cpu() == labels.cpu()).sum()), len(labels))
