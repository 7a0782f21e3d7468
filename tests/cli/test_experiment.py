from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedmvp.cli.experiment import LAYOUTS, RULES
from fedmvp.data.attribute_file import as_toml, packaged_attributes
from fedmvp.errors import ExitCode
from tests.cli.conftest import Run
from tests.cli.test_program import imported_by
from tests.data.drawings import draw, draw_classes
from tests.docs.documents import ROOT

PROGRAM = "fedmvp-experiment"
COMMANDS = {"presets", "data", "attributes", "partition", "report"}


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for domain in ("photo", "sketch"):
        draw_classes(tmp_path / "images" / domain, ("cat", "dog", "owl", "fox"), images=6)
    return tmp_path / "images"


def test_help_names_every_command_and_loads_neither_torch_nor_grpc(run: Run) -> None:
    result = run(PROGRAM, "--help")
    listed = {line.split()[0] for line in result.out.split("Commands:\n")[1].splitlines() if line.strip()}
    assert listed >= COMMANDS
    assert not imported_by("experiment", "--help") & {"torch", "grpc", "open_clip", "opacus", "scipy", "numpy", "PIL"}


def test_the_guide_tells_of_every_layout_and_rule() -> None:
    guide = (ROOT / "docs" / "experiments-data.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in guide for name in (*LAYOUTS, *RULES))


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_itself(run: Run, command: str) -> None:
    result = run(PROGRAM, command, "--help")
    assert result.code == 0
    assert result.out.startswith(f"Usage: {PROGRAM} {command}")


def test_presets_are_listed(run: Run) -> None:
    listed = {row["name"]: row for row in json.loads(run(PROGRAM, "presets", "--format", "json").out)}
    assert listed["pacs"]["domains"] == "photo, art painting, cartoon, sketch"
    assert (listed["imagenet"]["classes"], listed["voc2007"]["task"]) == (1000, "multi-label")
    assert "oxford-pets" in run(PROGRAM, "presets").out


def test_data_shows_what_is_missing_part_by_part_and_fails_with_the_remedy(run: Run, tmp_path: Path) -> None:
    names = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
    for domain in ("photo", "art_painting", "cartoon", "sketch"):
        draw_classes(tmp_path / domain, names, images=1)
    result = run(PROGRAM, "data", tmp_path, "--preset", "pacs")
    assert result.code == ExitCode.CONFIG
    assert "photo has 7 of 1670 images; art painting has 7 of 2048 images" in result.err
    assert "remedy: get PACS from its authors" in result.err
    assert "1670" in result.out
    result = run(PROGRAM, "data", tmp_path, "--preset", "pacs", "--allow-incomplete", "--decode")
    assert result.code == 0
    assert "28 images of 7 classes can be used" in result.err


def test_data_names_an_image_that_cannot_be_read(run: Run, folders: Path) -> None:
    (folders / "photo" / "cat" / "3.png").write_text("no image")
    assert run(PROGRAM, "data", folders, "--layout", "domain-folders").code == 0
    result = run(PROGRAM, "data", folders, "--layout", "domain-folders", "--decode", "--format", "json")
    assert result.code == ExitCode.CONFIG
    assert "3.png cannot be decoded" in result.err
    assert json.loads(result.out)["parts"][0] == {"domain": "photo", "split": None, "images": 24}


def test_data_needs_to_be_told_how_it_is_read(run: Run, folders: Path) -> None:
    for extra in ((), ("--preset", "pacs", "--layout", "class-folders")):
        result = run(PROGRAM, "partition", folders, "--by", "domain", *extra)
        assert result.code == ExitCode.USAGE
        assert "either --preset or --layout" in result.err


def test_the_packages_attributes_are_in_order(run: Run) -> None:
    result = run(PROGRAM, "attributes", "cifar10", "--classes", "cifar10")
    assert result.code == 0
    assert "80 attributes of 10 classes can be used" in result.err
    assert "problem" not in result.err


def test_missing_classes_shared_attributes_and_long_sentences_are_told(run: Run, tmp_path: Path) -> None:
    text = as_toml(packaged_attributes("vlcs")).replace('"four legs that stand on the floor"', '"a human face"')
    path = tmp_path / "own.toml"
    path.write_text(text)
    (tmp_path / "classes.txt").write_text("chair\nperson\nlamp\n\n")
    arguments = (
        "--classes",
        tmp_path / "classes.txt",
        "--backbone",
        "ViT-B-16",
        "--template",
        "{name} " * 80 + "{attribute}",
    )
    result = run(PROGRAM, "attributes", path, *arguments, "--format", "json")
    assert result.code == ExitCode.CONFIG
    findings = {(item["verdict"], item["subject"]): item["detail"] for item in json.loads(result.out)["findings"]}
    assert findings["problem", "class 'lamp'"] == "has no attributes"
    assert findings["warning", "'human face'"].startswith("is said of chair, person")
    assert findings["warning", "class 'car'"] == "is not asked for"
    assert any("tokens; ViT-B-16 reads 75" in detail for detail in findings.values())


def test_words_that_the_embedded_tower_never_saw_are_a_warning(run: Run) -> None:
    result = run(PROGRAM, "attributes", "dtd")
    assert result.code == 0
    assert "fedmvp-tiny never saw:" in result.err


def test_a_partition_is_a_table_a_picture_and_manifests(run: Run, folders: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    arguments = ("--layout", "domain-folders", "--by", "domain", "--picture", tmp_path / "p.png")
    result = run(PROGRAM, "partition", folders, *arguments, "--manifests", tmp_path / "sites")
    assert result.code == 0
    assert result.out.splitlines()[0] == "images: domain"
    assert (tmp_path / "p.png").stat().st_size > 1000
    again = run(PROGRAM, "partition", tmp_path / "sites" / "photo.csv", "--layout", "manifest", "--by", "domain",
                "--classes", "cat,dog,owl,fox", "--format", "json")  # fmt: skip
    assert json.loads(again.out)["images"] == 24


@pytest.mark.parametrize(
    ("arguments", "sites"),
    [
        (("--by", "class-blocks", "--classes-per-site", "2"), 2),
        (("--by", "class-blocks", "--sites", "2"), 2),
        (("--by", "dirichlet", "--sites", "3", "--alpha", "5"), 3),
    ],
)
def test_every_rule_deals_every_image(run: Run, folders: Path, arguments: tuple[str, ...], sites: int) -> None:
    result = run(PROGRAM, "partition", folders, "--layout", "domain-folders", *arguments, "--format", "json")
    dealt = json.loads(result.out)
    assert len(dealt["sites"]) == sites
    assert sum(site["images"] for site in dealt["sites"]) == dealt["images"] == 48


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (("--by", "dirichlet"), "--by dirichlet needs --sites", ExitCode.USAGE),
        (("--by", "patient", "--sites", "2"), "column patient: image", ExitCode.CONFIG),
        (("--by", "class-blocks", "--classes-per-site", "3"), "site-2 has images of 1 of the classes", ExitCode.CONFIG),
        (("--by", "domain", "--minimum", "25"), "photo has 24 images, fewer than the minimum of 25", ExitCode.CONFIG),
    ],
)
def test_a_partition_that_cannot_train_is_refused_before_anything_is_written(
    run: Run, folders: Path, arguments: tuple[str, ...], message: str, code: ExitCode
) -> None:
    picture, manifests = folders.parent / "p.png", folders.parent / "sites"
    places = ("--picture", picture, "--manifests", manifests)
    result = run(PROGRAM, "partition", folders, "--layout", "domain-folders", *arguments, *places)
    assert result.code == code
    assert message in result.err
    assert not picture.exists()
    assert not manifests.exists()


