"""What is frozen of a study's images: each image is decoded once, and the tower runs over it once for each summary."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from fedmvp.data.images import decode_image
from fedmvp.data.records import ImageCollection
from fedmvp.methods.features import complete_features, summarise_images
from fedmvp.methods.method import MethodModel
from fedmvp.model.features import FrozenFeatures

Progress = Callable[[int, int], None]


class FeatureTable:
    """Pixels and summaries of a fixed list of images.

    Args:
        paths: every image that will be asked for; repetitions count once.
        image_size: side of the tower's images, pixels.
        threads: decoding threads.
        progress: called with (images done, images in all).

    Raises:
        UserError: an image cannot be read.
    """

    def __init__(
        self, paths: Iterable[Path], image_size: int, *, threads: int = 1, progress: Progress | None = None
    ) -> None:
        ordered = list(dict.fromkeys(paths))
        self._row = {path: at for at, path in enumerate(ordered)}
        self._pixels = torch.empty((len(ordered), 3, image_size, image_size), dtype=torch.uint8)
        with ThreadPoolExecutor(max_workers=threads) as pool:
            for at, image in enumerate(pool.map(lambda path: decode_image(path, image_size), ordered)):
                self._pixels[at] = image
                if progress is not None:
                    progress(at + 1, len(ordered))
        self._summaries: dict[str, FrozenFeatures] = {}

    def __len__(self) -> int:
        return len(self._pixels)

    def complete(self, model: MethodModel, images: ImageCollection) -> FrozenFeatures:
        """Return what a method's model reads of some images."""
        if model.summary not in self._summaries:
            self._summaries[model.summary] = summarise_images(model, self._pixels, batch_size=128)
        rows = torch.tensor([self._row[record.path] for record in images.records])
        summary = self._summaries[model.summary]
        chosen = FrozenFeatures({name: value[rows] for name, value in summary.tensors.items()})
        return complete_features(model, chosen)


def labels_of(images: ImageCollection) -> Tensor:
    """Return class indices (n,), or a matrix of ones and zeros (n, n_classes) where an image has several labels."""
    if images.multi_label:
        return torch.from_numpy(images.label_matrix()).long()
    return torch.tensor([record.labels[0] for record in images.records])
