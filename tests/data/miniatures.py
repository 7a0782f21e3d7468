"""Every layout of a known data set in miniature, drawn into a folder, with the preset that reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedmvp.data.presets import Preset, load_preset
from tests.data.drawings import draw, draw_classes


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
    write(folder / "variants.txt", "707-320", "F-16A/B")
    for at, split in enumerate(("train", "val", "test")):
        write(folder / f"images_variant_{split}.txt", f"000{2 * at} 707-320", f"000{2 * at + 1} F-16A/B")
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
    (aircraft, ("707-320", "F-16A-B"), {"train": 2, "val": 2, "test": 2}),
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
