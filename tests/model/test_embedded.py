from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedmvp.errors import UserError
from fedmvp.model import embedded, loading
from fedmvp.model.clip_library import open_clip
from fedmvp.model.embedded import (
    embedded_data,
    embedded_weights,
    load_embedded,
    save_embedded,
)
from fedmvp.model.loading import BackboneSpec, load_backbone, random_backbone
from fedmvp.model.supported import EMBEDDED_NAMES
from tests.model.tiny import random_images, tiny_config

WORDS = "a photo of a cat"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A tiny model written the way pre-training writes it, with the words it was trained on."""
    tokenizer = open_clip.SimpleTokenizer()
    used = [*tokenizer.encode(WORDS), tokenizer.sot_token_id, tokenizer.eot_token_id]
    path = tmp_path / "fedmvp-tiny.safetensors"
    cfg = {**tiny_config(), "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
    save_embedded(random_backbone(tiny_config(), seed=4).model, cfg, path, used)
    return path


def load(path: Path) -> object:
    return load_backbone(BackboneSpec("fedmvp-tiny", "embedded", checkpoint=path))


@pytest.mark.parametrize("name", EMBEDDED_NAMES)
def test_a_model_in_the_package_loads_and_tells_the_words_of_its_captions_apart(name: str) -> None:
    backbone = load_backbone(BackboneSpec(name, "embedded"))
    features = backbone.encode_sentences(["a photo of a cat", "a photo of a truck", "a photo of a ship"])
    similar = features @ features.T
    assert (similar - similar.diag().diag()).max() < 0.95
    assert backbone.unknown_words(["a photo of a cat"]) == ()
    assert backbone.encode_images(backbone.normalise(random_images(2, size=backbone.image_size))).isfinite().all()


@pytest.mark.parametrize("name", EMBEDDED_NAMES)
def test_every_model_in_the_package_is_small_and_says_what_data_it_has_seen_and_none_has_seen_pacs(name: str) -> None:
    assert embedded_weights(name).stat().st_size < 16_000_000
    data = embedded_data(name)
    assert "fashion-mnist" in data
    assert all(entry == entry.lower() for entry in data)
    assert not any("pacs" in entry for entry in data)


def test_one_model_in_the_package_has_seen_nothing_of_cifar10() -> None:
    assert "cifar10" in embedded_data("fedmvp-tiny")
    assert not any("cifar" in entry for entry in embedded_data("fedmvp-unseen"))


@pytest.mark.parametrize("config", [None, "{", "{}", '{"data": "cifar10"}', '{"data": []}'])
def test_a_model_that_does_not_say_what_data_it_has_seen_is_refused(
    config: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_FOLDER", tmp_path)
    if config is not None:
        (tmp_path / "fedmvp-tiny.json").write_text(config)
    with pytest.raises(UserError, match="does not say what data"):
        embedded_data("fedmvp-tiny")


def test_another_embedded_model_is_loaded_by_its_name(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in (".safetensors", ".json"):
        saved.with_suffix(suffix).rename(saved.with_name(f"fedmvp-other{suffix}"))
    monkeypatch.setattr(embedded, "_FOLDER", saved.parent)
    monkeypatch.setattr(loading, "EMBEDDED_NAMES", ("fedmvp-tiny", "fedmvp-other"))
    backbone = load_backbone(BackboneSpec("fedmvp-other", "embedded"))
    assert backbone.name == "fedmvp-other"
    assert backbone.image_mean == (0.4, 0.5, 0.6)
    with pytest.raises(UserError, match="the policy pins"):
        load_backbone(BackboneSpec("fedmvp-other", "embedded", sha256="0" * 64))


def test_a_model_survives_being_written_and_read(saved: Path) -> None:
    original = random_backbone(tiny_config(), seed=4)
    backbone = load_backbone(BackboneSpec("fedmvp-tiny", "embedded", checkpoint=saved))
    pixels = original.normalise(random_images(4))
    torch.testing.assert_close(backbone.encode_images(pixels), original.encode_images(pixels), atol=5e-3, rtol=0)
    expected = original.encode_sentences([WORDS])
    torch.testing.assert_close(backbone.encode_sentences([WORDS]), expected, atol=5e-3, rtol=0)


def test_reading_twice_gives_the_same_state_hash(saved: Path) -> None:
    first, second = (load_backbone(BackboneSpec("fedmvp-tiny", checkpoint=saved)) for _ in range(2))
    assert first.state_hash() == second.state_hash()


def test_the_files_normalisation_is_the_backbones(saved: Path) -> None:
    backbone = load_backbone(BackboneSpec("fedmvp-tiny", "embedded", checkpoint=saved))
    assert (backbone.image_mean, backbone.image_std) == ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def test_only_used_token_rows_are_stored_and_the_others_come_back_as_zero(saved: Path) -> None:
    model, _ = load_embedded(saved)
    rows = (model.token_embedding.weight != 0).any(dim=1)
    assert int(rows.sum()) == len({*open_clip.SimpleTokenizer().encode(WORDS)}) + 2
    assert saved.stat().st_size < 400_000  # the full vocabulary alone would be 1.6 MB


def test_words_outside_the_stored_vocabulary_are_named(saved: Path) -> None:
    backbone = load_backbone(BackboneSpec("fedmvp-tiny", "embedded", checkpoint=saved))
    assert backbone.unknown_words([WORDS]) == ()
    assert backbone.unknown_words([WORDS, "a photo of a dog"]) == ("dog",)


@pytest.mark.parametrize("ids", [[], [-1, 5], [5, 49408]])
def test_token_ids_outside_the_vocabulary_are_not_written(ids: list[int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="token ids"):
        save_embedded(random_backbone(tiny_config(), seed=4).model, tiny_config(), tmp_path / "x.safetensors", ids)


def test_another_tag_than_embedded_is_refused(saved: Path) -> None:
    with pytest.raises(UserError, match="no weights called 'openai'"):
        load_backbone(BackboneSpec("fedmvp-tiny", "openai", checkpoint=saved))


@pytest.mark.parametrize("damage", ["no-config", "no-weights", "cut-weights", "other-config", "no-json", "no-rows"])
def test_damaged_package_data_is_one_message(damage: str, saved: Path) -> None:
    config = saved.with_suffix(".json")
    if damage == "no-config":
        config.unlink()
    elif damage == "no-weights":
        saved.unlink()
    elif damage == "cut-weights":
        saved.write_bytes(saved.read_bytes()[:1000])
    elif damage == "other-config":
        config.write_text(json.dumps(tiny_config(width=48)))
    elif damage == "no-json":
        config.write_text("{")
    else:
        save_file({k: v for k, v in load_file(str(saved)).items() if k != "token_embedding.rows"}, str(saved))
    with pytest.raises(UserError, match="embedded model") as caught:
        load(saved)
    assert "install fedmvp again" in caught.value.remedy
