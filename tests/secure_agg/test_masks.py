"""Masks: the documented keystream, added exactly, independent of how it is cut and of who adds it."""

import hashlib
import inspect
import random

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from secure_agg import keystream, masks, parallel
from secure_agg.errors import LocalProtocolError
from secure_agg.masks import add_masks

SEED = bytes(range(32))
JOBS = tuple((hashlib.sha256(b"job %d" % i).digest(), i % 2 == 1) for i in range(5))
DTYPES = [np.uint16, np.uint32, np.uint64]
CIPHERS = ["aes-256-ctr", "chacha20"]


def aes_by_blocks(seed, size):
    """Counter mode written out: encrypt the segment's number and 2, 3, 4, ... one block at a time."""
    block = Cipher(algorithms.AES(seed), modes.ECB()).encryptor()
    places = (divmod(16 * index, masks.SEGMENT_BYTES) for index in range(-(-size // 16)))
    return block.update(b"".join(s.to_bytes(12, "big") + (2 + at // 16).to_bytes(4, "big") for s, at in places))[:size]


def rotated(word, bits):
    return (word << bits | word >> (32 - bits)) & 0xFFFFFFFF


def chacha20_block(seed, counter, nonce):
    """One block of RFC 8439, section 2.3, written out."""
    constants = b"expand 32-byte k"
    start = np.frombuffer(constants + seed + counter.to_bytes(4, "little") + nonce, dtype="<u4").tolist()
    state = list(start)
    columns = [(0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)]
    diagonals = [(0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)]
    for _ in range(10):
        for a, b, c, d in columns + diagonals:
            for left, right, into, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                state[left] = (state[left] + state[right]) & 0xFFFFFFFF
                state[into] = rotated(state[into] ^ state[left], bits)
    return np.array([(x + y) % 2**32 for x, y in zip(state, start, strict=True)], dtype="<u4").tobytes()


def chacha20_by_blocks(seed, size):
    places = (divmod(64 * index, masks.SEGMENT_BYTES) for index in range(-(-size // 64)))
    return b"".join(chacha20_block(seed, at // 64, s.to_bytes(12, "big")) for s, at in places)[:size]


BY_BLOCKS = {"aes-256-ctr": aes_by_blocks, "chacha20": chacha20_by_blocks}


def mask_of(dtype, size, *, seed=SEED, **options):
    mask = np.zeros(size, dtype=dtype)
    add_masks(mask, [(seed, False)], **options)
    return mask


def little_endian(mask):
    return mask.astype(mask.dtype.newbyteorder("<")).tobytes()


@pytest.fixture
def small_work_is_split(monkeypatch):
    """Let a few small segments be enough for several threads, and count the slices that are made."""
    slices = []
    monkeypatch.setattr(parallel, "MIN_BYTES_PER_THREAD", 1)
    monkeypatch.setattr(masks, "SEGMENT_BYTES", 256)
    monkeypatch.setattr(masks, "CHUNK_BYTES", 64)
    plain = masks._mask_segments

    def counted(vector, jobs, cipher, first, stop):
        slices.append((first, stop))
        plain(vector, jobs, cipher, first, stop)

    monkeypatch.setattr(masks, "_mask_segments", counted)
    return slices


@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 7, 64, 1001])
def test_a_mask_is_the_keystream_of_its_cipher_read_little_endian(cipher, dtype, size):
    mask = mask_of(dtype, size, cipher=cipher)
    assert little_endian(mask) == BY_BLOCKS[cipher](SEED, mask.nbytes)


@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_subtracting_takes_out_what_adding_put_in(cipher, dtype):
    vector = np.arange(70_001, dtype=dtype)
    masked = vector.copy()
    add_masks(masked, [(SEED, False)], cipher=cipher)
    assert np.count_nonzero(masked == vector) < 10
    add_masks(masked, [(SEED, True)], cipher=cipher)
    np.testing.assert_array_equal(masked, vector)


@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_several_masks_add_up_to_the_exact_integer_sum_of_their_keystreams(cipher, dtype):
    size, modulus = 999, 2 ** (8 * np.dtype(dtype).itemsize)
    vector = np.arange(size, dtype=dtype)
    wanted = vector.tolist()
    for seed, subtract in JOBS:
        stream = np.frombuffer(BY_BLOCKS[cipher](seed, vector.nbytes), dtype=np.dtype(dtype).newbyteorder("<"))
        sign = -1 if subtract else 1
        wanted = [(old + sign * new) % modulus for old, new in zip(wanted, stream.tolist(), strict=True)]
    add_masks(vector, JOBS, cipher=cipher)
    assert vector.tolist() == wanted


def test_the_order_of_the_masks_does_not_matter():
    one, other = np.zeros(500, np.uint32), np.zeros(500, np.uint32)
    add_masks(one, JOBS)
    add_masks(other, random.Random(3).sample(JOBS, len(JOBS)))
    np.testing.assert_array_equal(one, other)


def test_no_masks_leave_a_vector_as_it_is():
    vector = np.arange(10, dtype=np.uint32)
    add_masks(vector, iter(()))
    assert vector.tolist() == list(range(10))
    add_masks(np.zeros(0, np.uint32), [(SEED, False)])


@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk_bytes", [64, 192, 1024])
def test_a_mask_does_not_depend_on_how_it_is_cut(monkeypatch, cipher, dtype, chunk_bytes):
    whole = mask_of(dtype, 5001, cipher=cipher)
    monkeypatch.setattr(masks, "CHUNK_BYTES", chunk_bytes)
    np.testing.assert_array_equal(mask_of(dtype, 5001, cipher=cipher), whole)


@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_mask_does_not_depend_on_the_number_of_threads(small_work_is_split, cipher, dtype, threads):
    per_segment = masks.SEGMENT_BYTES // np.dtype(dtype).itemsize
    vector = np.zeros(4 * per_segment + 13, dtype=dtype)
    add_masks(vector, JOBS, cipher=cipher, threads=threads)
    assert len(small_work_is_split) == threads
    in_one_go = np.zeros_like(vector)
    for seed, subtract in JOBS:
        values = np.frombuffer(BY_BLOCKS[cipher](seed, vector.nbytes), dtype=vector.dtype.newbyteorder("<"))
        (np.subtract if subtract else np.add)(in_one_go, values, out=in_one_go)
    np.testing.assert_array_equal(vector, in_one_go)


@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize("size", [1, 3, 5])
def test_more_threads_than_segments_change_nothing(small_work_is_split, cipher, size):
    vector = mask_of(np.uint32, 64 * size - 5, cipher=cipher, threads=64)
    assert little_endian(vector) == BY_BLOCKS[cipher](SEED, vector.nbytes)
    assert len(small_work_is_split) == size


@pytest.mark.parametrize("cipher", CIPHERS)
def test_threads_that_started_every_slice_at_segment_zero_would_be_noticed(small_work_is_split, monkeypatch, cipher):
    whole = mask_of(np.uint32, 100, cipher=cipher, threads=1)
    monkeypatch.setattr(masks, "keystream", lambda seed, cipher, _segment: keystream.keystream(seed, cipher, 0))
    assert not np.array_equal(mask_of(np.uint32, 100, cipher=cipher, threads=2), whole)


@pytest.mark.parametrize("cipher", CIPHERS)
def test_every_mebibyte_of_a_mask_has_a_nonce_of_its_own(cipher):
    long = little_endian(mask_of(np.uint32, 2 * 2**20 // 4 + 10, cipher=cipher))
    if cipher == "aes-256-ctr":
        assert long == aes_by_blocks(SEED, len(long))
    else:
        first, second, third = (chacha20_block(SEED, 0, bytes(11) + bytes([segment]))[:40] for segment in range(3))
        assert (long[:40], long[2**20 : 2**20 + 40], long[2**21 :]) == (first, second, third)


@pytest.mark.parametrize("segment", [0, 1, 2**32, 2**96 - 1])
def test_the_keystream_is_plain_counter_mode_of_the_library(segment):
    first_block = segment.to_bytes(12, "big") + (2).to_bytes(4, "big")
    plain = Cipher(algorithms.AES256(SEED), modes.CTR(first_block)).encryptor()
    stream = keystream.keystream(SEED, "aes-256-ctr", segment)
    for size in (70_001, 2**18, 1):
        assert stream.update(bytes(size)) == plain.update(bytes(size))


@pytest.mark.parametrize("cipher", CIPHERS)
def test_every_bit_of_a_seed_changes_the_mask(cipher):
    seen = {mask_of(np.uint64, 4, seed=(1 << bit).to_bytes(32, "big"), cipher=cipher).tobytes() for bit in range(256)}
    assert len(seen) == 256


def refused(vector, jobs, match, **options):
    before = vector.copy()
    with pytest.raises(LocalProtocolError, match=match) as caught:
        add_masks(vector, jobs, **options)
    assert caught.value.remedy
    np.testing.assert_array_equal(vector, before)
    return str(caught.value)


@pytest.mark.parametrize("size", [0, 4, 16, 31, 33])
def test_a_seed_that_is_not_256_bits_is_refused_before_anything_is_added(size):
    shown = refused(np.zeros(4, np.uint32), [(SEED, False), (b"\x5a" * size, False)], "32 bytes")
    assert "5a" not in shown
    assert "Z" not in shown


def read_only():
    vector = np.zeros(4, np.uint32)
    vector.flags.writeable = False
    return vector


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros(4, np.int32),
        np.zeros(4, np.float64),
        np.zeros((2, 2), np.uint32),
        np.zeros(8, np.uint32)[::2],
        read_only(),
    ],
)
def test_a_vector_that_cannot_be_masked_in_place_is_refused(vector):
    refused(vector, [(SEED, False)], "contiguous")


def test_an_unknown_cipher_is_refused():
    refused(np.zeros(4, np.uint32), [(SEED, False)], "unknown cipher", cipher="mt19937")


def test_masks_of_different_seeds_differ_everywhere():
    one, other = mask_of(np.uint64, 1000), mask_of(np.uint64, 1000, seed=hashlib.sha256(SEED).digest())
    assert not np.any(one == other)


def test_the_default_cipher_is_aes():
    assert inspect.signature(add_masks).parameters["cipher"].default == "aes-256-ctr"
