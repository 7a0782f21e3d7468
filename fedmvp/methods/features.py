"""What a method reads of images, computed in memory; the tower runs over each image once."""

from __future__ import annotations

import torch
from torch import Tensor

from fedmvp.methods.method import MethodModel
from fedmvp.model.features import FrozenFeatures


def summarise_images(model: MethodModel, images: Tensor, *, batch_size: int = 64) -> FrozenFeatures:
    """Run the frozen tower over images.

    Args:
        model: the method; any other one with the same `summary` on this tower may use the result.
        images: uint8 (n, 3, s, s) at the tower's image size, n at least 1.
        batch_size: images at once.

    Returns:
        On the CPU, for `complete_features`.
    """
    backbone = model.tower.backbone
    parts = [model.summarise(backbone.normalise(part)) for part in torch.split(images, batch_size)]
    return FrozenFeatures({name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]})


def complete_features(model: MethodModel, summary: FrozenFeatures, *, batch_size: int = 256) -> FrozenFeatures:
    """Return what the model's training and evaluation read, on the CPU.

    Args:
        model: the method for its candidate classes.
        summary: from `summarise_images`.
        batch_size: images at once.
    """
    parts = [
        model.complete({name: value.to(model.device) for name, value in part.items()})
        for part in summary.parts(batch_size)
    ]
    return FrozenFeatures({name: torch.cat([part[name].cpu() for part in parts]) for name in model.feature_names})


def read_images(model: MethodModel, images: Tensor) -> FrozenFeatures:
    """Return what a model reads of uint8 images (n, 3, s, s)."""
    return complete_features(model, summarise_images(model, images))
