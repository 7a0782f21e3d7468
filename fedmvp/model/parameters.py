"""The trained parameters as one flat vector, in the module's own order; what sites sum and the server publishes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Vector = NDArray[np.float32]


def trained_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters that are trained, by name, in the order of registration."""
    return ((name, value) for name, value in module.named_parameters() if value.requires_grad)


def dimension(module: nn.Module) -> int:
    """Return how many numbers are trained."""
    return sum(value.numel() for _, value in trained_parameters(module))


def get_vector(module: nn.Module) -> Vector:
    """Return a copy of the trained parameters, float32 (dimension,)."""
    parts = [value.detach().to("cpu", torch.float32).numpy().ravel() for _, value in trained_parameters(module)]
    return np.concatenate(parts).astype(np.float32)


def set_vector(module: nn.Module, vector: Vector) -> None:
    """Write a vector into the trained parameters.

    Raises:
        ValueError: wrong length, or a number that is not finite.
    """
    for (_, value), array in zip(trained_parameters(module), split_vector(module, vector).values(), strict=True):
        with torch.no_grad():
            value.copy_(torch.from_numpy(np.ascontiguousarray(array)))


def split_vector(module: nn.Module, vector: Vector) -> dict[str, Vector]:
    """Return the vector's parts by parameter name, each in its parameter's shape.

    Raises:
        ValueError: wrong length, or a number that is not finite.
    """
    if vector.shape != (dimension(module),):
        raise ValueError(f"the vector has shape {vector.shape}, the model trains {dimension(module)} parameters")
    if not np.isfinite(vector).all():
        raise ValueError("the vector holds numbers that are not finite")
    parts: dict[str, Vector] = {}
    start = 0
    for name, value in trained_parameters(module):
        parts[name] = vector[start : start + value.numel()].reshape(tuple(value.shape)).astype(np.float32)
        start += value.numel()
    return parts
