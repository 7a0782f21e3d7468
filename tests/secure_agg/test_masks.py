"""Masks: the documented keystream, added exactly, independent of how it is cut."""

import hashlib
import inspect

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from secure_agg import masks
from secure_agg.errors import LocalProtocolError
from secure_agg.masks import add_mask

SEED = bytes(range(32))


def keystream_by_blocks(seed, size):
    """The counter mode written out: encrypt 0, 1, 2, ... one block at a time."""
    block = Cipher(algorithms.AES(seed), modes.ECB()).encryptor()
    return b"".join(block.update(counter.to_bytes(16, "big")) for counter in range(-(-size // 16)))[:size]


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64])
@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_a_mask_is_the_counter_mode_keystream_read_little_endian(dtype, size):
    mask = np.zeros(size, dtype=dtype)
    add_mask(mask, SEED)
    width = np.dtype(dtype).itemsize
    assert mask.astype(f"<u{width}").tobytes() == keystream_by_blocks(SEED, size * width)


@pytest.mark.parametrize("cipher", ["aes-256-ctr", "chacha20"])
@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64])
def test_subtracting_takes_out_what_adding_put_in(cipher, dtype):
    vector = np.arange(70_001, dtype=dtype)
    masked = vector.copy()
    add_mask(masked, SEED, cipher=cipher)
    assert np.count_nonzero(masked == vector) < 10
    add_mask(masked, SEED, subtract=True, cipher=cipher)
    np.testing.assert_array_equal(masked, vector)


@pytest.mark.parametrize("chunk_bytes", [16, 48, 1024])
def test_a_mask_does_not_depend_on_how_it_is_cut(monkeypatch, chunk_bytes):
    whole = np.zeros(5000, dtype=np.uint32)
    add_mask(whole, SEED)
    monkeypatch.setattr(masks, "CHUNK_BYTES", chunk_bytes)
    cut = np.zeros(5000, dtype=np.uint32)
    add_mask(cut, SEED)
    np.testing.assert_array_equal(whole, cut)


def test_a_vector_longer_than_a_chunk_has_one_keystream():
    long = np.zeros(masks.CHUNK_BYTES // 4 + 10, dtype=np.uint32)
    add_mask(long, SEED)
    assert long[-10:].astype("<u4").tobytes() == keystream_by_blocks(SEED, long.nbytes)[-40:]


def test_every_bit_of_a_seed_changes_the_mask():
    seen = set()
    for bit in range(256):
        mask = np.zeros(4, dtype=np.uint64)
        add_mask(mask, (1 << bit).to_bytes(32, "big"))
        seen.add(mask.tobytes())
    assert len(seen) == 256


@pytest.mark.parametrize("size", [0, 4, 16, 31, 33])
def test_a_seed_that_is_not_256_bits_is_refused(size):
    with pytest.raises(LocalProtocolError, match="32 bytes"):
        add_mask(np.zeros(4, np.uint32), bytes(size))


@pytest.mark.parametrize(
    "vector",
    [np.zeros(4, np.int32), np.zeros(4, np.float64), np.zeros((2, 2), np.uint32), np.zeros(8, np.uint32)[::2]],
)
def test_a_vector_that_cannot_be_masked_in_place_is_refused(vector):
    with pytest.raises(LocalProtocolError):
        add_mask(vector, SEED)


def test_an_unknown_cipher_is_refused():
    with pytest.raises(LocalProtocolError, match="unknown cipher"):
        add_mask(np.zeros(4, np.uint32), SEED, cipher="mt19937")


def test_masks_of_different_seeds_differ_everywhere():
    one, other = np.zeros(1000, np.uint64), np.zeros(1000, np.uint64)
    add_mask(one, SEED)
    add_mask(other, hashlib.sha256(SEED).digest())
    assert not np.any(one == other)


def test_the_default_cipher_is_aes():
    assert inspect.signature(add_mask).parameters["cipher"].default == "aes-256-ctr"
