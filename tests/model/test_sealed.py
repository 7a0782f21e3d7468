from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from fedmvp.model.sealed import (
    DIGEST_BYTES,
    TAG_BYTES,
    SealBrokenError,
    SealedRows,
    SealedWriter,
    rows_within,
    sealed_bytes,
)
from fedmvp.study.cache_key import CacheKey

KEY = CacheKey(bytes(range(32)))
IDENTITY = b"\x07" * 32
ROW_BYTES = 40
DRAWS = np.random.default_rng(0)
ROWS = [DRAWS.bytes(ROW_BYTES) for _ in range(3)]
DIGESTS = [DRAWS.bytes(DIGEST_BYTES) for _ in range(3)]
HEADER_BYTES = sealed_bytes(0, ROW_BYTES) - TAG_BYTES
BLOCK_BYTES = ROW_BYTES + TAG_BYTES


def write(path: Path, rows: Sequence[bytes] = ROWS, *, key: CacheKey = KEY, identity: bytes = IDENTITY) -> bytes:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        writer = SealedWriter(descriptor, key, identity, ROW_BYTES)
        for digest, row in zip(DIGESTS, rows, strict=True):
            writer.append(digest, row)
        writer.finish()
    finally:
        os.close(descriptor)
    return path.read_bytes()


@contextmanager
def opened(path: Path, key: CacheKey = KEY) -> Iterator[SealedRows]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield SealedRows.open(descriptor, key)
    finally:
        os.close(descriptor)


def readable(path: Path, content: bytes, key: CacheKey = KEY) -> list[bytes | None]:
    """What can be read of a changed file: a row, or None where it is refused; all None where the file is."""
    path.write_bytes(content)
    found: list[bytes | None] = []
    try:
        with opened(path, key) as rows:
            for number in range(len(rows.digests)):
                try:
                    found.append(rows.read(number))
                except SealBrokenError:
                    found.append(None)
    except SealBrokenError:
        return [None] * len(ROWS)
    return found


def test_rows_come_back_with_the_digests_and_the_identity_they_were_sealed_with(tmp_path):
    content = write(tmp_path / "a")
    assert len(content) == sealed_bytes(3, ROW_BYTES)
    assert rows_within(len(content), ROW_BYTES) == 3
    assert rows_within(len(content) - 1, ROW_BYTES) == 2
    with opened(tmp_path / "a") as rows:
        assert rows.digests == tuple(DIGESTS)
        assert (rows.identity, rows.row_bytes) == (IDENTITY, ROW_BYTES)
        assert [rows.read(number) for number in (2, 0, 1)] == [ROWS[2], ROWS[0], ROWS[1]]


def test_a_file_without_rows_is_one_too(tmp_path):
    descriptor = os.open(tmp_path / "a", os.O_RDWR | os.O_CREAT)
    SealedWriter(descriptor, KEY, IDENTITY, ROW_BYTES).finish()
    os.close(descriptor)
    with opened(tmp_path / "a") as rows:
        assert rows.digests == ()


def test_a_change_of_any_byte_is_refused_and_never_read_as_another_row(tmp_path):
    content = write(tmp_path / "a")
    assert readable(tmp_path / "b", content) == ROWS
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << (place % 8)
        found = readable(tmp_path / "b", bytes(changed))
        number, in_blocks = (place - HEADER_BYTES) // BLOCK_BYTES, place >= HEADER_BYTES
        if in_blocks and number < 3:
            expected: list[bytes | None] = [None if i == number else ROWS[i] for i in range(3)]
            assert found == expected, place
        else:
            assert found == [None] * 3, place


def test_a_file_cut_short_or_made_longer_anywhere_is_refused(tmp_path):
    content = write(tmp_path / "a")
    for length in range(len(content)):
        assert readable(tmp_path / "b", content[:length]) == [None] * 3, length
    for more in (1, TAG_BYTES, BLOCK_BYTES + DIGEST_BYTES):
        assert readable(tmp_path / "b", content + content[-more:]) == [None] * 3, more


def test_blocks_that_changed_places_are_refused(tmp_path):
    content = write(tmp_path / "a")
    block = [content[HEADER_BYTES + i * BLOCK_BYTES : HEADER_BYTES + (i + 1) * BLOCK_BYTES] for i in range(3)]
    start, end = content[:HEADER_BYTES], content[HEADER_BYTES + 3 * BLOCK_BYTES :]
    assert readable(tmp_path / "b", start + block[0] + block[1] + block[2] + end) == ROWS
    assert readable(tmp_path / "b", start + block[1] + block[0] + block[2] + end) == [None, None, ROWS[2]]
    assert readable(tmp_path / "b", start + block[0] + block[0] + block[2] + end) == [ROWS[0], None, ROWS[2]]


def test_a_block_or_an_index_of_another_file_under_the_same_key_is_refused(tmp_path):
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    middle = slice(HEADER_BYTES, HEADER_BYTES + BLOCK_BYTES)
    foreign = bytearray(first)
    foreign[middle] = second[middle]
    assert readable(tmp_path / "c", bytes(foreign)) == [None, ROWS[1], ROWS[2]]
    index = 3 * DIGEST_BYTES + TAG_BYTES
    assert readable(tmp_path / "c", first[:-index] + second[-index:]) == [None] * 3
    assert readable(tmp_path / "c", second[:HEADER_BYTES] + first[HEADER_BYTES:]) == [None] * 3


def test_another_key_or_identity_opens_nothing(tmp_path):
    content = write(tmp_path / "a")
    assert readable(tmp_path / "b", content, CacheKey(bytes(32))) == [None] * 3
    other = content.replace(IDENTITY, b"\x08" * 32, 1)
    assert other != content
    assert readable(tmp_path / "b", other) == [None] * 3


def test_the_same_rows_are_sealed_differently_every_time(tmp_path):
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    for number in range(3):
        block = slice(HEADER_BYTES + number * BLOCK_BYTES, HEADER_BYTES + (number + 1) * BLOCK_BYTES)
        assert first[block] != second[block]


def in_clear(content: bytes, secrets: Sequence[bytes], window: int = 8) -> bool:
    """Whether any piece of the secrets stands in the content."""
    return any(
        secret[start : start + window] in content
        for secret in secrets
        for start in range(0, len(secret) - window + 1, window)
    )


def test_neither_rows_nor_digests_stand_in_the_file_in_clear(tmp_path):
    assert not in_clear(write(tmp_path / "a"), [*ROWS, *DIGESTS])


def test_control_a_writer_that_does_not_encrypt_is_caught_by_the_same_search(tmp_path, monkeypatch):
    class Plain:
        def __init__(self, _key: bytes) -> None: ...

        def encrypt(self, _nonce: bytes, data: bytes, _context: bytes) -> bytes:
            return data + bytes(TAG_BYTES)

    monkeypatch.setattr("fedmvp.model.sealed.AESGCM", Plain)
    content = write(tmp_path / "a")
    assert in_clear(content, ROWS)
    assert in_clear(content, DIGESTS)


def test_several_threads_read_one_file(tmp_path):
    write(tmp_path / "a")
    with opened(tmp_path / "a") as rows, ThreadPoolExecutor(4) as pool:
        assert list(pool.map(rows.read, [0, 1, 2] * 200)) == ROWS * 200


def test_a_row_of_another_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match="another size"):
        write(tmp_path / "a", [b"short", *ROWS[1:]])
    with pytest.raises(ValueError, match="32 bytes"):
        CacheKey(b"short")
    assert "x07" not in repr(KEY)
