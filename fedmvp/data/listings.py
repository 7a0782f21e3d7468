"""Single-label data sets that name their images in lists: text files with one image a line, or MATLAB tables.

Nothing here asks whether an image exists; `fedmvp.data.opening` compares the lists with the disk.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fedmvp.data.dataset import unknown_label
from fedmvp.data.layouts import ClassList, spoken
from fedmvp.data.presets import Preset
from fedmvp.data.records import ImageCollection, ImageRecord
from fedmvp.errors import UserError

Entry = tuple[str, str]
"""Path below the image folder, and the key of the class."""


def read_listed(preset: Preset, folder: Path) -> ImageCollection:
    """Read the lists of a preset whose layout is "listed".

    Raises:
        UserError: a line that cannot be read, or a class that the data set does not have.
    """
    lists = list(_lists(preset, folder))
    parse = LINES[preset.list_lines]
    classes = preset.class_list or (
        read_class_file(preset, folder) if preset.class_file else _numbered_in_lists([path for path, _, _ in lists])
    )
    positions = {key: position for position, key in enumerate(classes.folders)}
    records: list[ImageRecord] = []
    for path, split, domain in lists:
        for number, line in _lines(path):
            where, key = _parsed(parse, line, path, number)
            if key not in positions:
                raise unknown_label(key, classes.folders, where=f"line {number} of {path}")
            image = folder / preset.images / where
            records.append(ImageRecord(image, (positions[key],), split=split, domain=domain))
    return ImageCollection(tuple(records), classes.names, folder)


def read_class_file(preset: Preset, folder: Path) -> ClassList:
    """Read the classes of a data set from its own file, in the order of its lines.

    Raises:
        UserError: a line that cannot be read, or a number of classes that is not the preset's.
    """
    path = beside(folder, preset.images, preset.class_file)
    keys: list[str] = []
    names: list[str] = []
    for number, line in _lines(path):
        key, name = _parsed(CLASS_LINES[preset.class_lines], line, path, number)
        keys.append(str(len(keys)) if preset.class_lines == "numbered" else key)
        names.append(name)
    if not preset.subset and len(keys) != preset.n_classes:
        raise UserError(f"{path} names {len(keys)} classes instead of {preset.n_classes}", remedy=preset.obtain)
    return ClassList.of(_told_apart(names, keys), keys)


def beside(folder: Path, images: str, name: str) -> Path:
    """A file of the data set: in its folder, or in its image folder, where some archives put it."""
    return next((path for path in (folder / name, folder / images / name) if path.exists()), folder / name)


def read_flowers(preset: Preset, folder: Path) -> ImageCollection:
    """Read Flowers102 without a split file: `imagelabels.mat` and the names in `cat_to_name.json`."""
    names = json.loads((folder / "cat_to_name.json").read_text(encoding="utf-8"))
    labels = _matlab(folder / "imagelabels.mat")["labels"].ravel().astype(int)
    classes = tuple(str(names[str(number)]) for number in range(1, preset.n_classes + 1))
    records = tuple(
        ImageRecord(folder / preset.images / f"image_{number:05d}.jpg", (int(label) - 1,))
        for number, label in enumerate(labels, start=1)
    )
    return ImageCollection(records, classes, folder)


def read_cars(preset: Preset, folder: Path) -> ImageCollection:
    """Read StanfordCars without a split file: the tables of its development kit."""
    meta = _matlab(folder / "devkit" / "cars_meta.mat")["class_names"].ravel()
    classes = tuple(_year_first(str(name.item())) for name in meta)
    tables = {"train": ("cars_train", "devkit/cars_train_annos.mat"), "test": ("cars_test", preset.splits["test"])}
    records = [
        ImageRecord(folder / images / str(row["fname"].item()), (int(row["class"].item()) - 1,), split=split)
        for split, (images, table) in tables.items()
        for row in _matlab(folder / table)["annotations"].ravel()
    ]
    return ImageCollection(tuple(records), classes, folder)


def _lists(preset: Preset, folder: Path) -> Iterator[tuple[Path, str, str | None]]:
    for split, name in preset.splits.items():
        for domain in preset.domains or (None,):
            file = name.format(domain=domain.folder) if domain is not None else name
            yield beside(folder, preset.images, file), split, domain.name if domain is not None else None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a list with their numbers, without empty ones and comments."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as failure:
        raise UserError(f"list {path} cannot be read", remedy="complete the download") from failure
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.startswith("#"):
            yield number, line.strip()


def _parsed(parse: Callable[[str], Entry], line: str, path: Path, number: int) -> Entry:
    try:
        return parse(line)
    except (ValueError, IndexError):
        raise UserError(
            f"line {number} of {path} is not as this data set writes it", remedy="get the file again"
        ) from None


def _numbered_in_lists(lists: list[Path]) -> ClassList:
    """Classes of lists whose lines end in the label's number, named by the image's folder."""
    keys: dict[int, str] = {}
    for path in lists:
        for number, line in _lines(path):
            _, key = _parsed(_domainnet, line, path, number)
            if keys.setdefault(label := int(line.split()[-1]), key) != key:
                raise UserError(
                    f"line {number} of {path} calls class {label} '{key}', another line '{keys[label]}'",
                    remedy="get the file again",
                )
    ordered = [keys[label] for label in sorted(keys)]
    return ClassList.of([spoken(key) for key in ordered], ordered)


def _told_apart(names: list[str], keys: list[str]) -> list[str]:
    """Two classes of one name (ImageNet has cranes that fly and cranes that lift) are told apart by their keys."""
    return [name if names.count(name) == 1 else f"{name} {key}" for name, key in zip(names, keys, strict=True)]


def _aircraft(line: str) -> Entry:
    stem, name = line.split(" ", 1)
    return f"{stem}.jpg", name.strip()


def _pets(line: str) -> Entry:
    stem = line.split(maxsplit=1)[0]
    return f"{stem}.jpg", stem[: stem.rindex("_")]


def _sun397(line: str) -> Entry:
    where = line.lstrip("/")
    return where, f"/{where[: where.rindex('/')]}"


def _ucf101(line: str) -> Entry:
    action, video = line.split(maxsplit=1)[0].split("/")
    return f"{'_'.join(_capitals(action))}/{video.removesuffix('.avi')}.jpg", action


def _domainnet(line: str) -> Entry:
    where, _ = line.rsplit(" ", 1)
    return where, where.split("/")[1]


def _capitals(name: str) -> list[str]:
    """ApplyEyeMakeup as three words."""
    return re.findall("[A-Z][^A-Z]*", name)


def _folder_and_name(line: str) -> Entry:
    folder, name = line.split(" ", 1)
    return folder, name.strip()


def _sun_class(line: str) -> Entry:
    parts = line.strip("/").split("/")[1:]
    return line, spoken(" ".join(reversed(parts)))


def _ucf_class(line: str) -> Entry:
    _, action = line.split()
    return action, " ".join(_capitals(action))


def _year_first(name: str) -> str:
    """A car's name with its year in front: "Audi TT 2011" becomes "2011 Audi TT"."""
    model, _, year = name.rpartition(" ")
    return f"{year} {model}" if year.isdecimal() and len(year) == 4 else name


def _matlab(path: Path) -> Any:
    from scipy.io import loadmat  # type: ignore[import-untyped]  # noqa: PLC0415 - a second to import, for two data sets

    try:
        return loadmat(path)
    except Exception as failure:
        raise UserError(f"{path} is not a MATLAB table", remedy="get the file again") from failure


LINES: dict[str, Callable[[str], Entry]] = {
    "aircraft": _aircraft,
    "pets": _pets,
    "sun397": _sun397,
    "ucf101": _ucf101,
    "domainnet": _domainnet,
}
CLASS_LINES: dict[str, Callable[[str], Entry]] = {
    "name": lambda line: (line, spoken(line)),
    "folder-name": _folder_and_name,
    "numbered": _folder_and_name,
    "sun397": _sun_class,
    "ucf101": _ucf_class,
}
