"""The canonical encoding: two different statements never share their bytes."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_agg import encoding
from secure_agg.encoding import (
    canonical,
    digest,
    little_endian_bytes,
    tensors_digest,
    u32,
    u32_list,
    u64,
    vector_digest,
)

statements = st.tuples(st.text(max_size=6), st.lists(st.binary(max_size=6), max_size=4))


@given(statements, statements)
def test_distinct_statements_have_distinct_bytes(one, other):
    assert (canonical(one[0], *one[1]) == canonical(other[0], *other[1])) == (one == other)


@given(st.binary(max_size=8), st.binary(max_size=8), st.integers(0, 8))
def test_moving_the_border_between_two_fields_changes_the_bytes(one, other, cut):
    joined = one + other
    if joined[:cut] != one:
        assert canonical("t", one, other) != canonical("t", joined[:cut], joined[cut:])


def test_the_encoding_is_length_prefixed_and_big_endian():
    assert canonical("ab", b"", b"\x01\x02\x03") == bytes.fromhex(
        "00000002" + "6162" + "00000000" + "00000003" + "010203"
    )


def test_a_digest_is_sha_256_of_the_encoding():
    assert digest("tag", b"one", b"two") == hashlib.sha256(canonical("tag", b"one", b"two")).digest()


def test_a_digest_of_a_view_counts_bytes_and_not_items():
    vector = np.arange(5, dtype=np.uint32)
    assert digest("t", memoryview(vector)) == digest("t", vector.tobytes())


def test_integers_have_a_fixed_width_and_refuse_what_does_not_fit():
    assert u32(258) == bytes.fromhex("00000102")
    assert u64(258) == bytes.fromhex("0000000000000102")
    assert u32_list([1, 2]) == bytes.fromhex("0000000100000002")
    for encode, value in ((u32, 2**32), (u64, 2**64), (u32, -1)):
        with pytest.raises(OverflowError):
            encode(value)


def test_values_are_hashed_little_endian_on_every_machine():
    native = np.array([1, 2**20], dtype=np.uint32)
    swapped = native.astype(">u4")
    assert bytes(little_endian_bytes(native)) == bytes.fromhex("0100000000001000")
    assert vector_digest(native) == vector_digest(swapped)


def test_a_vector_hash_depends_on_width_and_value():
    hashes = {
        vector_digest(np.zeros(4, np.uint32)),
        vector_digest(np.zeros(8, np.uint16)),
        vector_digest(np.ones(4, np.uint32)),
    }
    assert len(hashes) == 3


def test_a_field_whose_length_does_not_fit_its_prefix_is_refused(monkeypatch):
    assert encoding.MAX_FIELD_BYTES == 2**32 - 1
    monkeypatch.setattr(encoding, "MAX_FIELD_BYTES", 7)
    canonical("t", bytes(7))
    for field in (bytes(8), memoryview(np.zeros(2, np.uint32))):
        with pytest.raises(ValueError, match="4 GiB"):
            canonical("t", field)


def vector_digest_by_the_book(vector):
    content = vector.astype(vector.dtype.newbyteorder("<")).tobytes()
    pieces = [hashlib.sha256(content[start : start + 2**20]).digest() for start in range(0, len(content), 2**20)]
    width = vector.dtype.itemsize
    return digest("fedmvp/vector/v1", f"<u{width}".encode(), u64(vector.size), b"".join(pieces))


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64])
@pytest.mark.parametrize("size", [0, 1, 2**17, 2**19 + 1, 3 * 2**17 + 7])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_vector_hash_is_the_hash_of_its_mebibytes_however_many_threads_share_it(monkeypatch, dtype, size, threads):
    monkeypatch.setattr(encoding, "threads_for", lambda *_: threads)
    vector = np.arange(size, dtype=dtype)
    assert vector_digest(vector) == vector_digest_by_the_book(vector)


def test_a_change_in_any_piece_changes_a_vector_hash():
    vector = np.zeros(2**19 + 1, np.uint32)
    hashes = {vector_digest(vector)}
    for place in (0, 2**18 - 1, 2**18, 2**19):
        vector[place] += 1
        hashes.add(vector_digest(vector))
    assert len(hashes) == 5


def test_a_model_hash_depends_on_names_order_shapes_types_and_values():
    a, b = np.arange(6, dtype=np.float32), np.arange(6, dtype=np.float32) + 1
    variants = [
        [("a", a), ("b", b)],
        [("b", b), ("a", a)],
        [("a", b), ("b", a)],
        [("a", a.reshape(2, 3)), ("b", b)],
        [("a", a.reshape(3, 2)), ("b", b)],
        [("a", a.astype(np.float64)), ("b", b)],
        [("a", a)],
        [("ab", a), ("", b)],
        [],
    ]
    assert len({tensors_digest(items) for items in variants}) == len(variants)


def test_a_model_hash_does_not_depend_on_memory_layout():
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert tensors_digest([("a", a)]) == tensors_digest([("a", np.asfortranarray(a))])
    assert tensors_digest([("a", a)]) == tensors_digest([("a", a.astype(">f4"))])


def test_a_scalar_and_an_empty_tensor_have_a_hash():
    assert tensors_digest([("step", np.array(3, dtype=np.int64))]) != tensors_digest(
        [("step", np.zeros(0, dtype=np.int64))]
    )


def test_two_tensors_of_one_name_are_refused():
    with pytest.raises(ValueError, match="share a name"):
        tensors_digest([("a", np.zeros(1)), ("a", np.zeros(1))])


def test_a_tensor_of_python_objects_is_refused():
    with pytest.raises(ValueError, match="no canonical bytes"):
        tensors_digest([("a", np.array([object()]))])
