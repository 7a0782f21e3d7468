"""Where pixels come from, one image at a time or many, each with the digest that its cached features are known by."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

from fedmvp.data.dataset import ImageDataset
from fedmvp.data.images import PREPROCESSING, decode_image, file_digest


class ImageSource(Protocol):
    """Images of one party, in a fixed order."""

    @property
    def preprocessing(self) -> str:
        """What was or will be done to an image until it has the backbone's size; equal texts, equal pixels."""

    def __len__(self) -> int:
        """How many images there are."""

    def digests(self) -> Sequence[bytes]:
        """Return 32 bytes an image that change whenever its pixels do."""

    def pixels(self, positions: Sequence[int]) -> Tensor:
        """Return uint8 images (b, 3, s, s)."""


class ImageFiles:
    """Images on disk, decoded when they are asked for.

    Args:
        dataset: checked paths.
        image_size: side of the square result, pixels.
        workers: threads that read and decode, at least 1.
        progress: called with (files read, files in all) while the digests are taken.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        image_size: int,
        *,
        workers: int = 4,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._paths = dataset.paths
        self._size = image_size
        self._workers = max(1, workers)
        self._digests: list[bytes] = []
        self.preprocessing = f"{PREPROCESSING}, {image_size} px"
        with ThreadPoolExecutor(max_workers=self._workers) as pool:
            for done, digest in enumerate(pool.map(file_digest, self._paths), start=1):
                self._digests.append(digest)
                if progress is not None:
                    progress(done, len(self._paths))

    def __len__(self) -> int:
        return len(self._paths)

    def __repr__(self) -> str:
        return f"ImageFiles({self._size} px)"

    def digests(self) -> Sequence[bytes]:
        """Return the SHA-256 of each file, taken when this source was made."""
        return self._digests

    def pixels(self, positions: Sequence[int]) -> Tensor:
        """Return uint8 images (b, 3, s, s).

        Raises:
            UserError: a file is gone, cannot be decoded, or is not the one that was there at first.
        """
        with ThreadPoolExecutor(max_workers=self._workers) as pool:
            return torch.stack(list(pool.map(self._decode, positions)))

    def _decode(self, position: int) -> Tensor:
        return decode_image(self._paths[position], self._size, digest=self._digests[position])


class PixelTensor:
    """Images that are in memory already.

    Args:
        images: uint8 (n, 3, s, s).
    """

    def __init__(self, images: Tensor) -> None:
        self._images = images
        self.preprocessing = f"pixels as given, {tuple(images.shape[1:])}"

    def __len__(self) -> int:
        return len(self._images)

    def digests(self) -> Sequence[bytes]:
        """Return the SHA-256 of each image's pixels."""
        return [hashlib.sha256(image.contiguous().numpy().data).digest() for image in self._images]

    def pixels(self, positions: Sequence[int]) -> Tensor:
        """Return uint8 images (b, 3, s, s)."""
        return self._images.index_select(0, torch.tensor(list(positions), dtype=torch.int64))
