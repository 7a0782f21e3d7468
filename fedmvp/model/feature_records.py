"""The frozen features of a party's images, wherever they are: in memory, in the sealed cache, or not computed yet.

Every image is one row of bytes (`rows.py`). Rows stay in memory up to a bound; further ones are read from the cache
when a batch needs them; what neither holds is computed from the image again. A training step cannot tell which.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmvp.data.source import ImageSource
from fedmvp.model.feature_cache import CachedRows, FeatureCache
from fedmvp.model.frozen import ANCHOR, AnchorStage, SummaryStage, with_target
from fedmvp.model.prompted import PromptedModel
from fedmvp.model.rows import ByteRows

Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""


Batches = list[list[int]]
"""Places of images, a batch of the tower at a time."""


@dataclass(frozen=True)
class FeatureLimits:
    """What bounds memory.

    Args:
        memory_bytes: most bytes of rows that stay in memory.
        batch_size: images at once through the tower.
    """

    memory_bytes: int = sys.maxsize
    batch_size: int = 64


def gather_features(
    model: PromptedModel,
    source: ImageSource,
    *,
    cache: FeatureCache | None = None,
    limits: FeatureLimits | None = None,
    progress: Progress | None = None,
) -> FeatureRecords:
    """Take the features of all images from the cache or compute them, and keep them as far as the limits allow.

    Args:
        model: the prompted model; only its frozen side and its initial parameters matter.
        source: the images.
        cache: where rows are kept on disk; None keeps none there.
        limits: of memory.
        progress: called after each batch.
    """
    records = FeatureRecords(model, source, cache, limits or FeatureLimits())
    records.gather(progress)
    return records


class FeatureRecords:
    """Frozen features by position; made by :func:`gather_features`, whose arguments these are."""

    def __init__(
        self, model: PromptedModel, source: ImageSource, cache: FeatureCache | None, limits: FeatureLimits
    ) -> None:
        self.names = model.feature_names
        self._source = source
        self._batch_size = limits.batch_size
        self._device = model.backbone.device
        self._summaries = SummaryStage(model, source.preprocessing)
        self._anchors = AnchorStage(model, self._summaries) if ANCHOR in self.names else None
        self.row_bytes = self._summaries.layout.row_bytes
        if self._anchors is not None:
            self.row_bytes += self._anchors.layout.row_bytes
        self._digests = list(source.digests())
        self._shelves = self._open(cache)
        in_memory = min(len(source), limits.memory_bytes // self.row_bytes)
        self._memory = torch.empty((in_memory, self.row_bytes), dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self._digests)

    def __repr__(self) -> str:
        return f"FeatureRecords({', '.join(self.names)})"

    @property
    def in_memory(self) -> bool:
        """Whether every row is in memory, and nothing is read or computed any more."""
        return len(self._memory) == len(self)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of each tensor of `take`, without the dimension of the images."""
        nothing = self._unpack(torch.empty((0, self.row_bytes), dtype=torch.uint8))
        return tuple(tuple(tensor.shape[1:]) for tensor in nothing)

    def gather(self, progress: Progress | None) -> None:
        """Fill memory and cache, as far as both reach."""
        planned: deque[tuple[range, Batches]] = deque()
        with _current(self._device):
            for images in self._source.stream(self._planned(planned), pinned=self._device.type == "cuda"):
                part, missing = planned.popleft()
                rows = self._rows(part, keep=True, decoded=(missing, images))
                remembered = rows[: max(0, len(self._memory) - part.start)]
                self._memory[part.start : part.start + len(remembered)] = torch.from_numpy(remembered)
                if progress is not None and part.stop < len(self):
                    progress(part.stop, len(self))
        if progress is not None:
            progress(len(self), len(self))
        for shelf in self._shelves:
            if shelf is not None:
                shelf.flush()

    def take(self, positions: NDArray[np.int64], device: torch.device) -> tuple[Tensor, ...]:
        """Return the features of some images, float32 (b, ...), by the names of the model, on a device."""
        on_gpu = device.type == "cuda"
        with _current(device):
            rows = torch.empty((len(positions), self.row_bytes), dtype=torch.uint8, pin_memory=on_gpu)
            self._fill(rows, positions)
            return self._unpack(rows.to(device, non_blocking=on_gpu))

    def all(self) -> dict[str, Tensor]:
        """Return the features of all images by name, on the CPU."""
        parts = [
            self.take(np.arange(part.start, part.stop), torch.device("cpu")) for part in self._parts(range(len(self)))
        ]
        columns = [torch.cat(column) for column in zip(*parts, strict=True)]
        return dict(zip(self.names, columns or [torch.empty((0, *shape)) for shape in self.shapes], strict=True))

    def close(self) -> None:
        """Give the files of the cache up."""
        for shelf in self._shelves:
            if shelf is not None:
                shelf.close()

    def _open(self, cache: FeatureCache | None) -> tuple[CachedRows | None, CachedRows | None]:
        if cache is None:
            return None, None
        cache.keep_only(self._digests)
        expected = len(set(self._digests))
        summaries = cache.open(self._summaries.identity, self._summaries.layout.row_bytes, expected=expected)
        if self._anchors is None:
            return summaries, None
        return summaries, cache.open(self._anchors.identity, self._anchors.layout.row_bytes, expected=expected)

    def _planned(self, planned: deque[tuple[range, Batches]]) -> Iterator[list[int]]:
        """Note the batches that have to be gathered, and yield which images of each have to be decoded."""
        summaries = self._shelves[0]
        for part in self._parts(range(len(self))):
            if part.start >= len(self._memory):
                if all(shelf is None or shelf.is_full for shelf in self._shelves):
                    return  # what is left is computed when it is drawn
                if self._are_cached(part):
                    continue
            missing = [i for i in part if summaries is None or self._digests[i] not in summaries]
            planned.append((part, [[i - part.start for i in missing]]))
            yield missing

    def _are_cached(self, positions: Sequence[int]) -> bool:
        return all(shelf is None or self._digests[i] in shelf for shelf in self._shelves for i in positions)

    def _fill(self, rows: Tensor, positions: NDArray[np.int64]) -> None:
        chosen = torch.from_numpy(positions)
        if self.in_memory:
            torch.index_select(self._memory, 0, chosen, out=rows)
            return
        remembered = chosen < len(self._memory)
        rows[remembered] = self._memory.index_select(0, chosen[remembered])
        others = positions[~remembered.numpy()].tolist()
        rows[~remembered] = torch.from_numpy(self._rows(others, keep=False))

    def _rows(self, positions: Sequence[int], *, keep: bool, decoded: tuple[Batches, Tensor] | None = None) -> ByteRows:
        """Read or compute rows (b, row_bytes).

        Args:
            positions: of the images.
            keep: whether to write what was computed to the cache.
            decoded: places among them whose pixels are here already, and the pixels.
        """
        digests = [self._digests[i] for i in positions]
        kept, kept_anchors = self._shelves

        def summarise(missing: Batches) -> Iterator[ByteRows]:
            if decoded is not None and decoded[0] == missing:
                yield self._summaries.compute(decoded[1])
                return
            wanted = [[positions[i] for i in part] for part in missing]
            for images in self._source.stream(wanted, pinned=self._device.type == "cuda"):
                yield self._summaries.compute(images)

        rows = self._complete(kept, digests, self._summaries, summarise, keep=keep)
        if self._anchors is None:
            return rows
        compute = self._anchors.compute
        anchors = self._complete(
            kept_anchors, digests, self._anchors, lambda missing: (compute(rows[part]) for part in missing), keep=keep
        )
        return np.concatenate([rows, anchors], axis=1)

    def _complete(
        self,
        shelf: CachedRows | None,
        digests: Sequence[bytes],
        stage: SummaryStage | AnchorStage,
        compute: Callable[[Batches], Iterator[ByteRows]],
        *,
        keep: bool,
    ) -> ByteRows:
        """The rows of one stage for some images, from the cache or else computed."""
        rows = np.empty((len(digests), stage.layout.row_bytes), dtype=np.uint8)
        missing = []
        for i, digest in enumerate(digests):
            row = shelf.read(digest) if shelf is not None else None
            if row is None:
                missing.append(i)
            else:
                rows[i] = np.frombuffer(row, dtype=np.uint8)
        batches = [missing[part.start : part.stop] for part in self._parts(range(len(missing)))]
        for places, computed in zip(batches, compute(batches), strict=True):
            rows[places] = computed
            if keep and shelf is not None:
                for i in places:
                    shelf.add(digests[i], rows[i].tobytes())
        return rows

    def _parts(self, whole: range) -> Iterator[range]:
        for start in range(whole.start, whole.stop, self._batch_size):
            yield range(start, min(start + self._batch_size, whole.stop))

    def _unpack(self, rows: Tensor) -> tuple[Tensor, ...]:
        width = self._summaries.layout.row_bytes
        part = with_target(self._summaries.layout.unpack(rows[:, :width]))
        if self._anchors is not None:
            part.update(self._anchors.layout.unpack(rows[:, width:]))
        return tuple(part[name] for name in self.names)


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Make a GPU the current one: pinned memory in a thread of its own would open the first GPU otherwise."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
