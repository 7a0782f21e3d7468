"""Everything frozen about a set of images as whole tensors: for evaluation, prediction and images that fit in memory.

A site trains on :mod:`fedmvp.model.feature_records` instead, which bounds what it holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmvp.data.source import PixelTensor
from fedmvp.model.feature_cache import FeatureCache
from fedmvp.model.feature_records import FeatureLimits, Progress, gather_features
from fedmvp.model.frozen import ANCHOR, summarise_images, with_target
from fedmvp.model.prompted import PromptedModel


@dataclass(frozen=True)
class FrozenFeatures:
    """Tensors of equal first dimension, one row an image."""

    tensors: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.tensors["zero_shot"])

    def __repr__(self) -> str:
        return f"FrozenFeatures({len(self)} images, {', '.join(self.tensors)})"

    def to(self, device: torch.device | str) -> FrozenFeatures:
        """Return the features on another device."""
        return FrozenFeatures({name: value.to(device) for name, value in self.tensors.items()})

    def ordered(self, names: tuple[str, ...]) -> tuple[Tensor, ...]:
        """Return the named tensors in this order, as a training batch holds them."""
        return tuple(self.tensors[name] for name in names)

    def parts(self, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Yield the rows in order, `batch_size` at a time."""
        for start in range(0, len(self), batch_size):
            yield {name: value[start : start + batch_size] for name, value in self.tensors.items()}


def extract_features(
    model: PromptedModel,
    images: Tensor,
    *,
    cache: FeatureCache | None = None,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> FrozenFeatures:
    """Compute what `PromptedModel.forward` and its loss read, or take it from the cache.

    Args:
        model: the prompted model; only its frozen side and its initial parameters matter.
        images: uint8 (n, 3, s, s) at the backbone's image size, n at least 1.
        cache: the party's cache, in which large tensors are rounded to float16; None computes, without rounding.
        batch_size: images at once through the tower.
        progress: called after each batch.

    Returns:
        Features on the CPU, in `model.feature_names`.
    """
    if cache is not None:
        limits = FeatureLimits(batch_size=batch_size)
        records = gather_features(model, PixelTensor(images), cache=cache, limits=limits, progress=progress)
        features = records.all()
        records.close()
        return FrozenFeatures(features)
    parts: list[dict[str, Tensor]] = []
    for start in range(0, len(images), batch_size):
        part = summarise_images(model, images[start : start + batch_size])
        if ANCHOR in model.feature_names:
            part[ANCHOR] = model.anchor(part)
        parts.append({name: value.cpu() for name, value in with_target(part).items()})
        if progress is not None:
            progress(min(start + batch_size, len(images)), len(images))
    return FrozenFeatures({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
