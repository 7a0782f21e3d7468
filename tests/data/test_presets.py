from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedmvp.data.attribute_file import packaged_attributes
from fedmvp.data.opening import open_preset, survey_preset
from fedmvp.data.presets import Preset, load_preset, preset_names
from fedmvp.data.records import ImageCollection
from fedmvp.errors import UserError
from tests.data.drawings import draw, draw_classes

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


def smaller(name: str, **changes: object) -> Preset:
    """A preset for a miniature: the real one with fewer classes and images."""
    values = load_preset(name).model_dump()
    return Preset.model_validate({**values, "expected": {}, **changes})


def named(*names: str | tuple[str, str]) -> list[dict[str, str]]:
    return [{"name": item[1], "folder": item[0]} if isinstance(item, tuple) else {"name": item} for item in names]


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


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


def pacs(folder: Path) -> Preset:
    for domain in ("photo", "sketch"):
        draw_classes(folder / domain, ("dog", "horse"), images=2)
    domains = [{"folder": name, "name": name, "images": 4} for name in ("photo", "sketch")]
    return smaller("pacs", n_classes=2, classes=named("dog", "horse"), domains=domains)


def few_shot(folder: Path) -> Preset:
    draw_classes(folder / "2750", ("River", "Forest"), images=10, suffix=".jpg")
    return smaller("eurosat", n_classes=2, classes=named(("River", "river"), ("Forest", "forest")))


def caltech(folder: Path) -> Preset:
    draw_classes(folder / "101_ObjectCategories", ("BACKGROUND_Google", "ceiling_fan", "anchor"), images=10)
    return smaller("caltech101", n_classes=2)


def food(folder: Path) -> Preset:
    draw_classes(folder / "images", ("waffles", "apple_pie"), images=4)
    write(folder / "meta" / "classes.txt", "apple_pie", "waffles")
    return smaller("food101", n_classes=2)


def pets(folder: Path) -> Preset:
    for number in range(1, 11):
        draw(folder / "images" / f"Maine_Coon_{number}.jpg")
        draw(folder / "images" / f"pug_{number}.jpg")
    lines = [
        f"{stem}_{number} {label} 1 1" for stem, label in (("Maine_Coon", 1), ("pug", 2)) for number in range(1, 11)
    ]
    write(folder / "annotations" / "trainval.txt", "# a comment", *lines[0:9], *lines[10:19])
    write(folder / "annotations" / "test.txt", lines[9], lines[19])
    return smaller("oxford-pets", n_classes=2, classes=named(("Maine_Coon", "Maine Coon"), "pug"))


def aircraft(folder: Path) -> Preset:
    for number in range(6):
        draw(folder / "images" / f"000{number}.jpg")
    write(folder / "variants.txt", "707-320", "Cessna 172")
    for at, split in enumerate(("train", "val", "test")):
        write(folder / f"images_variant_{split}.txt", f"000{2 * at} 707-320", f"000{2 * at + 1} Cessna 172")
    return smaller("fgvc-aircraft", n_classes=2)


def sun(folder: Path) -> Preset:
    lines = [f"/a/{name}/sun_{number}.jpg" for name in ("abbey", "apse/indoor") for number in range(10)]
    for line in lines:
        draw(folder / "SUN397" / line[1:])
    write(folder / "SUN397" / "ClassName.txt", "/a/abbey", "/a/apse/indoor")
    write(folder / "Training_01.txt", *lines[:9], *lines[10:19])
    write(folder / "Testing_01.txt", lines[9], lines[19])
    return smaller("sun397", n_classes=2)


def ucf(folder: Path) -> Preset:
    videos = [(action, f"v_{action}_g{n:02d}_c01") for action in ("ApplyEyeMakeup", "YoYo") for n in range(10)]
    for action, video in videos:
        draw(folder / "UCF-101-midframes" / {"YoYo": "Yo_Yo"}.get(action, "Apply_Eye_Makeup") / f"{video}.jpg")
    write(folder / "ucfTrainTestlist" / "classInd.txt", "1 ApplyEyeMakeup", "2 YoYo")
    lines = [f"{action}/{video}.avi" for action, video in videos]
    write(folder / "ucfTrainTestlist" / "trainlist01.txt", *(f"{line} 1" for line in (*lines[:9], *lines[10:19])))
    write(folder / "ucfTrainTestlist" / "testlist01.txt", lines[9], lines[19])
    return smaller("ucf101", n_classes=2)


