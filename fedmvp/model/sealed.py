"""A file of rows that only the site's key opens: one block an image, each bound to its place, its image and its origin.

Format, version 1; integers are big-endian:

    file    = header, block 0 ... block n-1, index
    header  = "FMVPSEAL", version u16, row bytes u32, identity (32), salt (32)
    key     = HKDF-SHA-256(site key, salt, "fedmvp/sealed-rows/v1", identity), 32 bytes
    block i = AES-256-GCM(key, nonce i, row i, header, "row", u64 i, digest i)
    index   = AES-256-GCM(key, nonce 2^96 - 1, digest 0 ... digest n-1, header, "index", u64 n)

The salt is drawn for each file, so a key belongs to one file; a file is written once, from front to back, so no nonce
is used twice. `identity` is the hash of everything the rows depend on besides the image (backbone, weights,
preprocessing, precision, layout); `digest` is that of the image. The index is sealed too: a digest tells whether a site
has an image.

This module knows bytes and keys, no tensors and no folders.
"""

from __future__ import annotations

import os
import secrets
import struct
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedmvp.study.cache_key import CacheKey

VERSION = 1
DIGEST_BYTES = 32
TAG_BYTES = 16

_MAGIC = b"FMVPSEAL"
_INFO = b"fedmvp/sealed-rows/v1"
_SALT_BYTES = 32
_HEADER = struct.Struct(f">8sHI{DIGEST_BYTES}s{_SALT_BYTES}s")
_INDEX_NONCE = b"\xff" * 12


class SealBrokenError(Exception):
    """A file is not what was sealed under this key: damaged, cut short, swapped, or of another key or format."""


def sealed_bytes(rows: int, row_bytes: int) -> int:
    """Return the size of a file of so many rows, bytes."""
    return _HEADER.size + rows * (row_bytes + TAG_BYTES + DIGEST_BYTES) + TAG_BYTES


def rows_within(size: int, row_bytes: int) -> int:
    """Return how many rows fit in a file of `size` bytes; 0 where not even one does."""
    return max(0, (size - _HEADER.size - TAG_BYTES) // (row_bytes + TAG_BYTES + DIGEST_BYTES))


class SealedWriter:
    """Writes one sealed file, row after row.

    Args:
        descriptor: an empty file, open for reading and writing; stays the caller's.
        key: the site's key.
        identity: hash of what the rows depend on, 32 bytes.
        row_bytes: size of each row.
    """

    def __init__(self, descriptor: int, key: CacheKey, identity: bytes, row_bytes: int) -> None:
        self._descriptor = descriptor
        self._row_bytes = row_bytes
        salt = secrets.token_bytes(_SALT_BYTES)
        self._header = _HEADER.pack(_MAGIC, VERSION, row_bytes, identity, salt)
        self._cipher = _file_cipher(key, self._header)
        self._digests: list[bytes] = []
        self._place = 0
        self._write(self._header)

    def __len__(self) -> int:
        return len(self._digests)

    def append(self, digest: bytes, row: bytes) -> None:
        """Seal the next row.

        Raises:
            OSError: the disk refuses; the file is then worth nothing.
        """
        if len(row) != self._row_bytes or len(digest) != DIGEST_BYTES:
            raise ValueError("a row or a digest of another size than the file's")
        number = len(self._digests)
        self._write(self._cipher.encrypt(_nonce(number), row, _row_context(self._header, number, digest)))
        self._digests.append(digest)

    def finish(self) -> SealedRows:
        """Write the index and return the rows for reading.

        There is no flush to the disk: what a crash leaves of a renamed file fails its check and is computed again.
        """
        content = b"".join(self._digests)
        self._write(self._cipher.encrypt(_INDEX_NONCE, content, _index_context(self._header, len(self._digests))))
        os.ftruncate(self._descriptor, self._place)  # room may have been set aside for more
        return SealedRows(self._descriptor, self._header, self._cipher, self._digests)

    def _write(self, content: bytes) -> None:
        left = memoryview(content)
        while left:
            written = os.pwrite(self._descriptor, left, self._place)
            self._place += written
            left = left[written:]


class SealedRows:
    """The rows of one sealed file; may be read by several threads at once.

    Args:
        descriptor: the open file; stays the caller's.
        header: its first bytes.
        cipher: of the file's key.
        digests: of the rows' images, in order.
    """

    def __init__(self, descriptor: int, header: bytes, cipher: AESGCM, digests: Sequence[bytes]) -> None:
        self._descriptor = descriptor
        self._header = header
        self._cipher = cipher
        self.digests = tuple(digests)
        _, _, self.row_bytes, self.identity, _ = _HEADER.unpack(header)

    @classmethod
    def open(cls, descriptor: int, key: CacheKey) -> SealedRows:
        """Read header and index.

        Raises:
            SealBrokenError: the file was not written under this key, or not to its end, or was changed since.
        """
        try:
            header = os.pread(descriptor, _HEADER.size, 0)
            size = os.fstat(descriptor).st_size
            magic, version, row_bytes, _, _ = _HEADER.unpack(header)
            if (magic, version) != (_MAGIC, VERSION):
                raise SealBrokenError("another format")
            count = rows_within(size, row_bytes)
            if sealed_bytes(count, row_bytes) != size:
                raise SealBrokenError("not a whole number of rows")
            cipher = _file_cipher(key, header)
            length = count * DIGEST_BYTES + TAG_BYTES
            index = os.pread(descriptor, length, size - length)
            content = cipher.decrypt(_INDEX_NONCE, index, _index_context(header, count))
        except (struct.error, OSError, InvalidTag) as failure:
            raise SealBrokenError(type(failure).__name__) from failure
        digests = [content[start : start + DIGEST_BYTES] for start in range(0, len(content), DIGEST_BYTES)]
        return cls(descriptor, header, cipher, digests)

    def read(self, number: int) -> bytes:
        """Return a row.

        Raises:
            SealBrokenError: the block is not the one written here for this image.
        """
        block = self.row_bytes + TAG_BYTES
        context = _row_context(self._header, number, self.digests[number])
        try:
            sealed = os.pread(self._descriptor, block, _HEADER.size + number * block)
            return self._cipher.decrypt(_nonce(number), sealed, context)
        except (OSError, InvalidTag) as failure:
            raise SealBrokenError(type(failure).__name__) from failure


def _file_cipher(key: CacheKey, header: bytes) -> AESGCM:
    _, _, _, identity, salt = _HEADER.unpack(header)
    derived = HKDF(algorithm=SHA256(), length=32, salt=salt, info=_INFO + identity).derive(key.secret)
    return AESGCM(derived)


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")


def _row_context(header: bytes, number: int, digest: bytes) -> bytes:
    return header + b"row" + number.to_bytes(8, "big") + digest


def _index_context(header: bytes, count: int) -> bytes:
    return header + b"index" + count.to_bytes(8, "big")
