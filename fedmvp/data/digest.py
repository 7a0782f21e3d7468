"""A digest of a site's images, labels and patients in their order, by which its processes know that they read the same.

It is compared between processes of the site and goes nowhere else: it would tell whether somebody holds a given image.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fedmvp.data.dataset import ImageDataset
from fedmvp.errors import UserError


def dataset_digest(dataset: ImageDataset, *, threads: int = 4) -> bytes:
    """Return the SHA-256 (32 bytes) of files, labels and patients in their order, whatever the paths are.

    Args:
        dataset: checked paths and labels.
        threads: reading threads, at least 1.

    Raises:
        UserError: a file cannot be read.
    """
    state = hashlib.sha256(repr((dataset.classes, dataset.labels, dataset.patients)).encode())
    with ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
        for digest in pool.map(_file_digest, dataset.paths):
            state.update(digest)
    return state.digest()


def _file_digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as failure:
        raise UserError(
            f"image {path} cannot be read: {failure.strerror}", remedy="restore it, or remove it from the data set"
        ) from failure
