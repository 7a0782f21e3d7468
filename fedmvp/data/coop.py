"""The split files of the few-shot literature (`split_zhou_*.json`), and splits of the same kind where there is none.

A file holds for "train", "val" and "test" a list of [path below the image folder, label, class name].

A split that is made here takes the images of each class in the order of their paths, shuffles them by a generator
seeded with the public seed and the class's position, and cuts: the first `round(train * n)` are train, the next
`round(val * n)` val, the rest test, each part at least one image. It depends on file names, the seed and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedmvp.data.layouts import ClassList, spoken
from fedmvp.data.records import SPLITS, ImageCollection, ImageRecord
from fedmvp.errors import UserError
from fedmvp.study.documents import parse_json

SPLIT_SEED = 1


def read_split(path: Path, images: Path, classes: ClassList | None = None) -> ImageCollection:
    """Read a split file; whether its images exist is not looked at.

    Args:
        path: the JSON file.
        images: folder that its paths start from.
        classes: what the classes are called, in the order of the file's labels; None takes the file's names.

    Raises:
        UserError: not such a file, labels with gaps or two names, or classes that are not those given.
    """
    try:
        document = path.read_bytes()
    except OSError as failure:
        raise UserError(f"split file {path} cannot be read", remedy="correct the path") from failure
    content = parse_json(document, source=str(path))
    if set(content) != set(SPLITS):
        raise _damaged(path, f"holds {', '.join(sorted(content)) or 'nothing'} instead of train, val and test")
    records: list[ImageRecord] = []
    names: dict[int, str] = {}
    for split in SPLITS:
        for item in content[split]:
            where, label, name = _item(item, path, split)
            if names.setdefault(label, name) != name:
                raise _damaged(path, f"calls class {label} both '{names[label]}' and '{name}'")
            records.append(ImageRecord(images / where, (label,), split=split))
    if sorted(names) != list(range(len(names))):
        raise _damaged(path, "has labels with gaps")
    named = [names[label] for label in range(len(names))]
    if classes is not None:
        _require_same_classes(path, records, named, classes)
    return ImageCollection(tuple(records), classes.names if classes else tuple(spoken(name) for name in named), path)


def with_splits(
    collection: ImageCollection, images: Path, *, train: float, val: float, seed: int = SPLIT_SEED
) -> ImageCollection:
    """Return the collection split anew; images of several labels are dealt by their first.

    Args:
        collection: its splits are replaced.
        images: folder that paths are ordered below.
        train: share of each class, above 0.
        val: share of each class; 0 makes none.
        seed: public.

    Raises:
        UserError: a class with too few images to have one in each part.
    """
    wanted = {"train": train, "val": val, "test": 1.0 - train - val}
    return _dealt(collection, images, {name: share for name, share in wanted.items() if share > 1e-9}, seed)


def with_validation(
    collection: ImageCollection, images: Path, *, share: float, seed: int = SPLIT_SEED
) -> ImageCollection:
    """Return the collection with a share of each class's train images moved to val; as `with_splits` otherwise."""
    train = [at for at, record in enumerate(collection.records) if record.split == "train"]
    dealt = _dealt(collection.take(train), images, {"train": 1.0 - share, "val": share}, seed)
    records = list(collection.records)
    for at, record in zip(train, dealt.records, strict=True):
        records[at] = record
    return replace(collection, records=tuple(records))


def write_split(path: Path, collection: ImageCollection, images: Path) -> None:
    """Write a single-label collection with splits as a split file."""
    content: dict[str, list[list[Any]]] = {name: [] for name in SPLITS}
    for record in collection.records:
        label = record.labels[0]
        where = record.path.relative_to(images).as_posix()
        content[str(record.split)].append([where, label, collection.classes[label]])
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _dealt(collection: ImageCollection, images: Path, shares: Mapping[str, float], seed: int) -> ImageCollection:
    groups: dict[int, list[int]] = {}
    for at, record in enumerate(collection.records):
        groups.setdefault(record.labels[0] if record.labels else -1, []).append(at)
    records = list(collection.records)
    for label in sorted(groups):
        held = sorted(groups[label], key=lambda at: records[at].path.relative_to(images).as_posix())
        if len(held) < len(shares):
            name = collection.classes[label] if label >= 0 else "none"
            raise UserError(
                f"{collection.source}: class '{name}' has {len(held)} images, too few for {', '.join(shares)}",
                remedy="complete the download",
            )
        order = np.random.default_rng([seed, label + 1]).permutation(len(held))
        for split, part in _cut([held[at] for at in order], shares).items():
            for at in part:
                records[at] = replace(records[at], split=split)
    return replace(collection, records=tuple(records))


def _cut(items: list[int], shares: Mapping[str, float]) -> dict[str, list[int]]:
    """The items in consecutive parts of about these shares, each at least one long, the last with what remains."""
    parts: dict[str, list[int]] = {}
    start, names = 0, list(shares)
    for left, name in zip(range(len(names) - 1, -1, -1), names, strict=True):
        length = max(1, round(shares[name] * len(items))) if left else len(items)
        end = min(start + length, len(items) - left)
        parts[name] = items[start:end]
        start = end
    return parts


def _item(item: Any, path: Path, split: str) -> tuple[str, int, str]:
    """One entry; a path that leaves the image folder is refused."""
    match item:
        case [str() as where, int() as label, str() as name] if (
            not Path(where).is_absolute() and ".." not in Path(where).parts and label >= 0
        ):
            return where, label, name
        case _:
            raise _damaged(path, f"has an entry in {split} that is not [path, label, class name]")


def _require_same_classes(path: Path, records: list[ImageRecord], named: list[str], classes: ClassList) -> None:
    if len(named) != len(classes.names):
        raise _damaged(path, f"names {len(named)} classes instead of {len(classes.names)}")
    folders = {record.labels[0]: record.path.parent.name for record in records}
    for label, name in enumerate(named):
        expected = {_letters(classes.names[label]), _letters(classes.folders[label])}
        if not expected & {_letters(name), _letters(folders[label])}:
            raise _damaged(path, f"calls class {label} '{name}' instead of '{classes.names[label]}'")


def _letters(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum())


def _damaged(path: Path, why: str) -> UserError:
    return UserError(
        f"split file {path} {why}", remedy="get it again, or remove it: a split is then made from the files"
    )
