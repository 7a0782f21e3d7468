"""One frozen description of any data set: which files, what they show, and whose they are.

Every reader of `fedmvp.data` gives an :class:`ImageCollection`; everything after it (partitions, settings, training)
knows nothing of folders and tables. Labels are positions in an explicit list of classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fedmvp.data.dataset import ImageDataset
from fedmvp.errors import UserError

Split = Literal["train", "val", "test"]
SPLITS: tuple[str, ...] = get_args(Split)


@dataclass(frozen=True, slots=True, repr=False)
class ImageRecord:
    """One image.

    Attributes:
        path: its file.
        labels: positions in the collection's classes, ascending, none twice; exactly one in a single-label task.
        site: who holds it, where the data say so.
        patient: whom it is of, where the data say so.
        domain: the style or place it comes from, where the data have such.
        split: "train", "val" or "test", where the data are split.
    """

    path: Path
    labels: tuple[int, ...]
    site: str | None = None
    patient: str | None = None
    domain: str | None = None
    split: str | None = None

    def __repr__(self) -> str:
        return f"ImageRecord({len(self.labels)} labels)"


@dataclass(frozen=True, repr=False)
class ImageCollection:
    """The images of one data set.

    Attributes:
        records: the images in a fixed order.
        classes: class names in the classifier's order.
        source: the folder or table they were read from, for messages.
        multi_label: whether an image has a set of labels instead of exactly one.
    """

    records: tuple[ImageRecord, ...]
    classes: tuple[str, ...]
    source: Path
    multi_label: bool = False

    def __post_init__(self) -> None:
        if len(set(self.classes)) != len(self.classes):
            raise UserError(f"{self.source}: a class is listed twice", remedy="list every class once")
        seen: set[Path] = set()
        for record in self.records:
            if record.path in seen:
                raise UserError(
                    f"{self.source}: image {record.path} is listed twice",
                    remedy="list every image once; several labels of one image go into one entry",
                )
            seen.add(record.path)
            _require_labels(record, len(self.classes), self.multi_label, self.source)

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        return f"ImageCollection({self.source}, {len(self.classes)} classes)"

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains in the order of their first image."""
        return tuple(dict.fromkeys(record.domain for record in self.records if record.domain is not None))

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites in the order of their first image."""
        return tuple(dict.fromkeys(record.site for record in self.records if record.site is not None))

    def label_matrix(self) -> NDArray[np.uint8]:
        """Return 1 where an image shows a class; (n_images, n_classes)."""
        matrix = np.zeros((len(self.records), len(self.classes)), dtype=np.uint8)
        for row, record in enumerate(self.records):
            matrix[row, list(record.labels)] = 1
        return matrix

    def only(
        self, *, split: str | None = None, domains: Iterable[str] | None = None, site: str | None = None
    ) -> ImageCollection:
        """Return the records of a split, of some domains, of a site; the classes stay.

        Raises:
            UserError: nothing is left.
        """
        wanted = None if domains is None else set(domains)
        kept = tuple(
            record
            for record in self.records
            if (split is None or record.split == split)
            and (wanted is None or record.domain in wanted)
            and (site is None or record.site == site)
        )
        if not kept:
            asked = {"split": split, "domains": sorted(wanted) if wanted else None, "site": site}
            named = ", ".join(f"{name} {value}" for name, value in asked.items() if value is not None)
            raise UserError(
                f"{self.source}: no image of {named or 'it'}",
                remedy=f"domains there: {', '.join(self.domains) or 'none'}; sites: {', '.join(self.sites) or 'none'}",
            )
        return replace(self, records=kept)

    def of_classes(self, names: Sequence[str]) -> ImageCollection:
        """Return the collection over some classes, numbered in the order of `names`.

        Single-label images of other classes are left out. Multi-label images lose their other labels and stay.

        Raises:
            UserError: a name that is no class of the collection.
        """
        unknown = [name for name in names if name not in self.classes]
        if unknown:
            raise UserError(f"{self.source} has no class '{unknown[0]}'", remedy="choose among its classes")
        new = {self.classes.index(name): position for position, name in enumerate(names)}
        kept = (
            replace(record, labels=tuple(sorted(new[label] for label in record.labels if label in new)))
            for record in self.records
            if self.multi_label or record.labels[0] in new
        )
        return replace(self, records=tuple(kept), classes=tuple(names))

    def take(self, indices: Iterable[int]) -> ImageCollection:
        """Return the records at these positions, in this order."""
        return replace(self, records=tuple(self.records[index] for index in indices))

    def as_dataset(self) -> ImageDataset:
        """Return the single-label form that a site trains on.

        Raises:
            UserError: the collection is multi-label, or only some images name a patient.
        """
        if self.multi_label:
            raise UserError(f"{self.source} has several labels an image", remedy="use a multi-label task")
        patients = tuple(record.patient for record in self.records if record.patient is not None)
        if patients and len(patients) != len(self.records):
            raise UserError(f"{self.source}: some images have no patient", remedy="name the patient of every image")
        return ImageDataset(
            paths=tuple(record.path for record in self.records),
            labels=tuple(record.labels[0] for record in self.records),
            classes=self.classes,
            source=self.source,
            patients=patients or None,
        )


def merge(collections: Sequence[ImageCollection], source: Path) -> ImageCollection:
    """Join collections of the same classes in one order.

    Raises:
        UserError: their classes or their kinds differ.
    """
    first = collections[0]
    for other in collections[1:]:
        if (other.classes, other.multi_label) != (first.classes, first.multi_label):
            raise UserError(
                f"{other.source} and {first.source} do not have the same classes in the same order",
                remedy="give both the same list of classes",
            )
    records = tuple(record for collection in collections for record in collection.records)
    return ImageCollection(records, first.classes, source, first.multi_label)


def _require_labels(record: ImageRecord, n_classes: int, multi_label: bool, source: Path) -> None:
    if list(record.labels) != sorted(set(record.labels)) or any(not 0 <= at < n_classes for at in record.labels):
        raise ValueError("labels are ascending positions in the list of classes")
    if not multi_label and len(record.labels) != 1:
        raise UserError(
            f"{source}: image {record.path} has {len(record.labels)} labels in a single-label data set",
            remedy="give it exactly one label, or read the data as multi-label",
        )
    if record.split is not None and record.split not in SPLITS:
        raise UserError(
            f"{source}: image {record.path} has the split '{record.split}'", remedy=f"use {', '.join(SPLITS)}"
        )