def domainnet(folder: Path) -> Preset:
    for domain in ("clipart", "real"):
        for split, numbers in (("train", (1, 2)), ("test", (3,))):
            entries = [
                f"{domain}/{name}/{n}.jpg {label}" for label, name in enumerate(("axe", "blue_bird")) for n in numbers
            ]
            for entry in entries:
                draw(folder / entry.split()[0])
            write(folder / f"{domain}_{split}.txt", *entries)
    domains = [{"folder": name, "name": name, "images": 6} for name in ("clipart", "real")]
    return smaller("domainnet", n_classes=2, domains=domains, needs=[])


def flowers(folder: Path) -> Preset:
    io = pytest.importorskip("scipy.io")
    for number in range(1, 11):
        draw(folder / "jpg" / f"image_{number:05d}.jpg")
    io.savemat(folder / "imagelabels.mat", {"labels": np.array([[1, 2] * 5])})
    write(folder / "cat_to_name.json", json.dumps({"1": "pink primrose", "2": "orchid"}))
    return smaller("flowers102", n_classes=2)


def cars(folder: Path) -> Preset:
    io = pytest.importorskip("scipy.io")
    kind = [("fname", object), ("class", object)]
    for part, count in (("train", 10), ("test", 4)):
        for number in range(1, count + 1):
            draw(folder / f"cars_{part}" / f"{number:05d}.jpg")
        rows = [(np.array([f"{number:05d}.jpg"]), np.array([[1 + number % 2]])) for number in range(1, count + 1)]
        table = folder / ("devkit/cars_train_annos.mat" if part == "train" else "cars_test_annos_withlabels.mat")
        table.parent.mkdir(exist_ok=True)
        io.savemat(table, {"annotations": np.array([rows], dtype=kind)})
    names = np.empty((1, 2), dtype=object)
    names[0, :] = ["Audi TT Coupe 2012", "Ram C/V"]
    io.savemat(folder / "devkit" / "cars_meta.mat", {"class_names": names})
    return smaller("stanford-cars", n_classes=2)


def imagenet(folder: Path) -> Preset:
    draw_classes(folder / "images" / "train", ("n01", "n02"), images=3)
    draw_classes(folder / "images" / "val", ("n01", "n02"), images=1)
    write(folder / "classnames.txt", "n01 crane", "n02 crane")
    return smaller("imagenet", n_classes=2)


def imagenet_v2(folder: Path) -> Preset:
    draw_classes(folder / "imagenetv2-matched-frequency-format-val", ("0", "1"), images=1)
    write(folder / "classnames.txt", "n01 tench", "n02 goldfish")
    return smaller("imagenet-v2", n_classes=2)


def imagenet_a(folder: Path) -> Preset:
    draw_classes(folder / "imagenet-a", ("n01", "n03"), images=1)
    write(folder / "classnames.txt", "n01 tench", "n02 goldfish", "n03 great white shark")
    return smaller("imagenet-a", n_classes=2)


def cifar(folder: Path) -> Preset:
    for part, count in (("train", 3), ("test", 1)):
        draw_classes(folder / part, ("cat", "ship"), images=count)
    return smaller("cifar10", n_classes=2, classes=named("cat", "ship"))


def voc(folder: Path) -> Preset:
    root = folder / "VOCdevkit" / "VOC2007"
    for number in range(1, 5):
        draw(root / "JPEGImages" / f"00000{number}.jpg")
    lists = root / "ImageSets" / "Main"
    write(lists / "trainval.txt", "000001", "000002")
    write(lists / "test.txt", "000003", "000004")
    write(lists / "cat_trainval.txt", "000001  1", "000002 -1")
    write(lists / "tvmonitor_trainval.txt", "000001  0", "000002 -1")
    write(lists / "cat_test.txt", "000003 -1", "000004  1")
    write(lists / "tvmonitor_test.txt", "000003  1", "000004 -1")
    return smaller("voc2007", n_classes=2, classes=named("cat", ("tvmonitor", "tv monitor")))


def coco(folder: Path) -> Preset:
    for part, number in (("train2014", 7), ("val2014", 9)):
        draw(folder / part / f"{number}.jpg")
        content = {
            "images": [{"id": number, "file_name": f"{number}.jpg"}],
            "categories": [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}],
            "annotations": [{"image_id": number, "category_id": 90}, {"image_id": number, "category_id": 1}],
        }
        write(folder / "annotations" / f"instances_{part}.json", json.dumps(content))
    return smaller("coco2014", n_classes=2)


