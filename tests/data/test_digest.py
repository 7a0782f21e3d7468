from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fedmvp.data.dataset import ImageDataset, image_folder
from fedmvp.data.digest import dataset_digest
from fedmvp.errors import UserError
from tests.data.test_dataset import picture

CLASSES = ("cat", "dog")


@pytest.fixture
def dataset(tmp_path: Path) -> ImageDataset:
    for name in CLASSES:
        for number in range(2):
            path = picture(tmp_path / "images" / name / f"{number}.png")
            path.write_bytes(path.read_bytes() + f"{name}{number}".encode())
    return image_folder(tmp_path / "images", CLASSES)


def test_a_copy_in_another_folder_has_the_same_digest(dataset: ImageDataset, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "images", tmp_path / "copy")
    assert dataset_digest(image_folder(tmp_path / "copy", CLASSES), threads=1) == dataset_digest(dataset)
    assert len(dataset_digest(dataset)) == 32


def test_an_image_a_label_a_patient_or_an_order_that_differs_changes_the_digest(dataset: ImageDataset) -> None:
    others = [
        replace(dataset, labels=(0, 0, 0, 1)),
        replace(dataset, paths=dataset.paths[::-1]),
        replace(dataset, paths=dataset.paths[:3], labels=dataset.labels[:3]),
        replace(dataset, patients=("a", "a", "b", "b")),
        replace(dataset, patients=("a", "b", "b", "b")),
        replace(dataset, classes=CLASSES[::-1]),
    ]
    digests = {dataset_digest(one) for one in (dataset, *others)}
    dataset.paths[0].write_bytes(dataset.paths[0].read_bytes()[:-1] + b"!")
    digests.add(dataset_digest(dataset))
    assert len(digests) == len(others) + 2


def test_an_image_that_is_gone_is_named(dataset: ImageDataset) -> None:
    dataset.paths[1].unlink()
    with pytest.raises(UserError, match=r"1\.png does not exist"):
        dataset_digest(dataset)
