"""Everything frozen about a set of images, computed once with a progress callback and kept in the site's cache folder.

The tower runs over each image once (twice with the mirrored view), whatever the number of rounds. Cached files are
named by backbone, pixels, injection and precision, never by labels; they are personal data and stay at the site.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedmvp.model.cache import cache_key, cached
from fedmvp.model.prompted import PromptedModel, summary_identity

Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""

_MIRRORED = "mirrored"


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


def images_digest(images: Tensor) -> str:
    """Return the SHA-256 of uint8 images (n, 3, s, s) and their shape, as hex digits."""
    array = images.contiguous().numpy()
    state = hashlib.sha256(repr(tuple(array.shape)).encode())
    state.update(array.data)
    return state.hexdigest()


def extract_features(
    model: PromptedModel,
    images: Tensor,
    *,
    cache_dir: Path | None = None,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> FrozenFeatures:
    """Compute what `PromptedModel.forward` and its loss read, or take it from the cache.

    Args:
        model: the prompted model; only its frozen side and its initial parameters matter.
        images: uint8 (n, 3, s, s) at the backbone's image size, n at least 1.
        cache_dir: the site's cache folder; None keeps nothing on disk.
        batch_size: images at once through the tower.
        progress: called after each batch, and once where everything came from the cache.

    Returns:
        Features on the CPU, in `model.feature_names`.
    """
    key = _key(model, images) if cache_dir else ""
    features = dict(cached(cache_dir, key, lambda: _extract(model, images, batch_size, progress), prefix="features"))
    if "anchor" in model.feature_names:
        features["anchor"] = _anchors(model, FrozenFeatures(features), batch_size)
    if progress is not None:
        progress(len(images), len(images))
    mirrored = features.pop(_MIRRORED, None)
    if mirrored is not None:
        features["target"] = (features["zero_shot"] + mirrored) / 2
    return FrozenFeatures(features)


def _key(model: PromptedModel, images: Tensor) -> str:
    return cache_key(
        "features",
        model.backbone.state_hash(),
        images_digest(images),
        summary_identity(model.config),
        _MIRRORED if model.needs_mirrored_view else "plain",
        "bfloat16" if model.backbone.device.type == "cuda" else "float32",
    )


def _extract(model: PromptedModel, images: Tensor, batch_size: int, progress: Progress | None) -> dict[str, Tensor]:
    backbone = model.backbone
    parts: list[dict[str, Tensor]] = []
    for start in range(0, len(images), batch_size):
        pixels = backbone.normalise(images[start : start + batch_size])
        part = model.summarise(pixels)
        if model.needs_mirrored_view:
            part[_MIRRORED] = backbone.encode_images(pixels.flip(-1))
        parts.append({name: value.cpu() for name, value in part.items()})
        if progress is not None:
            progress(min(start + batch_size, len(images)), len(images))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _anchors(model: PromptedModel, features: FrozenFeatures, batch_size: int) -> Tensor:
    device = model.backbone.device
    parts = features.parts(batch_size)
    return torch.cat([model.anchor({name: value.to(device) for name, value in part.items()}).cpu() for part in parts])
