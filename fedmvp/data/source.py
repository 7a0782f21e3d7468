"""Where pixels come from, one image at a time or many, each with the digest that its cached features are known by."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

from fedmvp.data.dataset import ImageDataset
from fedmvp.data.images import PREPROCESSING, decode_image, file_digest

BATCHES_AHEAD = 2
"""One that is decoded while the tower works on another, and one in case decoding stutters."""

MOST_THREADS = 16
"""More threads than this wait for the disk or for each other."""


class ImageSource(Protocol):
    """Images of one party, in a fixed order."""

    @property
    def preprocessing(self) -> str:
        """What was or will be done to an image until it has the backbone's size; equal texts, equal pixels."""

    def __len__(self) -> int:
        """How many images there are."""

    def digests(self) -> Sequence[bytes]:
        """Return 32 bytes an image that change whenever its pixels do."""

    def stream(self, batches: Iterable[Sequence[int]], *, pinned: bool = False) -> Iterator[Tensor]:
        """Yield uint8 images (b, 3, s, s) for one batch of positions after another, in order.

        Args:
            batches: read as far ahead as images are prepared in advance.
            pinned: put them where a GPU can fetch them by itself.
        """


def decoding_threads(wanted: int) -> int:
    """Return how many threads decode: as many as are wanted, or for 0 one a core up to `MOST_THREADS`."""
    return wanted or min(MOST_THREADS, os.cpu_count() or 1)


class ImageFiles:
    """Images on disk, decoded when they are asked for, ahead of whoever works on them.

    Threads, not processes: Pillow gives the interpreter's lock up while it decodes and resizes, and nothing has to be
    copied from one process to another.

    Args:
        dataset: checked paths.
        image_size: side of the square result, pixels.
        workers: threads that read and decode; 0 chooses.
        progress: called with (files read, files in all) while the digests are taken.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        image_size: int,
        *,
        workers: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._paths = dataset.paths
        self._size = image_size
        self._pool = ThreadPoolExecutor(max_workers=decoding_threads(workers), thread_name_prefix="decode")
        self._digests: list[bytes] = []
        self.preprocessing = f"{PREPROCESSING}, {image_size} px"
        for done, digest in enumerate(self._pool.map(file_digest, self._paths), start=1):
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

    def stream(self, batches: Iterable[Sequence[int]], *, pinned: bool = False) -> Iterator[Tensor]:
        """Yield uint8 images (b, 3, s, s); besides the yielded batch at most `BATCHES_AHEAD` more are in memory.

        Raises:
            UserError: a file is gone, cannot be decoded, or is not the one that was there at first.
        """
        coming: deque[list[Future[Tensor]]] = deque()
        try:
            for batch in batches:
                coming.append([self._pool.submit(self._decode, position) for position in batch])
                if len(coming) > BATCHES_AHEAD:
                    yield self._together(coming.popleft(), pinned=pinned)
            while coming:
                yield self._together(coming.popleft(), pinned=pinned)
        finally:
            for decoding in coming:  # of a caller that stopped in the middle
                for image in decoding:
                    image.cancel()

    def _together(self, decoding: Sequence[Future[Tensor]], *, pinned: bool) -> Tensor:
        images = torch.empty((len(decoding), 3, self._size, self._size), dtype=torch.uint8, pin_memory=pinned)
        for place, image in enumerate(decoding):
            images[place] = image.result()
        return images

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

    def stream(self, batches: Iterable[Sequence[int]], *, pinned: bool = False) -> Iterator[Tensor]:
        """Yield uint8 images (b, 3, s, s)."""
        for batch in batches:
            images = self._images.index_select(0, torch.tensor(list(batch), dtype=torch.int64))
            yield images.pin_memory() if pinned else images
