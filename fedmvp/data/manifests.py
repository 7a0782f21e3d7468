"""CSV and Parquet tables as data sets: one row an image.

Columns: `path` (or `image`, relative to the table), `label` or `labels` (several, separated by "|" in CSV, a list or
such a text in Parquet), and where they apply `site`, `patient`, `domain`, `split`. The classes and their order are
given by the caller: a list of classes made of private records would be a release.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmvp.data.dataset import empty_class, unknown_label
from fedmvp.data.records import ImageCollection, ImageRecord
from fedmvp.errors import UserError
from fedmvp.extras import optional_module

PATH_COLUMNS = ("path", "image")
SEPARATOR = "|"
OPTIONAL_COLUMNS = ("site", "patient", "domain", "split")
_ALIKE = 0.8  # "patient_id" and "Patient" are meant as patient, "age" is not
PARQUET_SUFFIXES = frozenset({".parquet", ".pq"})


@dataclass(frozen=True)
class _Columns:
    """Which columns of a table hold what."""

    path: str
    label: str
    others: tuple[str, ...]

    @property
    def multi_label(self) -> bool:
        return self.label == "labels"


def read_manifest(path: Path, classes: Sequence[str], *, require_every_class: bool = True) -> ImageCollection:
    """Read a table of images.

    Args:
        path: a `.csv` file in UTF-8, or a `.parquet` file (extra `parquet`).
        classes: class names in the classifier's order.
        require_every_class: refuse a class without images; a site that holds some of the classes says False.

    Raises:
        UserError: no file, a missing or unknown column, a missing image, an unknown label, an empty cell of a column
            that is there, a class without images, or no row.
    """
    if not path.is_file():
        raise UserError(f"manifest {path} does not exist", remedy="correct the path of the table")
    header, rows = _parquet(path) if path.suffix.lower() in PARQUET_SUFFIXES else _csv(path)
    columns = _columns(header, path)
    positions = {name: position for position, name in enumerate(classes)}
    records = tuple(_record(row, where, path, columns, positions) for where, row in rows)
    if not records:
        raise UserError(f"manifest {path} holds no images", remedy="give it one row an image")
    if require_every_class:
        shown = {label for record in records for label in record.labels}
        for name, position in positions.items():
            if position not in shown:
                raise empty_class(name, f"in {path}")
    return ImageCollection(records, tuple(classes), path, columns.multi_label)


def write_manifest(path: Path, collection: ImageCollection) -> None:
    """Write a collection as CSV, with absolute paths and the optional columns that every record fills.

    The first column is called `image`: a single-label table is then also what [data] of a site reads.
    """
    filled = [
        name
        for name in OPTIONAL_COLUMNS
        if collection.records and all(getattr(record, name) is not None for record in collection.records)
    ]
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "labels" if collection.multi_label else "label", *filled])
        for record in collection.records:
            names = SEPARATOR.join(collection.classes[at] for at in record.labels)
            table.writerow([record.path.absolute(), names, *(getattr(record, name) for name in filled)])


def _columns(header: Sequence[str], path: Path) -> _Columns:
    known = {*PATH_COLUMNS, "label", "labels", *OPTIONAL_COLUMNS}
    file = next((name for name in PATH_COLUMNS if name in header), None)
    label = [name for name in ("label", "labels") if name in header]
    if file is None or len(label) != 1:
        missing = "no column path" if file is None else f"{len(label)} of the columns label and labels"
        raise UserError(
            f"manifest {path} has {missing}",
            remedy="begin it with the line: path,label (or path,labels for several an image)",
        )
    for name in header:  # further columns are left alone, but a misspelt `patient` must not go unnoticed
        meant = difflib.get_close_matches(name.lower(), OPTIONAL_COLUMNS, n=1, cutoff=_ALIKE)
        if name not in known and meant:
            raise UserError(
                f"manifest {path} has a column '{name}', which is not read",
                remedy=f"did you mean {meant[0]}? Rename it so, or to something else",
            )
    return _Columns(file, label[0], tuple(name for name in OPTIONAL_COLUMNS if name in header))


def _record(row: dict[str, Any], where: str, table: Path, columns: _Columns, classes: dict[str, int]) -> ImageRecord:
    image = table.parent / _text(row.get(columns.path))
    if not _text(row.get(columns.path)) or not image.is_file():
        raise UserError(
            f"{where}, column {columns.path}: image {image} does not exist",
            remedy="correct the path, or remove the row",
        )
    names = _names(row.get(columns.label)) if columns.multi_label else [_text(row.get(columns.label))]
    for name in names:
        if name not in classes:
            raise unknown_label(name, classes, where=f"{where}, column {columns.label}")
    others = {name: _text(row.get(name)) for name in columns.others}
    for name, value in others.items():
        if not value:
            raise UserError(
                f"{where}: column {name} is empty", remedy=f"fill {name} in every row, or remove the column"
            )
    return ImageRecord(image, tuple(sorted({classes[name] for name in names})), **others)


def _names(value: Any) -> list[str]:
    """The labels of a cell; an empty one is an image of no class."""
    parts = value if isinstance(value, list | tuple) else _text(value).split(SEPARATOR)
    return [name for part in parts if (name := _text(part))]


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _csv(path: Path) -> tuple[list[str], Iterator[tuple[str, dict[str, Any]]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = [(f"line {reader.line_num} of {path}", row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as failure:
        raise UserError(
            f"manifest {path} is not a UTF-8 CSV file: {failure}", remedy="save it as CSV UTF-8"
        ) from failure
    for where, row in rows:
        if None in row:
            raise UserError(f"{where} has more cells than columns", remedy='put texts with commas into "quotes"')
    return list(reader.fieldnames or ()), iter(rows)


def _parquet(path: Path) -> tuple[list[str], Iterator[tuple[str, dict[str, Any]]]]:
    parquet = optional_module("pyarrow.parquet", extra="parquet", purpose=f"manifest {path}")
    try:
        table = parquet.read_table(path)
    except Exception as failure:
        raise UserError(
            f"manifest {path} is not a Parquet file ({type(failure).__name__})",
            remedy="write it again, or give a CSV file",
        ) from failure
    rows = table.to_pylist()
    return list(table.column_names), ((f"row {number} of {path}", row) for number, row in enumerate(rows, start=1))