def test_patients_of_a_table_stay_whole(run: Run, tmp_path: Path) -> None:
    rows = ["path,label,patient,split"]
    for number in range(24):
        draw(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{('cat', 'dog')[number % 2]},p{number // 4},train")
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    arguments = ("--layout", "manifest", "--classes", "cat,dog", "--by", "patient", "--sites", "2", "--split", "train")
    dealt = json.loads(run(PROGRAM, "partition", tmp_path / "list.csv", *arguments, "--format", "json").out)
    assert [site["patients"] for site in dealt["sites"]] == [3, 3]
    (tmp_path / "list.csv").write_text("\n".join(rows).replace("3.png,dog,p0,train", "3.png,dog,p0,test") + "\n")
    result = run(PROGRAM, "partition", tmp_path / "list.csv", *arguments)
    assert "column patient: images" in result.err
    assert "are of one patient" in result.err


@pytest.mark.parametrize(
    ("classes", "message"),
    [("sun397", "reads its classes from"), (",", "names no class"), ("no.txt", "cannot be read")],
)
def test_a_list_of_classes_that_is_none_is_refused(run: Run, folders: Path, classes: str, message: str) -> None:
    result = run(PROGRAM, "data", folders, "--layout", "domain-folders", "--classes", classes)
    assert result.code == ExitCode.CONFIG
    assert message in result.err
