"""What is kept of an image, as one row of bytes: tensors in a fixed order, the large ones in float16.

Memory and disk hold the same rows, so it makes no difference to training where a row comes from. What the exact start
and the loss read directly stays in float32; float16 keeps eleven bits of the rest, three more than bfloat16, in which
the tower computed it on a GPU. A number beyond float16's range is held at its end.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ByteRows = NDArray[np.uint8]
"""Rows of bytes (n, row_bytes)."""

IN_FLOAT16 = frozenset({"tokens", "prepared", "folded_query", "attended"})
"""The tensors that make up almost all of a row."""

_LARGEST = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class RowLayout:
    """Names and shapes of a row's tensors.

    Args:
        shapes: by name, without the dimension of the images, in the order of the row.
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def row_bytes(self) -> int:
        """Size of a row."""
        return sum(_size(name, shape) for name, shape in self.shapes)

    @property
    def identity(self) -> str:
        """A text that is equal for layouts whose bytes mean the same."""
        return f"{sys.byteorder} {[(name, shape, str(_dtype(name))) for name, shape in self.shapes]}"

    def pack(self, part: Mapping[str, Tensor]) -> ByteRows:
        """Return the rows (b, row_bytes) of tensors (b, ...); names that are not of this layout are left out."""
        columns = []
        for name, shape in self.shapes:
            values = part[name].detach()
            if tuple(values.shape[1:]) != shape:
                raise ValueError(f"{name} has shape {tuple(values.shape[1:])} an image, not {shape}")
            if _dtype(name) is torch.float16:
                values = values.clamp(-_LARGEST, _LARGEST)
            stored = values.to(_dtype(name)).cpu().contiguous().numpy()
            columns.append(stored.reshape(len(values), math.prod(shape)).view(np.uint8))
        return np.concatenate(columns, axis=1)

    def unpack(self, rows: Tensor) -> dict[str, Tensor]:
        """Return the tensors (b, ...), float32, of rows (b, row_bytes), uint8, on their device."""
        part: dict[str, Tensor] = {}
        start = 0
        for name, shape in self.shapes:
            size = _size(name, shape)
            column = rows[:, start : start + size].clone(memory_format=torch.contiguous_format)  # aligned to begin with
            stored = column.view(_dtype(name))
            part[name] = stored.reshape(len(rows), *shape).float()
            start += size
        return part


def _dtype(name: str) -> torch.dtype:
    return torch.float16 if name in IN_FLOAT16 else torch.float32


def _size(name: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * _dtype(name).itemsize
