from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedmvp.data.inspection import require_readable, require_sound, require_usable
from fedmvp.data.layouts import class_folders
from fedmvp.data.partition import by_class_blocks, by_domain, by_site
from fedmvp.data.partition_picture import COLOURS, draw_partition, label_counts
from fedmvp.data.records import ImageCollection, ImageRecord
from fedmvp.errors import UserError
from tests.data.drawings import draw_classes


def collection(*records: ImageRecord, classes: tuple[str, ...] = ("cat", "dog")) -> ImageCollection:
    return ImageCollection(records, classes, Path("list.csv"))


def record(name: str, label: int, **columns: str) -> ImageRecord:
    return ImageRecord(Path(name), (label,), **columns)


def test_what_is_in_order_passes() -> None:
    require_sound(collection(record("a", 0, patient="p", split="train"), record("b", 1, patient="p", split="train")))


def test_a_class_without_an_image_is_named() -> None:
    with pytest.raises(UserError, match=r"class 'dog' of the study has no images in list\.csv"):
        require_sound(collection(record("a", 0)))


def test_a_class_that_is_only_tested_is_named() -> None:
    with pytest.raises(UserError, match=r"list.csv, column split: class 'dog' has no image in the split train"):
        require_sound(collection(record("a", 0, split="train"), record("b", 1, split="test")))


def test_a_patient_in_two_splits_is_refused_by_the_files_and_not_by_name() -> None:
    spoiled = collection(
        record("a", 0, patient="Ada", split="train"),
        record("b", 1, patient="Bob", split="train"),
        record("c", 1, patient="Ada", split="test"),
    )
    with pytest.raises(UserError, match=r"column patient: images a \(split train\) and c \(split test\)") as caught:
        require_sound(spoiled)
    assert "Ada" not in caught.value.what
    assert "one split" in caught.value.remedy


def test_a_site_with_one_class_is_named() -> None:
    whole = collection(*(record(f"{at}", at % 3) for at in range(60)), classes=("cat", "dog", "owl"))
    with pytest.raises(UserError, match="site-2 has images of 1 of the classes \\('owl'\\)"):
        require_usable(by_class_blocks(whole, classes_per_site=2), whole)
    require_usable(by_class_blocks(whole, classes_per_site=3), whole)


def test_a_site_below_the_minimum_is_named() -> None:
    records = [record(f"{at}", at % 2, site="north" if at < 20 else "south") for at in range(24)]
    whole = collection(*records)
    with pytest.raises(UserError, match="south has 4 images, fewer than the minimum of 10"):
        require_usable(by_site(whole), whole)
    require_usable(by_site(whole), whole, minimum_records=4)


def test_images_that_cannot_be_decoded_are_all_named(tmp_path: Path) -> None:
    whole = class_folders(draw_classes(tmp_path, ("cat", "dog")))
    done: list[int] = []
    require_readable(whole, progress=lambda images, _total: done.append(images))
    assert done == [1, 2, 3, 4, 5, 6]
    (tmp_path / "cat" / "1.png").write_text("no image")
    (tmp_path / "dog" / "2.png").write_bytes((tmp_path / "dog" / "2.png").read_bytes()[:40])
    with pytest.raises(UserError, match=r"cat.1.png cannot be decoded .*; 2 files in all: .*1.png, .*dog.2.png"):
        require_readable(whole)


@pytest.mark.parametrize("n_classes", [3, len(COLOURS) + 5])
def test_the_picture_has_a_bar_for_every_site_and_a_colour_for_every_class(tmp_path: Path, n_classes: int) -> None:
    pytest.importorskip("matplotlib")
    records = [record(f"{at}", at % n_classes, domain=f"d{at % 4}") for at in range(20 * n_classes)]
    whole = collection(*records, classes=tuple(f"class {at}" for at in range(n_classes)))
    partition = by_domain(whole)
    draw_partition(partition, whole, tmp_path / "picture.png")
    pixels = np.asarray(Image.open(tmp_path / "picture.png").convert("RGB")).reshape(-1, 3)
    if n_classes <= len(COLOURS):
        shown = {tuple(int(value) for value in colour) for colour in np.unique(pixels, axis=0)}
        for colour in COLOURS[:n_classes]:
            assert tuple(bytes.fromhex(colour[1:])) in shown
    else:
        assert len(np.unique(pixels, axis=0)) > n_classes
    counts = label_counts(partition, whole)
    assert counts.shape == (4, n_classes)
    assert counts.sum() == len(whole)


def test_an_image_of_several_labels_counts_for_each(tmp_path: Path) -> None:
    both = ImageRecord(Path("a"), (0, 1), domain="ct")
    whole = replace(collection(replace(both, labels=(0,))), records=(both,), multi_label=True)
    assert label_counts(by_domain(whole), whole).tolist() == [[1, 1]]
