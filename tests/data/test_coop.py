from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmvp.data.coop import read_split, with_splits, with_validation, write_split
from fedmvp.data.layouts import ClassList, class_folders
from fedmvp.data.opening import open_preset
from fedmvp.data.records import ImageCollection, ImageRecord
from fedmvp.errors import UserError
from tests.data.drawings import draw_classes
from tests.data.miniatures import few_shot

GOOD: dict[str, list[Any]] = {
    "train": [["River/1.jpg", 0, "River"], ["Forest/1.jpg", 1, "Forest"]],
    "val": [["River/2.jpg", 0, "River"]],
    "test": [["Forest/2.jpg", 1, "Forest"]],
}


def written(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_split_file_gives_paths_labels_and_splits(tmp_path: Path) -> None:
    read = read_split(written(tmp_path / "split.json", GOOD), tmp_path / "images")
    assert read.classes == ("River", "Forest")
    assert [(record.split, record.labels[0]) for record in read.records] == [
        ("train", 0),
        ("train", 1),
        ("val", 0),
        ("test", 1),
    ]
    assert read.records[0].path == tmp_path / "images" / "River" / "1.jpg"


def test_the_classes_may_be_called_otherwise_but_not_be_others(tmp_path: Path) -> None:
    path = written(tmp_path / "split.json", GOOD)
    classes = ClassList.of(("a river", "woods"), ("River", "Forest"))
    assert read_split(path, tmp_path, classes).classes == ("a river", "woods")
    with pytest.raises(UserError, match="calls class 0 'River' instead of 'woods'"):
        read_split(path, tmp_path, ClassList.of(("woods", "a river"), ("Forest", "River")))
    with pytest.raises(UserError, match="names 2 classes instead of 3"):
        read_split(path, tmp_path, ClassList.of(("a", "b", "c")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val": [["River/2.jpg", 0, "Brook"]]}, "calls class 0 both 'River' and 'Brook'"),
        ({"val": [["River/2.jpg", 5, "Brook"]]}, "has labels with gaps"),
        ({"val": [["../../secret.jpg", 0, "River"]]}, "has an entry in val that is not"),
        ({"val": [["River/2.jpg", "0", "River"]]}, "has an entry in val that is not"),
        ({"dev": []}, "instead of train, val and test"),
    ],
)
def test_a_damaged_split_file_is_told(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = written(tmp_path / "split.json", {**GOOD, **change})
    with pytest.raises(UserError, match=message):
        read_split(path, tmp_path)


def test_a_split_file_that_is_there_is_followed(tmp_path: Path) -> None:
    preset = few_shot(tmp_path)
    made = open_preset(preset, tmp_path)
    write_split(tmp_path / preset.split_file, made, tmp_path / preset.images)
    assert read_split(tmp_path / preset.split_file, tmp_path / preset.images).classes == made.classes
    content = json.loads((tmp_path / preset.split_file).read_text())
    content["train"], content["test"] = content["test"], content["train"]
    written(tmp_path / preset.split_file, content)
    followed = open_preset(preset, tmp_path)
    assert {r.path: r.split for r in followed.records} != {r.path: r.split for r in made.records}
    assert len(followed.only(split="test")) == len(made.only(split="train"))


@given(st.lists(st.integers(3, 40), min_size=1, max_size=4), st.integers(0, 2**32))
def test_every_class_is_in_every_part_in_about_its_share(sizes: list[int], seed: int) -> None:
    root = Path("root")
    records = [
        ImageRecord(root / f"{label}" / f"{at:03d}.jpg", (label,))
        for label, size in enumerate(sizes)
        for at in range(size)
    ]
    whole = ImageCollection(tuple(records), tuple(f"class {at}" for at in range(len(sizes))), root)
    split = with_splits(whole, root, train=0.5, val=0.2, seed=seed)
    for label, size in enumerate(sizes):
        parts = [record.split for record in split.records if record.labels == (label,)]
        assert abs(parts.count("train") - 0.5 * size) <= 1
        assert abs(parts.count("val") - 0.2 * size) <= 1
        assert parts.count("test") >= 1
    turned = ImageCollection(whole.records[::-1], whole.classes, root)
    again = with_splits(turned, root, train=0.5, val=0.2, seed=seed)
    assert {r.path: r.split for r in again.records} == {r.path: r.split for r in split.records}


def test_another_seed_gives_another_split_and_another_folder_the_same(tmp_path: Path) -> None:
    for place in ("here", "there"):
        draw_classes(tmp_path / place, ("cat", "dog"), images=20)

    def split(place: str, seed: int) -> list[str | None]:
        root = tmp_path / place
        return [
            record.split for record in with_splits(class_folders(root), root, train=0.5, val=0.2, seed=seed).records
        ]

    assert split("here", 1) == split("there", 1) != split("here", 2)


def test_validation_images_come_out_of_train_only(tmp_path: Path) -> None:
    root = draw_classes(tmp_path, ("cat", "dog"), images=10)
    read = with_splits(class_folders(root), root, train=0.8, val=0.0)
    moved = with_validation(read, root, share=0.25)
    pairs = [(old.split, new.split) for old, new in zip(read.records, moved.records, strict=True)]
    assert set(pairs) == {("train", "train"), ("train", "val"), ("test", "test")}
    assert pairs.count(("train", "val")) == 4


def test_a_class_with_too_few_images_is_named(tmp_path: Path) -> None:
    root = draw_classes(tmp_path, ("cat",), images=2)
    with pytest.raises(UserError, match="class 'cat' has 2 images, too few for train, val, test"):
        with_splits(class_folders(root), root, train=0.5, val=0.2)
