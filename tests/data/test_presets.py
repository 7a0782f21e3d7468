from __future__ import annotations

from pathlib import Path

import pytest

from fedmvp.data.attribute_file import packaged_attributes
from fedmvp.data.opening import open_preset, survey_preset
from fedmvp.data.presets import load_preset, preset_names
from fedmvp.data.records import ImageCollection
from fedmvp.errors import UserError
from tests.data.drawings import draw, draw_classes
from tests.data.miniatures import (
    MINIATURES,
    Miniature,
    aircraft,
    caltech,
    cars,
    chest,
    cifar,
    coco,
    domainnet,
    few_shot,
    mlrsnet,
    multiscene,
    named,
    nus,
    pacs,
    pets,
    smaller,
    sun,
    ucf,
    voc,
    write,
)

TWENTY = [
    "caltech101",
    "flowers102",
    "fgvc-aircraft",
    "ucf101",
    "oxford-pets",
    "food101",
    "dtd",
    "stanford-cars",
    "sun397",
    "eurosat",
    "pacs",
    "office-home",
    "vlcs",
    "terra-incognita",
    "domainnet",
    "imagenet",
    "imagenet-v2",
    "imagenet-sketch",
    "imagenet-a",
    "imagenet-r",
]
SEVERAL_LABELS = ["voc2007", "coco2014", "nus-wide", "multiscene", "mlrsnet", "chest-xray14"]


def splits_of(collection: ImageCollection) -> dict[str | None, int]:
    found: dict[str | None, int] = {}
    for record in collection.records:
        found[record.split] = found.get(record.split, 0) + 1
    return found


def test_the_papers_twenty_data_sets_and_the_multi_label_ones_are_there() -> None:
    assert {*TWENTY, *SEVERAL_LABELS, "cifar10", "fashion-mnist", "digits"} == set(preset_names())
    assert {name for name in preset_names() if load_preset(name).multi_label} == set(SEVERAL_LABELS)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_parses_and_its_attribute_file_covers_its_classes(name: str) -> None:
    preset = load_preset(name)
    assert preset.name == name
    assert "{name}" in preset.plain_template.format(name="{name}")
    if preset.attributes:
        assert preset.class_list is not None
        found = packaged_attributes(preset.attributes).for_classes(preset.class_list.names)
        assert [item.name for item in found] == list(preset.class_list.names)


def test_an_unknown_preset_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="no data set preset 'pac'") as caught:
        load_preset("pac")
    assert "did you mean pacs?" in caught.value.remedy


@pytest.mark.parametrize(("miniature", "classes", "splits"), MINIATURES, ids=[item[0].__name__ for item in MINIATURES])
def test_a_miniature_of_every_layout_is_read(
    miniature: Miniature, classes: tuple[str, ...], splits: dict[str | None, int], tmp_path: Path
) -> None:
    preset = miniature(tmp_path)
    read = open_preset(preset, tmp_path)
    assert read.classes == classes
    assert splits_of(read) == splits
    assert all(record.path.is_file() for record in read.records)
    assert read.multi_label == preset.multi_label
    assert read == open_preset(preset, tmp_path)


@pytest.mark.parametrize(
    ("miniature", "rows"),
    [
        (voc, [[1, 1], [0, 0], [0, 1], [1, 0]]),
        (coco, [[1, 1], [1, 1]]),
        (nus, [[1, 1], [0, 0], [1, 0]]),
        (multiscene, [[1, 1], [0, 0], [0, 1]]),
        (chest, [[1, 1], [0, 0], [0, 1]]),
    ],
    ids=["voc", "coco", "nus", "multiscene", "chest"],
)
def test_the_labels_of_a_multi_label_layout_are_those_of_its_files(
    miniature: Miniature, rows: list[list[int]], tmp_path: Path
) -> None:
    assert open_preset(miniature(tmp_path), tmp_path).label_matrix().tolist() == rows


def test_the_patients_of_chest_x_rays_are_kept(tmp_path: Path) -> None:
    assert [record.patient for record in open_preset(chest(tmp_path), tmp_path).records] == ["1", "1", "2"]


@pytest.mark.parametrize("miniature", [pets, aircraft, sun, ucf, domainnet, voc, coco, nus, multiscene, mlrsnet, chest])
def test_a_missing_image_is_told_by_name_and_may_be_left_out(miniature: Miniature, tmp_path: Path) -> None:
    preset = miniature(tmp_path)
    whole = open_preset(preset, tmp_path)
    lost = whole.records[-1].path
    lost.unlink()
    with pytest.raises(UserError, match=r"is not what it should be: .* has \d+ of \d+ images; missing are") as caught:
        open_preset(preset, tmp_path)
    assert lost.name in caught.value.what
    assert preset.obtain in caught.value.remedy
    rest = open_preset(preset, tmp_path, allow_incomplete=True)
    assert len(rest) == len(whole) - 1
    parts = survey_preset(preset, tmp_path).parts
    assert [path.name for part in parts for path in part.missing] == [lost.name]


def test_too_few_and_too_many_images_are_told_by_domain(tmp_path: Path) -> None:
    preset = pacs(tmp_path)
    (tmp_path / "photo" / "dog" / "0.png").unlink()
    draw(tmp_path / "sketch" / "dog" / "9.png")
    with pytest.raises(UserError, match="photo has 3 of 4 images; sketch has 5 of 4 images"):
        open_preset(preset, tmp_path)
    assert len(open_preset(preset, tmp_path, allow_incomplete=True)) == 8


