"""Rows of cached features by the digest of their image, in sealed files of bounded size.

A cache never fails and is never believed: what cannot be read, written or verified is reported as absent, and the
caller computes it. One file holds some thousand images, so that a run that is killed keeps what it computed so far, and
an image that was added or removed costs no other image anything.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from fedmvp.model.cache_folder import CacheFolder, OpenFile
from fedmvp.model.sealed import SealBrokenError, SealedRows, SealedWriter, rows_within, sealed_bytes
from fedmvp.study.cache_key import CacheKey, load_cache_key

log = structlog.get_logger("fedmvp.model")

FILE_BYTES = 128 << 20
"""Size of a full file: what a killed run has to compute again at most."""

MOST_FILES = 64
"""Data sets that grow a little before every run leave many small files; more than this are joined."""

_DAMAGED = ".damaged"


def open_feature_cache(folder: Path, key_file: Path, *, max_gb: float, dataset: str) -> FeatureCache | None:
    """Open a party's cache.

    Args:
        folder: where its files are.
        key_file: the key they are sealed with; made where there is none.
        max_gb: most gigabytes of all files together; 0 keeps nothing and removes what is there.
        dataset: name of the data set.

    Returns:
        The cache; None where there is to be none, or no key can be kept.

    Raises:
        UserError: others could have read the key file, or it holds no key.
    """
    room = CacheFolder(folder, int(max_gb * 1e9))
    if room.max_bytes == 0:
        room.clear()
        return None
    key = load_cache_key(key_file)
    if key is None:
        log.warning("features are not cached: the key cannot be written", file=str(key_file))
        return None
    return FeatureCache(room, key, dataset=dataset)


class FeatureCache:
    """The cached features of one data set of one site.

    Args:
        folder: where files go, and how much they may take.
        key: the site's cache key.
        dataset: name of the data set.
    """

    def __init__(self, folder: CacheFolder, key: CacheKey, *, dataset: str) -> None:
        self._folder = folder
        self._key = key
        self._name = f"features-{hashlib.sha256(dataset.encode()).hexdigest()[:16]}-"

    def keep_only(self, digests: Collection[bytes]) -> None:
        """Remove the rows of every image of the data set that is not among these, in every kind of row.

        An image that was deleted or changed in the data folder leaves nothing of it behind.
        """
        self._folder.remove_matching("features-*.safetensors")  # early versions kept them in the clear
        wanted = set(digests)
        for path in self._folder.files(self._name):
            held = _open_rows(self._folder, path, self._key)
            if held is None:
                continue
            file, rows = held
            if path.stem.endswith(_DAMAGED) or not wanted.issuperset(rows.digests):
                kept = [digest for digest in rows.digests if digest in wanted]
                # Removed first: its space is needed for what stays, and what must go must not outlive a crash.
                self._folder.remove(path)
                shelf = self._shelf(rows.identity, rows.row_bytes, len(kept))
                _move(rows, kept, shelf)
                shelf.close()
            file.close()

    def open(self, identity: bytes, row_bytes: int, *, expected: int) -> CachedRows:
        """Open the rows of one kind.

        Args:
            identity: hash of everything they depend on besides the image, 32 bytes.
            row_bytes: size of each.
            expected: how many there will be in all.
        """
        shelf = self._shelf(identity, row_bytes, expected)
        shelf.load()
        return shelf

    def _shelf(self, identity: bytes, row_bytes: int, expected: int) -> CachedRows:
        return CachedRows(self._folder, self._key, self._name, Kind(identity, row_bytes, expected))


@dataclass(frozen=True)
class Kind:
    """What rows are of one kind; see :meth:`FeatureCache.open`."""

    identity: bytes
    row_bytes: int
    expected: int


class CachedRows:
    """Rows of one kind; any thread may read while one writes.

    Args:
        folder: where files go.
        key: the site's cache key.
        name: beginning of their names.
        kind: which rows.
    """

    def __init__(self, folder: CacheFolder, key: CacheKey, name: str, kind: Kind) -> None:
        self._folder = folder
        self._key = key
        self._stem = f"{name}{kind.identity.hex()[:24]}-"
        self._kind = kind
        self._places: dict[bytes, tuple[SealedRows, int]] = {}
        self._files: dict[SealedRows, OpenFile] = {}
        self._writing: tuple[OpenFile, SealedWriter] | None = None
        self._unread: set[bytes] = set()
        self._full = False
        self._lock = threading.Lock()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._places

    @property
    def is_full(self) -> bool:
        """Whether nothing more is written: no room, or a disk that refused."""
        return self._full

    def load(self) -> None:
        """Open what the folder holds of this kind."""
        for path in self._folder.files(self._stem):
            held = _open_rows(self._folder, path, self._key)
            if held is None:
                continue
            file, rows = held
            if (rows.identity, rows.row_bytes) != (self._kind.identity, self._kind.row_bytes):
                file.close()
            elif all(digest in self._places for digest in rows.digests):  # two processes computed the same
                self._folder.remove(path)
                file.close()
            else:
                self._take(file, rows)
        if len(self._files) > MOST_FILES:
            self._join([rows for rows, file in self._files.items() if file.size < FILE_BYTES // 2])

    def read(self, digest: bytes) -> bytes | None:
        """Return the row of an image; None where there is none that can be believed."""
        place = self._places.get(digest)
        if place is None:
            return None
        rows, number = place
        try:
            return rows.read(number)
        except SealBrokenError as failure:
            self._forget(digest, rows, failure)
            return None

    def add(self, digest: bytes, row: bytes) -> None:
        """Keep a row if there is room; it can be read once the file it is in is complete."""
        with self._lock:
            if self._full or digest in self._places or digest in self._unread:
                return
            try:
                self._writing = self._writing or self._begin()
                if self._writing is None:
                    self._full = True
                    return
                file, writer = self._writing
                writer.append(digest, row)
                self._unread.add(digest)
                if len(writer) >= rows_within(file.size, self._kind.row_bytes):
                    self._finish()
            except OSError as failure:
                self._stop_writing(failure)

    def flush(self) -> None:
        """Complete the file that is being written."""
        with self._lock:
            try:
                self._finish()
            except OSError as failure:
                self._stop_writing(failure)

    def close(self) -> None:
        """Complete what is being written and give all files up."""
        self.flush()
        with self._lock:
            for file in self._files.values():
                file.close()
            self._files = {}
            self._places = {}

    def _take(self, file: OpenFile, rows: SealedRows) -> None:
        self._files[rows] = file
        for number, digest in enumerate(rows.digests):
            self._places.setdefault(digest, (rows, number))

    def _begin(self) -> tuple[OpenFile, SealedWriter] | None:
        row_bytes = self._kind.row_bytes
        least = sealed_bytes(1, row_bytes)
        most = sealed_bytes(max(1, self._kind.expected - len(self._places)), row_bytes)
        file = self._folder.create(self._stem, most=max(least, min(most, FILE_BYTES)), least=least)
        if file is None:
            return None
        return file, SealedWriter(file.descriptor, self._key, self._kind.identity, row_bytes)

    def _finish(self) -> None:
        if self._writing is None:
            return
        file, writer = self._writing
        rows = writer.finish()
        self._folder.publish(file)
        self._writing = None
        self._unread.clear()
        self._take(file, rows)

    def _stop_writing(self, failure: OSError) -> None:
        self._full = True
        if self._writing is not None:
            self._writing[0].abandon()
            self._writing = None
        log.warning(
            "the feature cache cannot be written; what it lacks is computed when needed",
            folder=str(self._folder.path),
            reason=failure.strerror or type(failure).__name__,
        )

    def _forget(self, digest: bytes, rows: SealedRows, failure: SealBrokenError) -> None:
        """Read a damaged row no more; its file is written anew, without it, before the next run."""
        with self._lock:
            if self._places.pop(digest, None) is None:
                return
            path = self._files[rows].path
            self._folder.rename(path, path.with_name(f"{path.stem}{_DAMAGED}{path.suffix}"))
        _report_damage(path, failure)

    def _join(self, small: list[SealedRows]) -> None:
        """Write the rows of small files into larger ones."""
        files = [(rows, self._files.pop(rows)) for rows in small]
        self._places = {digest: place for digest, place in self._places.items() if place[0] in self._files}
        for rows, file in files:
            self._folder.remove(file.path)
            _move(rows, rows.digests, self)
            file.close()
        self.flush()


def _open_rows(folder: CacheFolder, path: Path, key: CacheKey) -> tuple[OpenFile, SealedRows] | None:
    """Open a sealed file; one that cannot be believed is removed."""
    file = folder.open(path)
    if file is None:
        return None
    try:
        return file, SealedRows.open(file.descriptor, key)
    except SealBrokenError as failure:
        file.close()
        folder.remove(path)
        _report_damage(path, failure)
        return None


def _move(rows: SealedRows, kept: Sequence[bytes], shelf: CachedRows) -> None:
    places = {digest: number for number, digest in enumerate(rows.digests)}
    for digest in kept:
        try:
            shelf.add(digest, rows.read(places[digest]))
        except SealBrokenError as failure:
            log.warning("a damaged block of the feature cache was left out", reason=str(failure))


def _report_damage(path: Path, failure: SealBrokenError) -> None:
    log.warning(
        "a file of the feature cache is damaged or was written under another key; its features are computed again",
        file=str(path),
        reason=str(failure),
    )
