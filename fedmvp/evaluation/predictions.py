"""Logits of a method on images that no site owns."""

from __future__ import annotations

import torch
from torch import Tensor

from fedmvp.methods.method import MethodModel
from fedmvp.model.features import FrozenFeatures
from fedmvp.model.parameters import Vector, set_vector


@torch.no_grad()
def method_logits(
    model: MethodModel, features: FrozenFeatures, *, parameters: Vector | None = None, batch_size: int = 256
) -> Tensor:
    """Return class logits (n, n_classes) on the CPU.

    Args:
        model: the method for the candidate classes at hand.
        features: from `complete_features` of the same model.
        parameters: written into the model first; None takes the model as it is.
        batch_size: images at once.
    """
    if parameters is not None:
        set_vector(model, parameters)
    parts = features.parts(batch_size)
    return torch.cat([model({name: value.to(model.device) for name, value in part.items()}).cpu() for part in parts])
