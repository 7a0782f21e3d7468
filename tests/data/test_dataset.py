from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from fedmvp.data.dataset import image_folder, manifest
from fedmvp.errors import ExitCode, UserError

CLASSES = ("cat", "dog", "zebra")


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), "red").save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in CLASSES:
        for number in range(2):
            picture(tmp_path / "images" / name / f"{number}.png")
    return tmp_path / "images"


@pytest.fixture
def table(folder: Path) -> Path:
    path = folder / "list.csv"
    path.write_text("image,label\ncat/0.png,cat\ndog/0.png,dog\nzebra/1.png,zebra\n")
    return path


def test_labels_are_positions_in_the_studys_class_list_not_in_the_folder(folder: Path) -> None:
    dataset = image_folder(folder, ("zebra", "cat", "dog"))
    assert dataset.labels == (0, 0, 1, 1, 2, 2)
    assert [path.parent.name for path in dataset.paths] == ["zebra", "zebra", "cat", "cat", "dog", "dog"]


def test_other_files_hidden_folders_and_upper_case_suffixes_are_told_apart(folder: Path) -> None:
    (folder / "cat" / "notes.txt").write_text("no image")
    (folder / ".cache").mkdir()
    picture(folder / "cat" / "deep" / "LARGE.PNG")
    dataset = image_folder(folder, CLASSES)
    assert sum(label == 0 for label in dataset.labels) == 3


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist") as caught:
        image_folder(tmp_path / "nowhere", CLASSES)
    assert str(tmp_path / "nowhere") in caught.value.what
    assert caught.value.exit_code is ExitCode.CONFIG


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no images"):
        image_folder(tmp_path, CLASSES, require_every_class=False)


def test_a_folder_that_is_no_class_is_refused_with_the_nearest_class(folder: Path) -> None:
    picture(folder / "zebras" / "0.png")
    with pytest.raises(UserError, match="'zebras' is no class") as caught:
        image_folder(folder, CLASSES)
    assert "did you mean 'zebra'?" in caught.value.remedy


def test_a_class_without_images_is_refused_by_name(folder: Path) -> None:
    for file in (folder / "dog").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="class 'dog' of the study has no images"):
        image_folder(folder, CLASSES)
    with pytest.raises(UserError, match="class 'dog'"):
        image_folder(folder, CLASSES, require_every_class=False)  # an empty folder is a mistake, an absent one a choice
    (folder / "dog").rmdir()
    assert set(image_folder(folder, CLASSES, require_every_class=False).labels) == {0, 2}


def test_a_manifest_gives_paths_relative_to_itself_and_labels_by_name(table: Path) -> None:
    dataset = manifest(table, CLASSES)
    assert dataset.paths[1] == table.parent / "dog" / "0.png"
    assert dataset.labels == (0, 1, 2)
    assert dataset.patients is None


def test_a_manifest_may_say_whom_an_image_is_of(table: Path) -> None:
    table.write_text("patient,image,label\np1,cat/0.png,cat\np1,dog/0.png,dog\np2,zebra/1.png,zebra\n", "utf-8-sig")
    assert manifest(table, CLASSES).patients == ("p1", "p1", "p2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,label\ncat/9.png,cat\n", "line 2 of .*cat/9.png does not exist"),
        ("image,label\ncat/0.png,cat\ndog/0.png,dgo\n", "line 3 of .*'dgo' is no class"),
        ("image,label\ncat/0.png\n", "line 2 of .*'' is no class"),
        ("file,label\ncat/0.png,cat\n", "no column image"),
        ("", "no column image and no column label"),
        ("image,label\n", "holds no images"),
        ("image,label\ncat/0.png,cat\n", "class 'dog' of the study has no images"),
        ("image,label,patient\ncat/0.png,cat,p\ndog/0.png,dog,\nzebra/0.png,zebra,p\n", "some rows have no patient"),
    ],
)
def test_a_mistake_in_a_manifest_is_named_with_its_line(text: str, message: str, table: Path) -> None:
    table.write_text(text)
    with pytest.raises(UserError, match=message):
        manifest(table, CLASSES)


def test_a_manifest_that_is_missing_or_not_text_is_named(table: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        manifest(table.with_name("other.csv"), CLASSES)
    table.write_bytes(b"image,label\n\xff\xfe\x00,cat\n")
    with pytest.raises(UserError, match="UTF-8"):
        manifest(table, CLASSES)


def test_the_repr_of_a_data_set_holds_no_count_and_no_file_names(table: Path) -> None:
    assert "0.png" not in repr(manifest(table, CLASSES))
