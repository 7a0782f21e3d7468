"""A report's files: the page, its pictures and its tables."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedmvp.experiments.report.markdown import markdown
from fedmvp.experiments.report.page import page
from fedmvp.experiments.report.reading import Study
from fedmvp.experiments.report.section import Picture, section_of
from fedmvp.experiments.report.style import DARK, LIGHT, Theme, themed
from fedmvp.study.storage import write_atomic

PAGE_FILE = "report.html"
TABLES_FILE = "tables.md"


def write_report(studies: Sequence[Study], folder: Path) -> list[Path]:
    """Write a report; files of the same names are replaced, each whole or not at all.

    Args:
        studies: one section each, at least one.
        folder: where; made when missing.

    Returns:
        What was written, the page first.

    Raises:
        UserError: matplotlib is not installed, or the disk refuses.
    """
    sections = [section_of(study) for study in studies]
    pictures = {
        (section.name, picture.name): (drawn(picture, LIGHT), drawn(picture, DARK))
        for section in sections
        for part in section.parts
        for picture in part.pictures
    }
    files = {PAGE_FILE: page(sections, pictures).encode(), TABLES_FILE: markdown(sections).encode()}
    files |= {f"{section}-{name}.png": light for (section, name), (light, _) in pictures.items()}
    for name, content in files.items():
        write_atomic(folder / name, content)
    return [folder / name for name in files]


def drawn(picture: Picture, theme: Theme) -> bytes:
    """A picture as PNG."""
    with themed(theme):
        return saved(picture.draw(theme), "png")


def saved(figure: Any, kind: str) -> bytes:
    """A figure's file, the same bytes whenever it is drawn."""
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()