def nus(folder: Path) -> Preset:
    for name in ("actor/1.jpg", "actor/2.jpg", "zoo/3.jpg"):
        draw(folder / "Flickr" / name)
    write(folder / "Concepts81.txt", "animal", "fire_truck")
    write(folder / "ImageList" / "TrainImagelist.txt", "actor\\1.jpg", "actor\\2.jpg")
    write(folder / "ImageList" / "TestImagelist.txt", "zoo\\3.jpg")
    marks = folder / "Groundtruth" / "TrainTestLabels"
    for concept, train, test in (("animal", ("1", "0"), ("1",)), ("fire_truck", ("1", "0"), ("0",))):
        write(marks / f"Labels_{concept}_Train.txt", *train)
        write(marks / f"Labels_{concept}_Test.txt", *test)
    return smaller("nus-wide", n_classes=2)


def multiscene(folder: Path) -> Preset:
    for name in ("a", "b", "c"):
        draw(folder / "images" / f"{name}.jpg")
    write(folder / "Tra.csv", "image,beach,golf_course", "a,1,1", "b.jpg,0,0")
    write(folder / "Test.csv", "image,beach,golf_course", "c,0,1")
    return smaller("multiscene", n_classes=2)


def mlrsnet(folder: Path) -> Preset:
    for scene in ("airport", "beach"):
        for number in range(10):
            draw(folder / "Images" / scene / f"{scene}_{number}.jpg")
        rows = [f"{scene}_{number}.jpg,{int(scene == 'airport')},1" for number in range(10)]
        write(folder / "Labels" / f"{scene}.csv", "image,airplane,bare soil", *rows)
    return smaller("mlrsnet", n_classes=2)


def chest(folder: Path) -> Preset:
    for number, part in ((1, "images_001"), (2, "images_001"), (3, "images_002")):
        draw(folder / part / "images" / f"{number}.png")
    header = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age"
    rows = ("1.png,Mass|Hernia,0,1,58", "2.png,No Finding,1,1,59", "3.png,Hernia,0,2,60")
    write(folder / "Data_Entry_2017_v2020.csv", header, *rows)
    write(folder / "train_val_list.txt", "1.png", "2.png")
    write(folder / "test_list.txt", "3.png")
    return smaller("chest-xray14", n_classes=2, classes=named(("Mass", "mass"), ("Hernia", "hernia")))


Miniature = Callable[[Path], Preset]
SPLIT_20 = {"train": 14, "val": 4, "test": 2}
MINIATURES: list[tuple[Miniature, tuple[str, ...], dict[str | None, int]]] = [
    (pacs, ("dog", "horse"), {None: 8}),
    (few_shot, ("river", "forest"), {"train": 10, "val": 4, "test": 6}),
    (caltech, ("anchor", "ceiling fan"), {"train": 10, "val": 4, "test": 6}),
    (food, ("apple pie", "waffles"), {"train": 4, "val": 2, "test": 2}),
    (pets, ("Maine Coon", "pug"), SPLIT_20),
    (aircraft, ("707-320", "Cessna 172"), {"train": 2, "val": 2, "test": 2}),
    (sun, ("abbey", "indoor apse"), SPLIT_20),
    (ucf, ("Apply Eye Makeup", "Yo Yo"), SPLIT_20),
    (domainnet, ("axe", "blue bird"), {"train": 8, "test": 4}),
    (flowers, ("pink primrose", "orchid"), {"train": 4, "val": 2, "test": 4}),
    (cars, ("2012 Audi TT Coupe", "Ram C/V"), {"train": 8, "val": 2, "test": 4}),
    (imagenet, ("crane n01", "crane n02"), {"train": 6, "test": 2}),
    (imagenet_v2, ("tench", "goldfish"), {"test": 2}),
    (imagenet_a, ("tench", "great white shark"), {"test": 2}),
    (cifar, ("cat", "ship"), {"train": 6, "test": 2}),
    (voc, ("cat", "tv monitor"), {"train": 2, "test": 2}),
    (coco, ("person", "toothbrush"), {"train": 1, "test": 1}),
    (nus, ("animal", "fire truck"), {"train": 2, "test": 1}),
    (multiscene, ("beach", "golf course"), {"train": 2, "test": 1}),
    (mlrsnet, ("airplane", "bare soil"), {"train": 10, "val": 4, "test": 6}),
    (chest, ("mass", "hernia"), {"train": 2, "test": 1}),
]


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
