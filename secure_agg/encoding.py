"""The one canonical encoding of everything that is hashed or signed.

A statement is a tag and a list of byte fields, each behind its length as a 32-bit big-endian integer; two different
statements therefore never share their bytes. Integers have a fixed width and are big-endian, vectors are little-endian.
Wire formats (protobuf) are never hashed or signed: their serialisation is not canonical.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_agg.parallel import over_slices, threads_for

DIGEST_BYTES = 32
DIGEST_PIECE_BYTES = 2**20  # a vector is hashed in pieces of one mebibyte
MAX_FIELD_BYTES = 2**32 - 1  # the length prefix has 32 bits

Buffer = bytes | memoryview


def u32(value: int) -> bytes:
    """Encode an unsigned integer below 2^32 as four big-endian bytes; OverflowError outside."""
    return value.to_bytes(4, "big")


def u64(value: int) -> bytes:
    """Encode an unsigned integer below 2^64 as eight big-endian bytes; OverflowError outside."""
    return value.to_bytes(8, "big")


def u32_list(values: Iterable[int]) -> bytes:
    """Encode integers below 2^32 one after another; injective because each has the same width."""
    return b"".join(u32(value) for value in values)


def _pieces(tag: str, fields: Iterable[Buffer]) -> Iterator[Buffer]:
    """Yield the length-prefixed tag and fields without copying a large field."""
    for field in (tag.encode("utf-8"), *fields):
        size = field.nbytes if isinstance(field, memoryview) else len(field)
        if size > MAX_FIELD_BYTES:
            raise ValueError("a field of a canonical statement is longer than 4 GiB")
        yield u32(size)
        yield field


def canonical(tag: str, *fields: Buffer) -> bytes:
    """Encode a statement: the tag and each field behind its 32-bit big-endian length.

    Args:
        tag: the domain of the statement, such as ``fedmvp/share/v1``.
        fields: the content, in the order its specification gives.

    Returns:
        Bytes from which tag and fields can be told apart again without knowing the tag.
    """
    return b"".join(_pieces(tag, fields))


def digest(tag: str, *fields: Buffer) -> bytes:
    """Return SHA-256 of :func:`canonical` of the same arguments (32 bytes), without building it."""
    hasher = hashlib.sha256()
    for piece in _pieces(tag, fields):
        hasher.update(piece)
    return hasher.digest()


def little_endian_bytes(array: NDArray[Any]) -> memoryview:
    """View an array's values as little-endian bytes in C order, copying only where it must."""
    swapped = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return swapped.reshape(-1).view(np.uint8).data


def vector_digest(vector: NDArray[Any]) -> bytes:
    """Hash a masked vector or a sum: its dtype, its length and the hash of every mebibyte of its values (32 bytes).

    Hashing the pieces lets several cores share a long vector, and a receiver check it as it arrives.
    """
    content = little_endian_bytes(vector)
    pieces = -(-content.nbytes // DIGEST_PIECE_BYTES)
    hashes = bytearray(pieces * DIGEST_BYTES)

    def hash_pieces(start: int, stop: int) -> None:
        for piece in range(start, stop):
            part = content[piece * DIGEST_PIECE_BYTES : (piece + 1) * DIGEST_PIECE_BYTES]
            hashes[piece * DIGEST_BYTES : (piece + 1) * DIGEST_BYTES] = hashlib.sha256(part).digest()

    over_slices(hash_pieces, pieces, threads_for(content.nbytes, None))
    return digest("fedmvp/vector/v1", vector.dtype.newbyteorder("<").str.encode(), u64(vector.size), bytes(hashes))


def tensors_digest(items: Sequence[tuple[str, NDArray[Any]]]) -> bytes:
    """Hash named tensors in the order given: the model hash of a round context.

    Args:
        items: (name, array) in an order that everybody agrees on.

    Returns:
        32 bytes over name, dtype, shape and raw little-endian values of each tensor.

    Raises:
        ValueError: if two tensors share a name or one holds Python objects.
    """
    names = [name for name, _ in items]
    if len(set(names)) != len(names):
        raise ValueError("two tensors of one model share a name")
    fields: list[Buffer] = []
    for name, array in items:
        if array.dtype.hasobject:
            raise ValueError(f"tensor {name} holds Python objects, which have no canonical bytes")
        shape = b"".join(u64(size) for size in array.shape)
        fields += [name.encode("utf-8"), array.dtype.newbyteorder("<").str.encode(), shape, little_endian_bytes(array)]
    return digest("fedmvp/tensors/v1", *fields)
