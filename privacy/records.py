"""Where the records of a dataset come from: tensors, or whatever hands out rows by position.

The engine asks for rows and learns nothing else. A source that reads from a disk or computes is asked one piece ahead,
in the background, so that training does not wait for it; what is drawn, and in which order, does not depend on that.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from privacy.per_sample import PROBED_RECORDS, Batch

_PROBE_SEED = 0  # fixed and public: the same records are invented at every site

Piece = TypeVar("Piece")


class Records(abc.ABC):
    """The records of one dataset, by position from 0; a position is the same record for as long as it is used."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @property
    @abc.abstractmethod
    def layout(self) -> Sequence[tuple[tuple[int, ...], torch.dtype]]:
        """Shape, without the dimension of the records, and type of each tensor of a batch."""

    @abc.abstractmethod
    def take(self, positions: npt.NDArray[np.int64], device: torch.device) -> Batch:
        """Return these records in this order, as tensors (B, *shape) on a device."""

    def at_hand(self, device: torch.device) -> bool:  # noqa: ARG002 - for those that have them somewhere
        """Whether taking records is so cheap that nothing is gained by doing it ahead of time."""
        return False


Data = Sequence[Tensor] | Records
"""What an engine trains on: tensors with the records along the first dimension, or a source of records."""


class TensorRecords(Records):
    """Records that are rows of tensors.

    Args:
        data: tensors with the records along the first dimension, all of the same length; on any device.

    Raises:
        ValueError: they do not fit together.
    """

    def __init__(self, data: Sequence[Tensor]) -> None:
        self._tensors = tuple(data)
        if not self._tensors or any(not isinstance(tensor, Tensor) or tensor.dim() < 1 for tensor in self._tensors):
            raise ValueError("data must be one or more tensors with the records along the first dimension")
        lengths = [len(tensor) for tensor in self._tensors]
        if len(set(lengths)) != 1:
            raise ValueError(f"the tensors hold different numbers of records: {lengths}")

    def __len__(self) -> int:
        return len(self._tensors[0])

    @property
    def layout(self) -> Sequence[tuple[tuple[int, ...], torch.dtype]]:
        """As in :class:`Records`."""
        return [(tuple(tensor.shape[1:]), tensor.dtype) for tensor in self._tensors]

    def take(self, positions: npt.NDArray[np.int64], device: torch.device) -> Batch:
        """As in :class:`Records`."""
        index = torch.from_numpy(positions)
        return tuple(tensor.index_select(0, index.to(tensor.device)).to(device) for tensor in self._tensors)

    def at_hand(self, device: torch.device) -> bool:
        """Whether every tensor is on that device."""
        return all(tensor.device == device for tensor in self._tensors)


def as_records(data: Data) -> Records:
    """Return tensors as records, and records as they are.

    Raises:
        ValueError: tensors that do not fit together.
    """
    return data if isinstance(data, Records) else TensorRecords(data)


def take_checked(records: Records, positions: npt.NDArray[np.int64], device: torch.device) -> Batch:
    """Take records, and refuse anything but one row of the promised shape for each position.

    A row too few or too many would change who is in a batch, and with it what is accounted for.

    Raises:
        ValueError: the source is broken.
    """
    batch = records.take(positions, device)
    promised = [((len(positions), *shape), dtype) for shape, dtype in records.layout]
    if [(tuple(tensor.shape), tensor.dtype) for tensor in batch] != promised:
        raise ValueError("the source of the records does not return what it promised, one row for each position")
    return batch


def invent_records(records: Records, device: torch.device, count: int = PROBED_RECORDS) -> Batch:
    """Return records of the same widths and types, nothing of them taken from the data.

    Floating-point numbers are drawn from a normal distribution with a fixed seed; the rest, such as labels, is zero.

    Args:
        records: whose layout alone is read.
        device: where the result goes.
        count: how many.
    """
    generator = torch.Generator().manual_seed(_PROBE_SEED)
    return tuple(_invent((count, *shape), dtype, generator).to(device) for shape, dtype in records.layout)


def _invent(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.zeros(shape, dtype=dtype)


class LookAhead(Generic[Piece]):
    """Draws a known number of batches in pieces, fetching the next piece while the last one is worked on.

    Args:
        pieces: draws one batch and yields it in pieces.
        batches: how many will be drawn, so that none is drawn for nothing.
        in_background: whether to fetch ahead at all.
    """

    def __init__(self, pieces: Callable[[], Iterator[Piece]], batches: int, *, in_background: bool) -> None:
        stream = _with_ends(pieces, batches)
        self._stream = _fetched_ahead(stream) if in_background else stream

    def draw(self) -> Iterator[Piece]:
        """The pieces of the next batch; none if it is empty."""
        for piece in self._stream:
            if piece is None:
                return
            yield piece


def _with_ends(pieces: Callable[[], Iterator[Piece]], batches: int) -> Iterator[Piece | None]:
    for _ in range(batches):
        yield from pieces()
        yield None


def _fetched_ahead(stream: Iterator[Piece | None]) -> Iterator[Piece | None]:
    end = object()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="records") as pool:
        coming: Future[object] = pool.submit(next, stream, end)
        while (piece := coming.result()) is not end:
            coming = pool.submit(next, stream, end)
            yield cast("Piece | None", piece)
