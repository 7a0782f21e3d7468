"""Miniature data sets, drawn by the tests that read them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from PIL import Image


def draw(path: Path, colour: str = "red") -> Path:
    """A picture of 4 x 4 pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), colour).save(path)
    return path


def draw_classes(root: Path, names: Iterable[str], images: int = 3, suffix: str = ".png") -> Path:
    """`root/<name>/<number>` for every class."""
    for name in names:
        for number in range(images):
            draw(root / name / f"{number}{suffix}")
    return root
