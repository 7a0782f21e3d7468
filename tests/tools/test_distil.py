"""The distilled backbone's own parts: names of drawings, views, targets, its start, and the record of its sources."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fedmvp.errors import UserError
from fedmvp.model.clip_library import open_clip
from fedmvp.model.embedded import embedded_data, load_embedded
from tools.pretrain.distil import vision
from tools.pretrain.distil.drawings import icon_name
from tools.pretrain.distil.export import DATA
from tools.pretrain.distil.measure import domain_task, read_domain
from tools.pretrain.distil.views import PIXELS, drawing_views, line_views, photo_views, sketch
from tools.pretrain.distil.words import definitions, imagenet_names, known_words

SOURCES = Path(vision.__file__).with_name("sources.json")


def images(count: int, channels: int, side: int = PIXELS) -> torch.Tensor:
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8)


def test_the_record_names_every_source_with_hash_and_licence_and_no_pacs() -> None:
    sources = json.loads(SOURCES.read_text(encoding="utf-8"))
    assert all(len(entry["sha256"]) == 64 and entry["licence"] for entry in sources.values())
    assert not any("pacs" in name.lower() for name in sources)
    assert not any("SA" in entry["licence"] or "GPL" in entry["licence"] for entry in sources.values())
    assert sum(entry.get("use") == "teacher, not shipped" for entry in sources.values()) == 2


def test_what_the_start_has_seen_is_in_the_list_of_what_the_tower_has_seen() -> None:
    assert set(embedded_data("fedmvp-tiny")) < set(DATA)
    assert not any("pacs" in entry for entry in DATA)


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
    views, targets = vision.cut_and_mix(torch.rand(9, 3, PIXELS, PIXELS), torch.rand(9, 30).softmax(1))
    assert views.shape == (9, 3, PIXELS, PIXELS)
    torch.testing.assert_close(targets.sum(1), torch.ones(9))


def test_every_image_of_a_batch_is_asked_about_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "SAMPLED_NAMES", 1)  # hardly any other name comes in by chance
    bank = torch.nn.functional.normalize(torch.randn(5000, 384), dim=-1)
    sources = {
        "clip art": vision.Source(images(40, 4), torch.arange(2000, 2040)),
        "line": vision.Source(images(40, 4), torch.arange(3000, 3040)),
    }
    views, targets, asked = vision.draw(sources, bank, 20)
    assert views.shape == (len(targets), 3, PIXELS, PIXELS)
    torch.testing.assert_close(targets.sum(1), torch.ones(len(targets)))
    assert asked[:1000].tolist() == list(range(1000))
    assert (asked[targets.argmax(1)] >= 2000).all()
    assert targets.max(1).values.min() > 0.9


def test_the_image_teachers_answer_is_held_to_the_label() -> None:
    bank = torch.nn.functional.normalize(torch.randn(1200, 384), dim=-1)
    logits = torch.zeros(1, 1000)
    logits[0, 7] = 8.0  # the teacher's mistake: nothing to do with the label, which is name 42
    source = vision.Source(images(2, 3), torch.tensor([42, 42]), logits.half(), torch.tensor([0, -1]))
    plain = (bank[[42, 42]] @ bank.T / vision.NAME_TEMPERATURE).softmax(1)
    both = vision.ask_both(source, torch.tensor([0, 1]), bank[[42, 42]], bank, plain)
    torch.testing.assert_close(both.sum(1), torch.ones(2))
    torch.testing.assert_close(both[1], plain[1])
    assert both[0].argmax() == 42
    assert both[0, 7] > plain[0, 7]


def test_the_start_sees_an_image_as_the_smaller_tower_sees_it_at_half_the_size() -> None:
    visual = open_clip.CLIP(**vision.CONFIG).visual.eval()
    vision.start_from_the_small_tower(visual)
    small = load_embedded()[0].visual.eval()
    large = torch.rand(2, 3, 64, 64)
    shrunk = torch.nn.functional.avg_pool2d(large, 2)
    visual.proj = small.proj
    with torch.no_grad():
        torch.testing.assert_close(visual(large), small(shrunk), atol=1e-4, rtol=1e-4)


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
