"""Which images a site has and what they show: an image folder or a CSV manifest, checked before anything is computed.

Labels are positions in the class list of the study, so every site and the server number classes alike. Every mistake
in the files is one message that names the file and what to do.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmvp.errors import UserError

DICOM_SUFFIXES = frozenset({".dcm", ".dicom"})
IMAGE_SUFFIXES = DICOM_SUFFIXES | {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
_MANIFEST_COLUMNS = ("image", "label")
_PATIENT_COLUMN = "patient"


@dataclass(frozen=True)
class ImageDataset:
    """Images on disk with their labels.

    Attributes:
        paths: one file an image, (n,).
        labels: positions in `classes`, (n,).
        classes: class names in the order of the study.
        source: the folder or the manifest, for messages.
        patients: whom each image is of, (n,), or None where the manifest does not say.
    """

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    source: Path
    patients: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        return f"ImageDataset({self.source}, {len(self.classes)} classes)"


def image_folder(path: Path, classes: Sequence[str], *, require_every_class: bool = True) -> ImageDataset:
    """Read `path/<class name>/*`.

    Args:
        path: the folder.
        classes: class names of the study, in its order.
        require_every_class: refuse a class without images; a site that holds some of the classes says False.

    Raises:
        UserError: no folder, a folder that is no class of the study, a class without images, or no image at all.
    """
    require_folder(path)
    folders = sorted(item.name for item in path.iterdir() if item.is_dir() and not item.name.startswith("."))
    for name in folders:
        if name not in classes:
            raise unknown_label(name, classes, where=f"folder {path / name}")
    found: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        files = images_in(path / name) if name in folders else []
        if not files and (require_every_class or name in folders):
            raise empty_class(name, f"in {path / name}")
        found.extend((file, label) for file in files)
    _require_images(found, path)
    return ImageDataset(
        tuple(file for file, _ in found), tuple(label for _, label in found), tuple(classes), source=path
    )


def manifest(path: Path, classes: Sequence[str], *, require_every_class: bool = True) -> ImageDataset:
    """Read a CSV file with the columns `image`, `label` and optionally `patient`; images are relative to the file.

    Args:
        path: the CSV file, UTF-8.
        classes: class names of the study, in its order.
        require_every_class: as in `image_folder`.

    Raises:
        UserError: no file, a missing column, a missing image, an unknown label, a class without images, or no row.
    """
    rows = _read_rows(path)
    by_name = {name: position for position, name in enumerate(classes)}
    paths: list[Path] = []
    labels: list[int] = []
    patients: list[str] = []
    for line, row in rows:
        where = f"line {line} of {path}"
        label = (row["label"] or "").strip()
        if label not in by_name:
            raise unknown_label(label, classes, where=where)
        image = path.parent / (row["image"] or "").strip()
        if not image.is_file():
            raise UserError(f"{where}: image {image} does not exist", remedy="correct the path, or remove the line")
        paths.append(image)
        labels.append(by_name[label])
        if row.get(_PATIENT_COLUMN) is not None:
            patients.append((row[_PATIENT_COLUMN] or "").strip())
    _require_images(paths, path)
    if require_every_class:
        for name in classes:
            if by_name[name] not in set(labels):
                raise empty_class(name, f"in {path}")
    if patients and (len(patients) != len(paths) or not all(patients)):
        raise UserError(
            f"{path}: some rows have no patient", remedy="fill the column patient in every row, or remove it"
        )
    return ImageDataset(tuple(paths), tuple(labels), tuple(classes), path, tuple(patients) or None)


def _read_rows(path: Path) -> list[tuple[int, dict[str, str | None]]]:
    if not path.is_file():
        raise UserError(f"manifest {path} does not exist", remedy="correct [data] path")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in _MANIFEST_COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise UserError(
                    f"manifest {path} has no column {' and no column '.join(missing)}",
                    remedy="begin it with the line: image,label",
                )
            return [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as failure:
        raise UserError(
            f"manifest {path} is not a UTF-8 CSV file: {failure}", remedy="save it as CSV UTF-8"
        ) from failure


def require_folder(path: Path) -> None:
    """Refuse a data folder that is not there; UserError."""
    if not path.is_dir():
        raise UserError(
            f"image folder {path} does not exist",
            remedy="correct [data] path; it holds one folder of images for each class",
        )


def images_in(folder: Path) -> list[Path]:
    """Return the image files anywhere below a folder in the order of their paths: by suffix, without hidden ones."""
    return sorted(
        item
        for item in folder.rglob("*")
        if item.suffix.lower() in IMAGE_SUFFIXES and not item.name.startswith(".") and item.is_file()
    )


def _require_images(found: Sequence[object], path: Path) -> None:
    if not found:
        raise UserError(
            f"{path} holds no images", remedy=f"put images there; known types: {', '.join(sorted(IMAGE_SUFFIXES))}"
        )


def empty_class(name: str, where: str) -> UserError:
    """The mistake of a class without images; `where` is the end of the sentence."""
    return UserError(
        f"class '{name}' of the study has no images {where}",
        remedy="add images of it, or ask the consortium to remove the class from [task]",
    )


def unknown_label(label: str, classes: Iterable[str], *, where: str) -> UserError:
    """The mistake of a label that is no class, with the nearest class; `where` is the start of the sentence."""
    names = list(classes)
    near = difflib.get_close_matches(label, names, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return UserError(f"{where}: '{label}' is no class of this study", remedy=f"{hint}the classes are: {shown}")
