"""Vectors and states in chunks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmvp.rpc import limits
from fedmvp.rpc.errors import WireError
from fedmvp.rpc.v1.aggregation_pb2 import TensorHeader
from fedmvp.rpc.vectors import Assembler, StateLayout, assemble_ring, chunks, model_hash


@pytest.mark.parametrize("ring_bits", [16, 32, 64])
@given(size=st.integers(1, 300))
def test_a_vector_survives_its_chunks(ring_bits: int, size: int) -> None:
    vector = np.random.default_rng(size).integers(0, 2**ring_bits, size, dtype=f"u{ring_bits // 8}")

    assert np.array_equal(assemble_ring(chunks(vector), size, ring_bits), vector)


def test_a_large_vector_travels_in_chunks_of_a_mebibyte_and_a_rest() -> None:
    vector = np.arange(600_000, dtype=np.uint32)
    sizes = [len(chunk) for chunk in chunks(vector)]

    assert sizes == [limits.CHUNK_BYTES, limits.CHUNK_BYTES, 2_400_000 - 2 * limits.CHUNK_BYTES]
    assert np.array_equal(assemble_ring(chunks(vector), 600_000, 32), vector)


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([b"1234"], id="a missing end"),
        pytest.param([b"12345678", b"9"], id="a byte too many"),
        pytest.param([b"", b"12345678"], id="an empty chunk"),
    ],
)
def test_chunks_that_are_not_exactly_the_vector_are_refused(parts: list[bytes]) -> None:
    with pytest.raises(WireError):
        assemble_ring(parts, 2, 32)


def test_a_chunk_above_the_limit_is_refused() -> None:
    assembler = Assembler(2 * limits.CHUNK_BYTES)

    with pytest.raises(WireError):
        assembler.add(bytes(limits.CHUNK_BYTES + 1))


def test_an_announced_length_above_the_limit_is_refused_before_memory_is_taken() -> None:
    with pytest.raises(WireError, match="at most"):
        Assembler(limits.MODEL_BYTES + 1)


def test_a_state_keeps_names_types_shapes_and_hash() -> None:
    tensors = [("b", np.arange(6, dtype=np.float32).reshape(2, 3)), ("a", np.array([7], dtype=np.float32))]
    layout = StateLayout.of(tensors)
    received = StateLayout.from_wire(layout.to_wire())
    buffer = bytearray(b"".join(array.tobytes() for _, array in tensors))

    assert received == layout
    assert received.n_bytes == len(buffer) == 28
    assert model_hash(received.unpack(buffer)) == model_hash(tensors)


def test_an_unpacked_state_cannot_be_written() -> None:
    layout = StateLayout((("x", "float32", (2,)),))
    ((_, array),) = layout.unpack(bytearray(8))

    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_more_tensors_than_a_state_can_have_are_refused() -> None:
    with pytest.raises(WireError, match="tensors"):
        StateLayout.from_wire([TensorHeader(name="x", dtype="float32", shape=[1])] * (limits.TENSORS + 1))
