"""The distilled backbone's own parts: names of drawings, views, targets, its start, and the record of its sources."""

from __future__ import annotations

import copy
import io
import json
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch

from fedmvp.errors import UserError
from fedmvp.model.embedded import embedded_data, load_embedded
from tools.pretrain.distil import batches, choices, photographs, scenes, tower
from tools.pretrain.distil.drawings import icon_name
from tools.pretrain.distil.export import DATA
from tools.pretrain.distil.measure import domain_task, read_domain
from tools.pretrain.distil.views import PIXELS, drawing_views, line_views, photo_views, scene_views, sketch
from tools.pretrain.distil.words import definitions, imagenet_names, known_words

SOURCES = Path(tower.__file__).with_name("sources.json")


def images(count: int, channels: int, side: int = PIXELS) -> torch.Tensor:
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8)


def test_the_record_names_every_source_with_hash_and_licence_and_no_pacs() -> None:
    sources = json.loads(SOURCES.read_text(encoding="utf-8"))
    assert all(len(entry["sha256"]) == 64 and entry["licence"] for entry in sources.values())
    assert not any("pacs" in name.lower() for name in sources)
    assert not any("SA" in entry["licence"] or "GPL" in entry["licence"] for entry in sources.values())
    assert sum(entry.get("use") == "teacher, not shipped" for entry in sources.values()) == 2


def test_no_tower_has_seen_pacs_and_one_has_not_seen_cifar10() -> None:
    assert not any("pacs" in entry for entry in DATA)
    assert embedded_data("fedmvp-small") == DATA
    assert embedded_data("fedmvp-unseen") == tuple(entry for entry in DATA if entry != "cifar10")


@pytest.mark.parametrize(
    ("key", "colourful", "name"),
    [
        ("red-apple", True, "red apple"),
        ("man-detective-dark", True, None),
        ("flag-for-france", True, None),
        ("elephant", False, "elephant"),
        ("guitar-acoustic-outline", False, "guitar acoustic"),
        ("arrow-left", False, None),
        ("zzyzx", False, None),
    ],
)
def test_an_icon_is_kept_under_its_words_when_it_draws_a_thing(key: str, colourful: bool, name: str | None) -> None:
    words = frozenset({"elephant", "guitar", "acoustic", "left"})
    assert icon_name(key, words, colourful=colourful) == name


def test_views_of_every_kind_are_colour_images_between_black_and_white() -> None:
    for views in (
        photo_views(images(9, 3, 32)),
        scene_views(images(9, 3)),
        drawing_views(images(9, 4), images(9, 3, 32)),
        line_views(images(9, 4)),
    ):
        assert views.shape == (9, 3, PIXELS, PIXELS)
        assert views.isfinite().all()
        assert views.min() >= 0
        assert views.max() <= 1


