"""Multi-label data sets as their makers lay them out: VOC, COCO, NUS-WIDE, tables of indicators, ChestX-ray14.

Nothing here asks whether an image exists; `fedmvp.data.opening` compares the lists with the disk.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedmvp.data.dataset import images_in, unknown_label
from fedmvp.data.layouts import spoken
from fedmvp.data.presets import Preset
from fedmvp.data.records import ImageCollection, ImageRecord
from fedmvp.errors import UserError

_NO_FINDING = "No Finding"


def read_voc(preset: Preset, folder: Path) -> ImageCollection:
    """Read PASCAL VOC: for each class and split a list of images with 1, 0 or -1.

    0 marks objects that are hard to see; they are there, so the image shows the class.
    """
    lists = (folder / preset.images).parent / "ImageSets" / "Main"
    names = [item.name for item in preset.classes]
    folders = [item.folder or item.name for item in preset.classes]
    records: list[ImageRecord] = []
    for split, stem in preset.splits.items():
        shown: dict[str, set[int]] = {line: set() for line in _words(lists / f"{stem}.txt")}
        for label, key in enumerate(folders):
            path = lists / f"{key}_{stem}.txt"
            for number, line in enumerate(_words(path), start=1):
                image, mark = [*line.split(), ""][:2]
                if image not in shown or mark not in {"1", "0", "-1"}:
                    raise _line(path, number, "is not an image of the list with 1, 0 or -1")
                if mark != "-1":
                    shown[image].add(label)
        records.extend(
            ImageRecord(folder / preset.images / f"{image}.jpg", tuple(sorted(labels)), split=split)
            for image, labels in shown.items()
        )
    return ImageCollection(tuple(records), tuple(names), folder, multi_label=True)


def read_coco(preset: Preset, folder: Path) -> ImageCollection:
    """Read COCO: one JSON file of instances a split; an image shows the categories that have an instance in it."""
    records: list[ImageRecord] = []
    classes: tuple[str, ...] | None = None
    for split, name in preset.splits.items():
        path = folder / name
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            categories = sorted((int(item["id"]), str(item["name"])) for item in content["categories"])
            positions = {number: at for at, (number, _) in enumerate(categories)}
            shown: dict[int, set[int]] = {int(item["id"]): set() for item in content["images"]}
            for item in content["annotations"]:
                shown[int(item["image_id"])].add(positions[int(item["category_id"])])
            files = {int(item["id"]): str(item["file_name"]) for item in content["images"]}
        except (ValueError, KeyError, TypeError) as failure:
            raise UserError(f"{path} is not a COCO file of instances", remedy="get the file again") from failure
        named = tuple(name for _, name in categories)
        if classes not in {None, named}:
            raise UserError(f"{path} has other categories than the first split", remedy="get the files again")
        classes = named
        images = folder / Path(name).stem.removeprefix("instances_")
        records.extend(
            ImageRecord(images / files[number], tuple(sorted(labels)), split=split) for number, labels in shown.items()
        )
    return ImageCollection(tuple(records), classes or (), folder, multi_label=True)


def read_nus_wide(preset: Preset, folder: Path) -> ImageCollection:
    """Read NUS-WIDE: a list of images a split, and for each concept a file with 0 or 1 for each of them."""
    concepts = list(_words(folder / preset.class_file))
    records: list[ImageRecord] = []
    for split, part in preset.splits.items():
        images = [line.replace("\\", "/") for line in _words(folder / "ImageList" / f"{part}Imagelist.txt")]
        shown: list[list[int]] = [[] for _ in images]
        for label, concept in enumerate(concepts):
            path = folder / "Groundtruth" / "TrainTestLabels" / f"Labels_{concept}_{part}.txt"
            marks = list(_words(path))
            if len(marks) != len(images) or set(marks) - {"0", "1"}:
                raise UserError(
                    f"{path} has {len(marks)} lines for {len(images)} images, or something else than 0 and 1",
                    remedy="get the file again",
                )
            for at, mark in enumerate(marks):
                if mark == "1":
                    shown[at].append(label)
        records.extend(
            ImageRecord(folder / preset.images / image, tuple(labels), split=split)
            for image, labels in zip(images, shown, strict=True)
        )
    return ImageCollection(tuple(records), tuple(spoken(name) for name in concepts), folder, multi_label=True)


def read_indicators(preset: Preset, folder: Path) -> ImageCollection:
    """Read CSV tables whose first column names an image and whose other columns hold 0 or 1 for a class each.

    With official splits there is one table a split; otherwise one a scene in `Labels`, with images in a folder of the
    table's name.
    """
    tables: list[tuple[Path, str | None, str]] = [
        (folder / name, split, "") for split, name in preset.splits.items()
    ] or [(path, None, path.stem) for path in sorted((folder / "Labels").glob("*.csv"))]
    records: list[ImageRecord] = []
    classes: tuple[str, ...] = ()
    for path, split, scene in tables:
        rows = _table(path)
        header = tuple(spoken(name) for name in next(rows)[1][1:])
        if classes and header != classes:
            raise UserError(f"{path} has other classes than the first table", remedy="get the file again")
        classes = header
        for number, (image, *marks) in rows:
            if len(marks) != len(classes) or set(marks) - {"0", "1"}:
                raise _line(path, number, f"is not an image with 0 or 1 for each of {len(classes)} classes")
            where = image if Path(image).suffix else f"{image}.jpg"
            labels = tuple(at for at, mark in enumerate(marks) if mark == "1")
            records.append(ImageRecord(folder / preset.images / scene / where, labels, split=split))
    return ImageCollection(tuple(records), classes, folder, multi_label=True)


def read_chest_xray(preset: Preset, folder: Path) -> ImageCollection:
    """Read ChestX-ray14: one table of findings and patients, a list of images a split, images in any subfolders."""
    path = next(iter(sorted(folder.glob("Data_Entry_2017*.csv"))), folder / "Data_Entry_2017.csv")
    names = tuple(item.name for item in preset.classes)
    positions = {item.folder or item.name: at for at, item in enumerate(preset.classes)}
    places = {image.name: image for image in images_in(folder)}
    split_of = {image: split for split, name in preset.splits.items() for image in _words(folder / name)}
    rows = _table(path)
    header = next(rows)[1]
    try:
        image_at, findings_at, patient_at = (
            header.index(name) for name in ("Image Index", "Finding Labels", "Patient ID")
        )
    except ValueError:
        raise UserError(
            f"{path} lacks one of the columns Image Index, Finding Labels, Patient ID", remedy=preset.obtain
        ) from None
    records: list[ImageRecord] = []
    for number, row in rows:
        image, patient = row[image_at], row[patient_at]
        found = [name for name in row[findings_at].split("|") if name != _NO_FINDING]
        for name in found:
            if name not in positions:
                raise unknown_label(name, positions, where=f"line {number} of {path}, column Finding Labels")
        if image not in split_of:
            raise _line(path, number, f"names {image}, which is in no list of a split")
        labels = tuple(sorted({positions[name] for name in found}))
        place = places.get(image, folder / preset.images / image)
        records.append(ImageRecord(place, labels, patient=patient, split=split_of[image]))
    return ImageCollection(tuple(records), names, folder, multi_label=True)


def _words(path: Path) -> Iterator[str]:
    """The lines of a list that say something."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as failure:
        raise UserError(f"list {path} cannot be read", remedy="complete the download") from failure
    return (line.strip() for line in text.splitlines() if line.strip())


def _table(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file with their lines, the header first."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as failure:
        raise UserError(f"table {path} cannot be read", remedy="complete the download") from failure
    if not rows:
        raise UserError(f"table {path} is empty", remedy="get the file again")
    return iter(rows)


def _line(path: Path, number: int, why: str) -> UserError:
    return UserError(f"line {number} of {path} {why}", remedy="get the file again")
