"""Folders of images as data sets: class folders, domain/class folders, split/class folders.

The order of the classes is given by the caller, or is that of the sorted folder names. A class without images in one
of the folders is a mistake, and so is a folder that is no class.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmvp.data.dataset import IMAGE_SUFFIXES, empty_class, images_in, require_folder, unknown_label
from fedmvp.data.records import ImageCollection, ImageRecord, merge
from fedmvp.errors import UserError


@dataclass(frozen=True)
class ClassList:
    """The classes of a data set in their order.

    Attributes:
        names: what they are called, (n_classes,).
        folders: where they lie, (n_classes,); the names, unless the data set spells them otherwise.
    """

    names: tuple[str, ...]
    folders: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.names or len(self.names) != len(self.folders) or len(set(self.folders)) != len(self.folders):
            raise ValueError("one folder a class, every folder once")

    @classmethod
    def of(cls, names: Sequence[str], folders: Sequence[str] | None = None) -> ClassList:
        """Classes by name, in folders of the same name unless others are given.

        A class name is a folder name too (in manifests, policies and attribute files), so a hyphen stands for a slash.
        """
        return cls(tuple(name.replace("/", "-") for name in names), tuple(names if folders is None else folders))

    @classmethod
    def in_folder(cls, root: Path, *, ignored: Collection[str] = ()) -> ClassList:
        """The sorted subfolders as classes, underscores read as spaces.

        Raises:
            UserError: no such folder, or none below it.
        """
        folders = subfolders(root, ignored)
        if not folders:
            raise UserError(f"{root} holds no class folders", remedy="put the images of each class into its own folder")
        return cls(tuple(spoken(folder) for folder in folders), folders)


def spoken(folder: str) -> str:
    """A folder's name as words."""
    return " ".join(folder.replace("_", " ").split())


def subfolders(root: Path, ignored: Collection[str] = ()) -> tuple[str, ...]:
    """Names of the visible folders below `root`, sorted; UserError when it does not exist."""
    require_folder(root)
    names = (item.name for item in root.iterdir() if item.is_dir())
    return tuple(sorted(name for name in names if not name.startswith(".") and name not in ignored))


def class_folders(
    root: Path,
    classes: ClassList | None = None,
    *,
    ignored: Collection[str] = (),
    domain: str | None = None,
    split: str | None = None,
) -> ImageCollection:
    """Read `root/<class>/**/*`.

    Args:
        root: the folder.
        classes: the classes in their order; None takes the sorted subfolders.
        ignored: subfolders that are no part of the data set.
        domain: domain of all these images.
        split: split of all these images.

    Raises:
        UserError: no folder, a subfolder that is no class, or a class without images.
    """
    found = set(subfolders(root, ignored))
    classes = classes or ClassList.in_folder(root, ignored=ignored)
    for name in sorted(found - set(classes.folders)):
        raise unknown_label(name, classes.folders, where=f"folder {root / name}")
    records: list[ImageRecord] = []
    for label, (name, folder) in enumerate(zip(classes.names, classes.folders, strict=True)):
        files = images_in(root / folder) if folder in found else []
        if not files:
            raise empty_class(name, f"in {root / folder}; known types: {', '.join(sorted(IMAGE_SUFFIXES))}")
        records.extend(ImageRecord(file, (label,), domain=domain, split=split) for file in files)
    return ImageCollection(tuple(records), classes.names, root)


def domain_folders(
    root: Path,
    classes: ClassList | None = None,
    *,
    domains: Mapping[str, str] | None = None,
    ignored: Collection[str] = (),
) -> ImageCollection:
    """Read `root/<domain>/<class>/**/*`, as PACS is laid out.

    Args:
        root: the folder.
        classes: the classes in their order; None takes the sorted subfolders of the first domain.
        domains: names of the domains by folder, in their order; None takes the sorted folders.
        ignored: folders, of domains or classes, that are no part of the data set.

    Raises:
        UserError: a domain that is missing or unknown, or what `class_folders` refuses in one of them.
    """
    found = subfolders(root, ignored)
    domains = domains if domains is not None else {folder: folder for folder in found}
    if not domains:
        raise UserError(f"{root} holds no domain folders", remedy="put the classes of each domain into its own folder")
    for folder in domains:
        if folder not in found:
            raise UserError(
                f"domain folder {root / folder} does not exist", remedy="complete the download, or correct the path"
            )
    for folder in found:
        if folder not in domains:
            raise UserError(
                f"folder {root / folder} is no domain of this data set",
                remedy=f"the domains are: {', '.join(domains)}; move other folders away",
            )
    classes = classes or ClassList.in_folder(root / next(iter(domains)), ignored=ignored)
    parts = [class_folders(root / folder, classes, ignored=ignored, domain=name) for folder, name in domains.items()]
    return merge(parts, root)


def split_folders(
    root: Path, splits: Mapping[str, str], classes: ClassList | None = None, *, ignored: Collection[str] = ()
) -> ImageCollection:
    """Read `root/<split>/<class>/**/*`, as `train/` and `test/`.

    Args:
        root: the folder.
        splits: "train", "val", "test" by folder.
        classes: the classes in their order; None takes the sorted subfolders of the first split.
        ignored: class folders that are no part of the data set.

    Raises:
        UserError: what `class_folders` refuses in one of them.
    """
    require_folder(root)
    classes = classes or ClassList.in_folder(root / next(iter(splits)), ignored=ignored)
    parts = [class_folders(root / folder, classes, ignored=ignored, split=name) for folder, name in splits.items()]
    return merge(parts, root)