def test_a_sketch_is_white_where_nothing_changes_and_dark_along_an_edge() -> None:
    half = torch.zeros(1, 3, PIXELS, PIXELS)
    half[..., PIXELS // 2 :] = 1
    drawn = sketch(half)
    assert drawn[..., 5].min() == 1
    assert drawn[..., 0, :3].min() == 1
    assert drawn[..., PIXELS // 2].max() < 0.8


def test_a_mixed_images_target_is_still_a_distribution() -> None:
    views, targets = batches.cut_and_mix(torch.rand(9, 3, PIXELS, PIXELS), torch.rand(9, 30).softmax(1))
    assert views.shape == (9, 3, PIXELS, PIXELS)
    torch.testing.assert_close(targets.sum(1), torch.ones(9))


def test_every_image_of_a_batch_is_asked_about_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "SAMPLED_NAMES", 1)  # hardly any other name comes in by chance
    bank = torch.nn.functional.normalize(torch.randn(5000, 384), dim=-1)
    scene = batches.Source(images(40, 3), torch.arange(2500, 2540), torch.zeros(40, 1000).half(), torch.full((40,), -1))
    sources = {
        "scenes": scene,
        "coloured": batches.Source(images(40, 4), torch.arange(2000, 2040)),
        "line": batches.Source(images(40, 4), torch.arange(3000, 3040)),
    }
    batch = batches.draw(sources, bank, 20)
    views, targets, asked = batch.images, batch.targets, batch.asked
    assert views.shape == (len(targets), 3, PIXELS, PIXELS)
    torch.testing.assert_close(targets.sum(1), torch.ones(len(targets)))
    assert asked[:1000].tolist() == list(range(1000))
    named = targets.argmax(1)
    assert (asked[named] >= 2000).all()


def test_the_image_teachers_answer_is_held_to_the_label() -> None:
    bank = torch.nn.functional.normalize(torch.randn(1200, 384), dim=-1)
    logits = torch.zeros(1, 1000)
    logits[0, 7] = 8.0  # the teacher's mistake: nothing to do with the label, which is name 42
    source = batches.Source(images(2, 3), torch.tensor([42, 42]), logits.half(), torch.tensor([0, -1]))
    plain = (bank[[42, 42]] @ bank.T / batches.NAME_TEMPERATURE).softmax(1)
    both = batches.ask_both(source, torch.tensor([0, 1]), bank[[42, 42]], bank, plain)
    torch.testing.assert_close(both.sum(1), torch.ones(2))
    torch.testing.assert_close(both[1], plain[1])
    assert both[0].argmax() == 42
    assert both[0, 7] > plain[0, 7]


def test_a_view_of_a_scene_without_a_name_is_taught_by_the_image_teacher_alone() -> None:
    bank = torch.nn.functional.normalize(torch.randn(1200, 384), dim=-1)
    logits = torch.randn(2, 1000).half()
    source = batches.Source(images(2, 3), torch.tensor([-1, 42]), logits, torch.tensor([0, 1]))
    labelled = (bank[[-1, 42]] @ bank.T / batches.NAME_TEMPERATURE).softmax(1)
    both = batches.ask_both(source, torch.tensor([0, 1]), bank[[-1, 42]], bank, labelled)
    expected = (logits[0].float() / batches.TEACHER_TEMPERATURE).softmax(0)
    torch.testing.assert_close(both[0, :1000], expected)
    assert both[0, 1000:].eq(0).all()
    assert both[1].argmax() == 42


def test_attention_as_two_products_is_torchs_own() -> None:
    torch.manual_seed(0)
    usual = torch.nn.MultiheadAttention(32, 4, batch_first=True)
    quick = copy.deepcopy(usual)
    quick.__class__ = tower.QuickAttention
    tokens = torch.randn(3, 7, 32)
    expected, found = (module(tokens, tokens, tokens, need_weights=False)[0] for module in (usual, quick))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_a_view_of_a_scene_holds_the_drawing_that_it_is_named_after() -> None:
    torch.manual_seed(0)
    red = torch.zeros(1, 4, PIXELS, PIXELS, dtype=torch.uint8)
    red[:, [0, 3]] = 255
    green = torch.zeros(3, 90, 130, dtype=torch.uint8)
    green[1] = 255
    material = scenes.Material([green], red, torch.tensor([77]))
    for _ in range(40):
        view, name = scenes.make_view(material)
        assert view.shape == (3, scenes.SEEN_PIXELS, scenes.SEEN_PIXELS)
        assert (view.min(), view.max()) >= (-1e-5, 0)
        assert bool((view[0] - view[1] > 0.9).sum() > 1000) == (name == 77)


@pytest.mark.parametrize("held_out", [True, False])
def test_what_is_kept_for_choices_is_not_trained_on(held_out: bool, tmp_path: Path) -> None:
    torch.save([torch.full((3, 50, 50), i, dtype=torch.uint8) for i in range(30)], tmp_path / "scenes.pt")
    torch.save({"names": ["cat", "dog"]}, tmp_path / "bank.pt")
    drawn = torch.arange(26, dtype=torch.uint8)[:, None, None, None].expand(-1, 4, 2, 2)
    record = {"pixels": drawn, "names": ["cat", "dog"] * 13, "kinds": ["line"] + ["colour"] * 25}
    torch.save(record, tmp_path / "drawings.pt")
    material = scenes.load_material(tmp_path, held_out=held_out)
    pictures = {int(picture[0, 0, 0]) for picture in material.pictures}
    drawings = {int(drawing[0, 0, 0]) for drawing in material.drawings}
    assert pictures == ({0, 12, 24} if held_out else set(range(30)) - {0, 12, 24})
    assert drawings == ({1, 13, 25} if held_out else set(range(1, 26)) - {1, 13, 25})


def test_members_are_read_from_the_archives_of_both_registries(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        for name in ("package/two.jpg", "package/one.jpg", "package/one.txt"):
            entry = tarfile.TarInfo(name)
            entry.size = 3
            tar.addfile(entry, io.BytesIO(b"abc"))
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("data/one.jpg", b"abc")
    assert list(photographs.read_members(tmp_path / "a.tgz", ["*.jpg"])) == [
        ("package/one.jpg", b"abc"),
        ("package/two.jpg", b"abc"),
    ]
    assert list(photographs.read_members(tmp_path / "a.whl", ["data/*", "other"])) == [("data/one.jpg", b"abc")]


def test_no_picture_is_under_a_licence_that_binds_derivatives() -> None:
    listed = tomllib.loads(photographs.SOURCES.read_text(encoding="utf-8"))
    recorded = json.loads(SOURCES.read_text(encoding="utf-8"))
    for name, source in listed.items():
        assert not any(word in source["licence"] for word in ("SA", "GPL", "NC", "ND"))
        assert recorded[name]["licence"] == source["licence"]


def test_the_start_sees_an_image_as_the_smallest_tower_sees_it_at_half_the_size() -> None:
    visual, average = tower.build(), tower.build()
    tower.begin_with("fedmvp-tiny", visual, average, torch.nn.Linear(2, 2))
    small = load_embedded()[0].visual.eval()
    large = torch.rand(2, 3, 64, 64)
    shrunk = torch.nn.functional.avg_pool2d(large, 2)
    for module in (visual.eval(), average.eval()):
        module.proj = small.proj
        with torch.no_grad():
            torch.testing.assert_close(module(large), small(shrunk), atol=1e-4, rtol=1e-4)


def test_a_deepened_tower_sees_what_it_saw_until_it_is_trained(tmp_path: Path) -> None:
    shallow, guide = tower.build(), torch.nn.Linear(2, 2)
    saved = {"model": shallow.state_dict(), "average": shallow.state_dict(), "guide": guide.state_dict()}
    torch.save(saved, tmp_path / "start.pt")
    deep, average = tower.build(8), tower.build(8)
    tower.begin_with(str(tmp_path / "start.pt"), deep, average, guide)
    large = torch.rand(2, 3, PIXELS, PIXELS)
    for module in (deep.eval(), average.eval()):
        torch.testing.assert_close(module(large), shallow.eval()(large), atol=1e-4, rtol=1e-4)
    deep(large).square().sum().backward()
    assert all(parameter.grad.abs().sum() for name, parameter in deep.named_parameters() if "out_proj.weight" in name)
    with pytest.raises(SystemExit, match="multiple"):
        tower.begin_with(str(tmp_path / "start.pt"), tower.build(6), tower.build(6), guide)


def test_patches_are_guided_by_what_lies_in_their_place() -> None:
    torch.manual_seed(0)
    pixels = torch.zeros(6, 3, PIXELS, PIXELS, dtype=torch.uint8)
    pixels[..., :8] = 255  # the first column of patches
    middle = torch.zeros(6, 112, 8, 8, dtype=torch.int8)
    middle[..., 0] = 31
    guides = {"middle": middle, "deep": torch.zeros(6, 320, 4, 4, dtype=torch.int8)}
    images_seen, maps = batches.guided_views(pixels, guides, torch.arange(6))
    bright = torch.nn.functional.avg_pool2d(images_seen.mean(1), 8).flatten(1)
    marked = maps[..., 0] == 1
    assert marked.sum(1).tolist() == [8] * 6
    assert {int(row.nonzero()[0]) for row in marked} == {0, 7}  # mirrored in some
    plain = (bright.argmax(1) % 8)[:, None] == torch.arange(64) % 8
    assert (plain == marked).all(1).float().mean() > 0.5  # not where the view became a sketch


def test_training_sees_an_image_as_the_tower_does_when_no_patch_is_hidden() -> None:
    visual = tower.build()
    visual.patch_dropout.prob = 0.0
    large = torch.rand(3, 3, PIXELS, PIXELS)
    features, patches, shown = tower.see(visual, large)
    torch.testing.assert_close(features, visual.eval()(large * 2 - 1), atol=1e-4, rtol=1e-4)
    assert patches.shape == (3, 64, 160)
    assert shown.sort(1).values.tolist() == [list(range(64))] * 3


def test_a_tower_that_sees_the_names_is_always_right_among_ten_and_a_blind_one_in_a_tenth() -> None:
    torch.manual_seed(0)
    names = torch.nn.functional.normalize(torch.randn(256, 64), dim=-1)
    own = torch.arange(256)
    pixels = own[:, None, None, None].expand(-1, 3, 2, 2).byte()
    seeing = torch.nn.Module()
    seeing.forward = lambda images: names[((images[:, 0, 0, 0] + 1) * 127.5).round().long()]  # type: ignore[method-assign]
    blind = torch.nn.Module()
    blind.forward = lambda images: torch.randn(len(images), 64)  # type: ignore[method-assign]
    assert choices.tell(seeing, pixels, own, names) == 1.0
    assert choices.tell(blind, pixels, own, names) < 0.2


def test_names_come_from_public_tables() -> None:
    assert len(imagenet_names()) == 1000
    assert {"zebra", "violin"} <= known_words()
    assert all(" " in phrase for phrase in definitions()[:100])


def test_a_folder_of_domains_is_read_in_the_order_of_the_task(tmp_path: Path) -> None:
    from PIL import Image  # noqa: PLC0415

    task = domain_task()
    for number, item in enumerate(task.classes):
        (tmp_path / item.name).mkdir()
        Image.new("RGB", (20, 10), (number, 0, 0)).save(tmp_path / item.name / "one.png")
    pixels, labels = read_domain(tmp_path, tuple(c.name for c in task.classes), 16)
    assert pixels.shape == (len(task.classes), 3, 16, 16)
    assert labels.tolist() == pixels[:, 0, 0, 0].tolist()
    with pytest.raises(UserError, match="no folder"):
        read_domain(tmp_path, ("unicorn",), 16)
