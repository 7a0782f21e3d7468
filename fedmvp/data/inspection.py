"""What would spoil a study, found before any training: unreadable images, patients in two splits, sites too small.

Each mistake is one message that names the file, the field and the remedy.
"""

from __future__ import annotations

from collections.abc import Callable

from fedmvp.data.dataset import empty_class
from fedmvp.data.partition import Partition
from fedmvp.data.records import ImageCollection
from fedmvp.errors import UserError

MIN_RECORDS = 10
"""Fewest images of a site by default: below, a site's delta of 1 / (10 n) already exceeds one in a hundred."""

MIN_CLASSES = 2
"""A site with one class has nothing to tell apart: its loss is zero whatever it trains."""

MAX_FILES_SHOWN = 8
_SMALL_SIDE_PIXELS = 8


def require_sound(collection: ImageCollection) -> None:
    """Refuse a collection that contradicts itself.

    Raises:
        UserError: a class without any image, a split that lacks a class which others have, or a patient in two splits.
    """
    counts = collection.label_matrix().sum(axis=0)
    for name, count in zip(collection.classes, counts, strict=True):
        if count == 0:
            raise empty_class(name, f"in {collection.source}")
    _require_classes_to_train(collection)
    splits: dict[str, tuple[str | None, int]] = {}
    for at, record in enumerate(collection.records):
        if record.patient is None:
            continue
        split, other = splits.setdefault(record.patient, (record.split, at))
        if split != record.split:
            raise UserError(
                f"{collection.source}, column patient: images {collection.records[other].path} (split {split}) and "
                f"{record.path} (split {record.split}) are of one patient",
                remedy="put all images of a patient into one split; split_by_patient deals them anew",
            )


def _require_classes_to_train(collection: ImageCollection) -> None:
    train = [record for record in collection.records if record.split == "train"]
    trained = {label for record in train for label in record.labels}
    for at, name in enumerate(collection.classes):
        if train and at not in trained:
            raise UserError(
                f"{collection.source}, column split: class '{name}' has no image in the split train",
                remedy="add images of it, or leave the class out of this study",
            )


def require_usable(
    partition: Partition,
    collection: ImageCollection,
    *,
    minimum_records: int = MIN_RECORDS,
    minimum_classes: int = MIN_CLASSES,
) -> None:
    """Refuse a partition with a site that cannot train.

    Args:
        partition: of the collection.
        collection: what was dealt.
        minimum_records: fewest images of a site.
        minimum_classes: fewest classes with an image at a site.

    Raises:
        UserError: a site below one of them.
    """
    for share in partition.shares:
        if len(share.indices) < minimum_records:
            raise UserError(
                f"{collection.source}: {share.name} has {len(share.indices)} images, fewer than the minimum of "
                f"{minimum_records} (partition by {partition.rule})",
                remedy="ask for fewer sites, a larger alpha or larger blocks, or leave the site out",
            )
        held = {label for index in share.indices for label in collection.records[index].labels}
        if len(held) < minimum_classes:
            named = ", ".join(f"'{collection.classes[label]}'" for label in sorted(held)) or "none"
            raise UserError(
                f"{collection.source}: {share.name} has images of {len(held)} of the classes ({named}), fewer than "
                f"the minimum of {minimum_classes} (partition by {partition.rule})",
                remedy="a site of one class learns nothing: choose larger blocks or another rule",
            )


def require_readable(collection: ImageCollection, *, progress: Callable[[int, int], None] | None = None) -> None:
    """Decode every image once.

    Args:
        collection: what is read.
        progress: called with (images done, images in all).

    Raises:
        UserError: the files that cannot be decoded, with the reason of the first.
    """
    from fedmvp.data.images import decode_image  # noqa: PLC0415 - loads torch

    broken: list[str] = []
    first: UserError | None = None
    for done, record in enumerate(collection.records, start=1):
        try:
            decode_image(record.path, _SMALL_SIDE_PIXELS)
        except UserError as mistake:
            first = first or mistake
            broken.append(str(record.path))
        if progress is not None:
            progress(done, len(collection))
    if first is not None:
        more = f"; {len(broken)} files in all: {', '.join(broken[:MAX_FILES_SHOWN])}" if len(broken) > 1 else ""
        raise UserError(f"{first.what}{more}{', ...' if len(broken) > MAX_FILES_SHOWN else ''}", remedy=first.remedy)
