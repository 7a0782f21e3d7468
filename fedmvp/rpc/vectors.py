"""Vectors and model states cut into chunks, and put together again with every byte accounted for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmvp.rpc import limits
from fedmvp.rpc.errors import WireError
from fedmvp.rpc.fields import bounded, text
from fedmvp.rpc.v1 import aggregation_pb2 as pb
from secure_agg.encoding import little_endian_bytes, tensors_digest

NamedTensors = Sequence[tuple[str, NDArray[Any]]]
"""A model's state in its public order."""


def ring_dtype(ring_bits: int) -> np.dtype[Any]:
    """The little-endian unsigned type of one ring element on the wire."""
    return np.dtype(f"<u{ring_bits // 8}")


def chunks(array: NDArray[Any]) -> Iterator[bytes]:
    """The raw little-endian bytes of a contiguous array, at most CHUNK_BYTES at a time."""
    view = little_endian_bytes(array)
    for start in range(0, len(view), limits.CHUNK_BYTES):
        yield bytes(view[start : start + limits.CHUNK_BYTES])


class Assembler:
    """Collects exactly `n_bytes` bytes that arrive in chunks, without ever holding more."""

    def __init__(self, n_bytes: int, *, limit: int = limits.MODEL_BYTES) -> None:
        if n_bytes > limit:
            message = f"{n_bytes} bytes announced; at most {limit} are accepted"
            raise WireError(message)
        self._buffer = bytearray(n_bytes)
        self._filled = 0

    @property
    def complete(self) -> bool:
        """Whether every byte is here."""
        return self._filled == len(self._buffer)

    def add(self, chunk: bytes) -> None:
        """Append one chunk.

        Raises:
            WireError: empty, larger than a chunk may be, or past the announced length.
        """
        if not 0 < len(chunk) <= limits.CHUNK_BYTES or self._filled + len(chunk) > len(self._buffer):
            message = "a chunk is empty, too large, or past the announced length"
            raise WireError(message)
        self._buffer[self._filled : self._filled + len(chunk)] = chunk
        self._filled += len(chunk)

    def finish(self) -> bytearray:
        """All the bytes.

        Raises:
            WireError: some are missing.
        """
        if not self.complete:
            message = f"{len(self._buffer) - self._filled} bytes are missing at the end of the stream"
            raise WireError(message)
        return self._buffer


def assemble_ring(parts: Iterable[bytes], length: int, ring_bits: int) -> NDArray[Any]:
    """The vector (length,) of ring elements that `parts` make up, in the machine's byte order.

    Raises:
        WireError: not exactly the bytes of such a vector.
    """
    dtype = ring_dtype(ring_bits)
    assembler = Assembler(length * dtype.itemsize)
    for part in parts:
        assembler.add(part)
    return ring_array(assembler, ring_bits)


def ring_array(assembler: Assembler, ring_bits: int) -> NDArray[Any]:
    """The finished bytes of an assembler as ring elements in the machine's byte order."""
    dtype = ring_dtype(ring_bits)
    return np.frombuffer(assembler.finish(), dtype=dtype).astype(dtype.newbyteorder("="), copy=False)


@dataclass(frozen=True)
class StateLayout:
    """Names, types and shapes of a model's state, in order: what a site expects before it accepts a byte."""

    entries: tuple[tuple[str, str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, tensors: NamedTensors) -> StateLayout:
        """The layout of these tensors."""
        return cls(tuple((name, array.dtype.name, array.shape) for name, array in tensors))

    @classmethod
    def from_wire(cls, headers: Sequence[pb.TensorHeader]) -> StateLayout:
        """The announced layout, its counts and names checked."""
        return cls(
            tuple(
                (
                    text(header.name, "tensor name"),
                    text(header.dtype, "tensor dtype"),
                    tuple(bounded(header.shape, limits.TENSOR_DIMENSIONS, "tensor shape")),
                )
                for header in bounded(headers, limits.TENSORS, "tensors")
            )
        )

    def to_wire(self) -> list[pb.TensorHeader]:
        """The headers of an announcement."""
        return [pb.TensorHeader(name=name, dtype=dtype, shape=shape) for name, dtype, shape in self.entries]

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(math.prod(shape) * np.dtype(dtype).itemsize for _, dtype, shape in self.entries)

    def unpack(self, buffer: bytearray) -> list[tuple[str, NDArray[Any]]]:
        """The tensors whose bytes follow one another in `buffer`, as read-only views."""
        tensors: list[tuple[str, NDArray[Any]]] = []
        offset = 0
        for name, dtype, shape in self.entries:
            count = math.prod(shape)
            little = np.dtype(dtype).newbyteorder("<")
            array = np.frombuffer(buffer, dtype=little, count=count, offset=offset).astype(np.dtype(dtype), copy=False)
            array.flags.writeable = False
            tensors.append((name, array.reshape(shape)))
            offset += count * little.itemsize
        return tensors


def model_hash(tensors: NamedTensors) -> bytes:
    """SHA-256 over the ordered (name, dtype, shape, raw bytes): the model in a round's context."""
    return tensors_digest(tensors)
