"""From a preset and a folder to a collection: what must be there, what is there, and the difference file by file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fedmvp.data.coop import read_split, with_splits, with_validation
from fedmvp.data.dataset import images_in
from fedmvp.data.layouts import ClassList, class_folders, domain_folders, split_folders, subfolders
from fedmvp.data.listings import beside, read_cars, read_class_file, read_flowers, read_listed
from fedmvp.data.multilabel import read_chest_xray, read_coco, read_indicators, read_nus_wide, read_voc
from fedmvp.data.presets import Preset
from fedmvp.data.records import ImageCollection
from fedmvp.errors import UserError

MAX_FILES_SHOWN = 5


@dataclass(frozen=True)
class Part:
    """A split or a domain of a data set, or all of it, compared with what it should be.

    Attributes:
        name: which.
        expected: images it must have, or None where nobody says.
        listed: images that the data set's folders or lists name.
        missing: of those, the files that do not exist.
    """

    name: str
    expected: int | None
    listed: int
    missing: tuple[Path, ...]

    @property
    def found(self) -> int:
        """Images that are there."""
        return self.listed - len(self.missing)

    @property
    def complete(self) -> bool:
        """Whether exactly the expected images are there."""
        return not self.missing and (self.expected is None or self.expected == self.listed)


@dataclass(frozen=True)
class Survey:
    """A data set as it lies on disk.

    Attributes:
        collection: what it lists.
        parts: how complete it is.
        unexpected: images on disk that it does not list.
    """

    collection: ImageCollection
    parts: tuple[Part, ...]
    unexpected: tuple[Path, ...]


def open_preset(preset: Preset, folder: Path, *, allow_incomplete: bool = False) -> ImageCollection:
    """Read a data set by its preset.

    Args:
        preset: what it is.
        folder: where it lies.
        allow_incomplete: use the images that are there, whatever is missing.

    Raises:
        UserError: a file or folder that must be there is not, images are missing or too many, or what the layout's
            reader refuses.
    """
    survey = survey_preset(preset, folder)
    wrong = [part for part in survey.parts if not part.complete]
    if wrong and not allow_incomplete:
        shown = [str(path) for part in wrong for path in part.missing][:MAX_FILES_SHOWN]
        files = f"; missing are {', '.join(shown)}{', ...' if len(shown) == MAX_FILES_SHOWN else ''}" if shown else ""
        counts = "; ".join(f"{part.name} has {part.found} of {part.expected or part.listed} images" for part in wrong)
        raise UserError(
            f"data set {preset.name} in {folder} is not what it should be: {counts}{files}",
            remedy=f"{preset.obtain}; to use what is there, pass --allow-incomplete",
        )
    missing = {path for part in survey.parts for path in part.missing}
    present = (record for record in survey.collection.records if record.path not in missing)
    return replace(survey.collection, records=tuple(present))


def survey_preset(preset: Preset, folder: Path) -> Survey:
    """Read a data set's lists and compare them with the disk and with the preset.

    Raises:
        UserError: a file or folder that must be there is not, or what the layout's reader refuses.
    """
    _require_needs(preset, folder)
    collection, official = _read(preset, folder)
    if len(collection.classes) != preset.n_classes:
        raise UserError(
            f"data set {preset.name} in {folder} has {len(collection.classes)} classes instead of {preset.n_classes}",
            remedy=preset.obtain,
        )
    root = folder / preset.images
    found, listed = set(images_in(root)), {record.path for record in collection.records}
    unexpected = sorted(path for path in found - listed if not set(path.relative_to(root).parts) & set(preset.ignored))
    missing = {
        path for path in listed - found if not path.is_file()
    }  # a linked folder is not searched, but may be listed
    return Survey(collection, _parts(preset, collection, missing, official), tuple(unexpected))


def _require_needs(preset: Preset, folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"data folder {folder} of {preset.name} does not exist", remedy=preset.obtain)
    needs = [*preset.needs, *([preset.images] if preset.images else [])]
    if preset.split_file and (folder / preset.split_file).is_file():
        needs = [preset.images] if preset.images else []
    missing = [
        name for name in needs if not any(folder.glob(name)) and not beside(folder, preset.images, name).exists()
    ]
    if missing:
        raise UserError(
            f"data set {preset.name} in {folder} lacks {len(missing)} of {len(needs)} files and folders: "
            f"{', '.join(missing)}",
            remedy=preset.obtain,
        )


def _read(preset: Preset, folder: Path) -> tuple[ImageCollection, bool]:
    """The collection, and whether its splits are the published ones."""
    split_file = folder / preset.split_file
    if preset.split_file and split_file.is_file():
        return read_split(split_file, folder / preset.images, preset.class_list), True
    collection = _READERS[preset.layout](preset, folder)
    if preset.fractions:
        train, val = preset.fractions
        return with_splits(collection, folder, train=train, val=val), False
    if preset.val_from_train:
        return with_validation(collection, folder, share=preset.val_from_train), False
    return collection, True


def _parts(preset: Preset, collection: ImageCollection, missing: set[Path], official: bool) -> tuple[Part, ...]:
    if preset.domains:
        expected = {domain.name: domain.images for domain in preset.domains}
        place = {record.path: str(record.domain) for record in collection.records}
    elif official and preset.expected and "all" not in preset.expected:
        expected = dict(preset.expected)
        place = {record.path: str(record.split) for record in collection.records}
    else:
        expected = {"all": sum(preset.expected.values())} if preset.expected else {}
        place = {record.path: "all" for record in collection.records}
    counts = Counter(place.values())
    return tuple(
        Part(
            name,
            expected.get(name),
            counts[name],
            tuple(sorted(path for path in missing if place[path] == name)),
        )
        for name in dict.fromkeys([*expected, *counts])
    )


def _class_folders(preset: Preset, folder: Path) -> ImageCollection:
    root = folder / preset.images
    split = next(iter(preset.splits), None)
    return class_folders(root, _classes(preset, folder, root), ignored=preset.ignored, split=split)


def _split_folders(preset: Preset, folder: Path) -> ImageCollection:
    root = folder / preset.images
    splits = {name: split for split, name in preset.splits.items()}
    first = root / next(iter(splits))
    return split_folders(root, splits, _classes(preset, folder, first), ignored=preset.ignored)


def _domain_folders(preset: Preset, folder: Path) -> ImageCollection:
    domains = {domain.folder: domain.name for domain in preset.domains}
    return domain_folders(folder / preset.images, preset.class_list, domains=domains, ignored=preset.ignored)


def _classes(preset: Preset, folder: Path, root: Path) -> ClassList | None:
    """The classes of folders: those of the preset, of the class file, or (None) of the folders themselves."""
    if preset.class_list is not None or not preset.class_file:
        return preset.class_list
    named = read_class_file(preset, folder)
    if not preset.subset:
        return named
    present = set(subfolders(root, preset.ignored))
    kept = [at for at, key in enumerate(named.folders) if key in present]
    return ClassList.of([named.names[at] for at in kept], [named.folders[at] for at in kept])


_READERS: dict[str, Callable[[Preset, Path], ImageCollection]] = {
    "class-folders": _class_folders,
    "split-folders": _split_folders,
    "domain-folders": _domain_folders,
    "listed": read_listed,
    "flowers": read_flowers,
    "cars": read_cars,
    "voc": read_voc,
    "coco": read_coco,
    "nus-wide": read_nus_wide,
    "indicator-tables": read_indicators,
    "chest-xray": read_chest_xray,
}
