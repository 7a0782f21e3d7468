from __future__ import annotations

from pathlib import Path

import pytest

from fedmvp.data.layouts import ClassList, class_folders, domain_folders, split_folders
from fedmvp.data.records import ImageCollection, ImageRecord, merge
from fedmvp.errors import UserError
from tests.data.drawings import draw, draw_classes

NAMES = ("cat", "dog", "zebra")


def test_class_folders_are_numbered_in_the_order_that_is_given(tmp_path: Path) -> None:
    draw_classes(tmp_path, NAMES, images=2)
    assert class_folders(tmp_path).classes == NAMES
    turned = class_folders(tmp_path, ClassList.of(("zebra", "cat", "dog")))
    assert [record.labels for record in turned.records] == [(0,), (0,), (1,), (1,), (2,), (2,)]
    assert turned.records[0].path.parent.name == "zebra"


def test_a_class_may_be_called_otherwise_than_its_folder(tmp_path: Path) -> None:
    draw_classes(tmp_path, ("n01", "n02"))
    read = class_folders(tmp_path, ClassList.of(("tench", "goldfish"), ("n01", "n02")))
    assert read.classes == ("tench", "goldfish")
    assert class_folders(draw_classes(tmp_path / "b", ("red__fox", "owl"))).classes == ("owl", "red fox")


def test_a_missing_class_an_empty_class_and_an_unknown_folder_are_refused_by_name(tmp_path: Path) -> None:
    draw_classes(tmp_path, NAMES)
    with pytest.raises(UserError, match=r"class 'lion' of the study has no images in .*lion"):
        class_folders(tmp_path, ClassList.of((*NAMES, "lion")))
    with pytest.raises(UserError, match=r"folder .*zebra: 'zebra' is no class"):
        class_folders(tmp_path, ClassList.of(("cat", "dog")))
    assert len(class_folders(tmp_path, ClassList.of(("cat", "dog")), ignored=("zebra",))) == 6
    (tmp_path / "owl").mkdir()
    with pytest.raises(UserError, match="class 'owl'"):
        class_folders(tmp_path)


def test_domain_folders_keep_the_domain_and_one_numbering(tmp_path: Path) -> None:
    for domain in ("photo", "sketch"):
        draw_classes(tmp_path / domain, NAMES)
    read = domain_folders(tmp_path, domains={"sketch": "sketch", "photo": "photograph"})
    assert read.domains == ("sketch", "photograph")
    assert len(read.only(domains=["photograph"])) == 9
    assert {record.labels for record in read.only(domains=["sketch"]).records} == {(0,), (1,), (2,)}


def test_a_class_that_lacks_in_one_domain_is_refused(tmp_path: Path) -> None:
    draw_classes(tmp_path / "photo", NAMES)
    draw_classes(tmp_path / "sketch", NAMES[:2])
    with pytest.raises(UserError, match=r"class 'zebra' of the study has no images in .*sketch.zebra"):
        domain_folders(tmp_path)


def test_a_domain_that_lacks_or_is_unknown_is_refused(tmp_path: Path) -> None:
    draw_classes(tmp_path / "photo", NAMES)
    with pytest.raises(UserError, match=r"domain folder .*sketch does not exist"):
        domain_folders(tmp_path, domains={"photo": "photo", "sketch": "sketch"})
    draw_classes(tmp_path / "extra", NAMES)
    with pytest.raises(UserError, match=r"folder .*extra is no domain"):
        domain_folders(tmp_path, domains={"photo": "photo"})


def test_split_folders_keep_the_split(tmp_path: Path) -> None:
    draw_classes(tmp_path / "train", NAMES, images=4)
    draw_classes(tmp_path / "test", NAMES, images=1)
    read = split_folders(tmp_path, {"train": "train", "test": "test"})
    assert (len(read.only(split="train")), len(read.only(split="test"))) == (12, 3)
    with pytest.raises(UserError, match="no image of split val"):
        read.only(split="val")


def test_a_missing_root_is_one_message(tmp_path: Path) -> None:
    for read in (class_folders, domain_folders, lambda path: split_folders(path, {"train": "train"})):
        with pytest.raises(UserError, match="nowhere does not exist"):
            read(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("records", "multi_label", "message"),
    [
        ((ImageRecord(Path("a"), (0,)), ImageRecord(Path("a"), (1,))), False, "image a is listed twice"),
        ((ImageRecord(Path("a"), (0, 1)),), False, "has 2 labels in a single-label"),
        ((ImageRecord(Path("a"), ()),), False, "has 0 labels"),
        ((ImageRecord(Path("a"), (0,), split="dev"),), False, "has the split 'dev'"),
    ],
)
def test_records_that_contradict_the_task_are_refused(
    records: tuple[ImageRecord, ...], multi_label: bool, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        ImageCollection(records, ("x", "y"), Path("list"), multi_label)


def test_an_image_of_no_class_is_right_in_a_multi_label_collection() -> None:
    records = (ImageRecord(Path("a"), ()), ImageRecord(Path("b"), (0, 2)))
    read = ImageCollection(records, ("x", "y", "z"), Path("list"), multi_label=True)
    assert read.label_matrix().tolist() == [[0, 0, 0], [1, 0, 1]]
    assert read.of_classes(["z", "y"]).label_matrix().tolist() == [[0, 0], [1, 0]]


def test_single_label_images_of_other_classes_are_left_out(tmp_path: Path) -> None:
    read = class_folders(draw_classes(tmp_path, NAMES, images=2))
    half = read.of_classes(["zebra", "cat"])
    assert [record.labels for record in half.records] == [(1,), (1,), (0,), (0,)]
    with pytest.raises(UserError, match="no class 'lion'"):
        read.of_classes(["lion"])


def test_a_collection_becomes_what_a_site_trains_on(tmp_path: Path) -> None:
    read = class_folders(draw_classes(tmp_path, NAMES))
    dataset = read.as_dataset()
    assert (dataset.labels, dataset.classes, dataset.patients) == ((0, 0, 0, 1, 1, 1, 2, 2, 2), NAMES, None)
    some = ImageCollection((ImageRecord(Path("a"), (0,), patient="p"), ImageRecord(Path("b"), (0,))), ("x",), tmp_path)
    with pytest.raises(UserError, match="some images have no patient"):
        some.as_dataset()


def test_collections_of_other_classes_are_not_joined(tmp_path: Path) -> None:
    one = class_folders(draw_classes(tmp_path / "one", NAMES))
    two = class_folders(draw_classes(tmp_path / "two", NAMES[:2]))
    with pytest.raises(UserError, match="do not have the same classes"):
        merge([one, two], tmp_path)


def test_no_repr_shows_a_file_or_a_patient(tmp_path: Path) -> None:
    record = ImageRecord(draw(tmp_path / "x" / "name.png"), (0,), patient="Ada")
    shown = repr(record) + repr(ImageCollection((record,), ("x",), tmp_path))
    assert "Ada" not in shown
    assert "name.png" not in shown


def test_the_shadow_files_of_some_archives_are_no_images(tmp_path: Path) -> None:
    draw_classes(tmp_path, NAMES, images=2)
    (tmp_path / "cat" / "._0.png").write_bytes(b"resource fork")
    assert len(class_folders(tmp_path)) == 6