def test_too_few_images_are_told_by_official_split_and_in_all_where_the_split_is_made_here(tmp_path: Path) -> None:
    draw_classes(tmp_path / "a" / "train", ("cat", "ship"), images=3)
    draw_classes(tmp_path / "a" / "test", ("cat", "ship"), images=1)
    preset = smaller("cifar10", n_classes=2, classes=named("cat", "ship"), expected={"train": 8, "test": 2})
    with pytest.raises(UserError, match=r"should be: train has 6 of 8 images$"):
        open_preset(preset, tmp_path / "a")
    made = few_shot(tmp_path / "b").model_copy(update={"expected": {"train": 20, "val": 5, "test": 5}})
    with pytest.raises(UserError, match=r"all has 20 of 30 images$"):
        open_preset(made, tmp_path / "b")


def test_images_that_no_list_names_are_told_and_ignored_folders_are_not(tmp_path: Path) -> None:
    preset = aircraft(tmp_path)
    extra = draw(tmp_path / "images" / "9999.jpg")
    assert survey_preset(preset, tmp_path).unexpected == (extra,)
    preset = caltech(tmp_path / "c")
    assert survey_preset(preset, tmp_path / "c").unexpected == ()


def test_missing_files_and_folders_are_all_named_with_how_to_get_them(tmp_path: Path) -> None:
    preset = load_preset("sun397")
    with pytest.raises(UserError, match="does not exist"):
        open_preset(preset, tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"lacks 4 of 4 files and folders: ClassName.txt, .*, SUN397") as caught:
        open_preset(preset, tmp_path)
    assert caught.value.remedy == preset.obtain


@pytest.mark.parametrize(
    ("miniature", "file", "line", "message"),
    [
        (pets, "annotations/test.txt", "Maine 1 1 1", "line 3 of .*test.txt is not as"),
        (pets, "annotations/test.txt", "poodle_1 1 1 1", "line 3 of .*test.txt: 'poodle' is no class"),
        (domainnet, "real_test.txt", "real/axe/9.jpg 1", "calls class 1 'axe', another line 'blue_bird'"),
        (aircraft, "variants.txt", "Concorde", "names 3 classes instead of 2"),
        (nus, "Concepts81.txt", "zebra", "Labels_zebra_Train.txt cannot be read"),
        (nus, "Groundtruth/TrainTestLabels/Labels_animal_Train.txt", "1", "has 3 lines for 2 images"),
        (multiscene, "Tra.csv", "d,1", "line 4 of .*Tra.csv is not an image with 0 or 1"),
        (multiscene, "Tra.csv", "d,1,2", "line 4 of .*Tra.csv"),
        (voc, "VOCdevkit/VOC2007/ImageSets/Main/cat_test.txt", "000009 1", "line 3 of .*cat_test.txt"),
        (chest, "Data_Entry_2017_v2020.csv", "4.png,Mass,0,3,60", "line 5 of .* names 4.png, which is in no list"),
        (chest, "Data_Entry_2017_v2020.csv", "3.png,Mas,0,3,60", "column Finding Labels: 'Mas' is no class"),
        (ucf, "ucfTrainTestlist/classInd.txt", "3 Archery", "names 3 classes instead of 2"),
    ],
)
def test_a_damaged_list_is_told_with_its_line(
    miniature: Miniature, file: str, line: str, message: str, tmp_path: Path
) -> None:
    preset = miniature(tmp_path)
    with (tmp_path / file).open("a", encoding="utf-8") as opened:
        opened.write(f"{line}\n")
    with pytest.raises(UserError, match=message) as caught:
        open_preset(preset, tmp_path)
    assert caught.value.remedy


def test_a_damaged_annotation_file_is_named(tmp_path: Path) -> None:
    preset = coco(tmp_path)
    write(tmp_path / "annotations" / "instances_val2014.json", "{}")
    with pytest.raises(UserError, match=r"instances_val2014.json is not a COCO file"):
        open_preset(preset, tmp_path)
    preset = multiscene(tmp_path / "m")
    write(tmp_path / "m" / "Test.csv", "image,golf course,beach", "c,0,1")
    with pytest.raises(UserError, match=r"Test.csv has other classes than the first"):
        open_preset(preset, tmp_path / "m")
    preset = cars(tmp_path / "c")
    (tmp_path / "c" / "devkit" / "cars_meta.mat").write_text("no table")
    with pytest.raises(UserError, match=r"cars_meta.mat is not a MATLAB table"):
        open_preset(preset, tmp_path / "c")


def test_a_wrong_number_of_classes_is_told(tmp_path: Path) -> None:
    preset = caltech(tmp_path).model_copy(update={"n_classes": 100})
    with pytest.raises(UserError, match="has 2 classes instead of 100"):
        open_preset(preset, tmp_path)


def test_a_linked_folder_counts_as_what_it_links_to(tmp_path: Path) -> None:
    preset = cifar(tmp_path / "real")
    (tmp_path / "linked").mkdir()
    for part in ("train", "test"):
        (tmp_path / "linked" / part).symlink_to(tmp_path / "real" / part)
    assert len(open_preset(preset, tmp_path / "linked")) == 8
