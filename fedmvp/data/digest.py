"""A digest of a site's images, labels and patients in their order, by which its processes know that they read the same.

It is compared between processes of the site and goes nowhere else: it would tell whether somebody holds a given image.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

from fedmvp.data.dataset import ImageDataset
from fedmvp.data.images import file_digest


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
        for digest in pool.map(file_digest, dataset.paths):
            state.update(digest)
    return state.digest()
