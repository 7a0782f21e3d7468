"""The pre-training's own parts, and what its record says the embedded backbone saw."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fedmvp.study.policy import parse_policy
from tools.pretrain import augment
from tools.pretrain.corpus import described_concepts, read_concepts
from tools.pretrain.muon import Muon, orthogonalise

ROOT = Path(__file__).resolve().parents[2]
CHANNELS = {"photos": 3, "clothes": 1, "emoji": 4, "glyphs": 1, "scans": 1}


def test_the_record_of_sources_names_no_mnist_but_fashion_mnist() -> None:
    sources = json.loads((ROOT / "tools" / "pretrain" / "sources.json").read_text())

    assert len(sources) > 100
    assert [name for name in sources if "mnist" in name.lower() and not name.startswith("fashion-mnist/")] == []
    assert all(len(entry["sha256"]) == 64 for entry in sources.values())


def test_every_described_class_has_captions_with_its_attributes() -> None:
    concepts = described_concepts()

    assert len(concepts.names) == 30
    for group in read_concepts().values():
        for name, words in group.items():
            captions = concepts.captions[concepts.names.index(name)]
            assert all(any(attribute in caption for caption in captions) for attribute in words["attributes"])


def test_the_demos_attribute_sentences_are_those_of_the_concepts() -> None:
    policy = parse_policy((ROOT / "demo" / "policy.toml").read_bytes())

    assert {item.name: list(item.attributes) for item in policy.task.classes} == {
        name: words["attributes"] for name, words in read_concepts()["digits"].items()
    }


@pytest.mark.parametrize("name", list(CHANNELS))
def test_a_view_is_a_small_colour_image_between_black_and_white(name: str) -> None:
    side = {"photos": 32, "clothes": 28, "emoji": 40, "glyphs": 48, "scans": 8}[name]
    pixels = torch.randint(0, 256, (6, CHANNELS[name], side, side), dtype=torch.uint8)
    views = augment.view(name, pixels)

    assert views.shape == (6, 3, 32, 32)
    assert torch.isfinite(views).all()
    assert views.min() > -0.3
    assert views.max() < 1.3


def test_a_source_without_an_augmentation_is_refused() -> None:
    with pytest.raises(ValueError, match="no augmentation"):
        augment.view("portraits", torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_orthogonalising_brings_singular_values_near_one() -> None:
    matrices = torch.randn(3, 8, 24, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices))

    assert values.min() > 0.5
    assert values.max() < 1.5
    assert torch.linalg.svdvals(matrices).max() > 2


def test_muon_goes_downhill_on_a_quadratic() -> None:
    target = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    matrix = torch.nn.Parameter(torch.zeros(6, 4))
    optimizer = Muon([matrix], lr=0.2, weight_decay=0.0)
    first = None
    for _ in range(60):
        loss = (matrix - target).square().sum()
        first = loss.item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    assert loss.item() < 0.2 * first
