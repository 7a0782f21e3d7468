from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from fedmvp.errors import ExitCode, UserError
from fedmvp.model.backbone import Backbone
from fedmvp.model.clip_library import open_clip
from fedmvp.model.embedded import build_clip
from fedmvp.model.loading import BackboneSpec, load_backbone, random_backbone
from fedmvp.model.supported import EMBEDDED_NAMES, refusal, require_supported, supported_names
from tests.model.tiny import random_images, tiny_backbone, tiny_config

SIZES = {
    "ViT-B-32": {"vision_width": 768, "joint_width": 512, "n_patches": 49, "n_layers": 12},
    "ViT-B-16": {"vision_width": 768, "joint_width": 512, "n_patches": 196, "n_layers": 12},
    "ViT-L-14": {"vision_width": 1024, "joint_width": 768, "n_patches": 256, "n_layers": 24},
}
ARCHITECTURE = "fedmvp-test-architecture"


@pytest.fixture
def architecture(tmp_path: Path) -> str:
    """A small architecture under a name of its own in open_clip's registry."""
    (tmp_path / f"{ARCHITECTURE}.json").write_text(json.dumps(tiny_config()))
    open_clip.add_model_config(tmp_path / f"{ARCHITECTURE}.json")
    return ARCHITECTURE


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_read_from_the_model_and_hold_for_its_tensors(name: str) -> None:
    config = require_supported(name)
    with torch.device("meta"):
        model = build_clip(config)
    model.visual.to_empty(device="cpu")
    with torch.no_grad():
        for value in model.visual.parameters():
            value.copy_(torch.randn(value.shape[-1]) * 0.02)  # one random row for all: the shapes are what is tested
    backbone = Backbone(
        _with_real_text(model),
        open_clip.SimpleTokenizer(),
        name=name,
        image_mean=(0.5,) * 3,
        image_std=(0.5,) * 3,
    )
    sizes = {key: getattr(backbone, key) for key in SIZES[name]}
    assert sizes == SIZES[name]
    assert backbone.image_size == 224
    tokens = backbone.embed(torch.zeros(1, 3, 224, 224))
    assert tokens.shape == (1, 1 + backbone.n_patches, backbone.vision_width)
    leaving = backbone.run_blocks(backbone.enter(tokens), stop=2)
    assert leaving.shape == tokens.shape
    assert backbone.project(leaving[:, 0]).shape == (1, backbone.joint_width)


def _with_real_text(model: torch.nn.Module) -> torch.nn.Module:
    """Give the text tower empty memory, so that the model as a whole can be moved."""
    for name, child in model.named_children():
        if name != "visual":
            child.to_empty(device="cpu")
    for name, value in list(model.named_parameters(recurse=False)):
        setattr(model, name, torch.nn.Parameter(torch.zeros(value.shape)))
    for name, value in list(model.named_buffers(recurse=False)):
        setattr(model, name, torch.zeros(value.shape))
    return model


def test_features_equal_those_of_open_clip() -> None:
    backbone = tiny_backbone()
    pixels = backbone.normalise(random_images(5))
    expected = F.normalize(backbone.model.encode_image(pixels), dim=-1)
    torch.testing.assert_close(backbone.encode_images(pixels), expected)


def test_pixels_are_normalised_by_the_backbones_own_statistics() -> None:
    backbone = tiny_backbone()
    white = backbone.normalise(torch.full((1, 3, 16, 16), 255, dtype=torch.uint8))
    expected = [(1 - mean) / std for mean, std in zip(backbone.image_mean, backbone.image_std, strict=True)]
    torch.testing.assert_close(white[0, :, 0, 0], torch.tensor(expected))


def test_no_parameter_of_a_backbone_is_trained() -> None:
    assert not any(value.requires_grad for value in tiny_backbone().model.parameters())


def test_the_state_hash_is_reproducible_and_sees_one_changed_weight() -> None:
    first, second = (random_backbone(tiny_config(), seed=1) for _ in range(2))
    assert first.state_hash() == second.state_hash()
    other = random_backbone(tiny_config(), seed=1)
    other.model.visual.proj.data[0, 0] += 1e-3
    assert other.state_hash() != first.state_hash()


def test_building_a_random_backbone_leaves_the_callers_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    random_backbone(tiny_config(), seed=1)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("RN50", "residual network"),
        ("ViT-B-16-SigLIP", "timm"),
        ("coca_ViT-B-32", "attention"),
        ("convnext_base", "timm"),
        ("no-such-model", "does not know"),
    ],
)
def test_a_tower_without_class_token_is_refused_with_the_list_of_what_works(name: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        load_backbone(BackboneSpec(name, "openai"))
    assert caught.value.exit_code is ExitCode.CONFIG
    for works in ("fedmvp-tiny", "ViT-B-32", "ViT-B-16", "ViT-L-14"):
        assert works in caught.value.remedy


def test_average_pooling_is_refused_even_where_open_clip_would_build_it() -> None:
    assert "avg" in (refusal(tiny_config(pool_type="avg")) or "")
    with pytest.raises(UserError, match="class token"):
        random_backbone(tiny_config(pool_type="avg"), seed=0)


def test_every_name_on_the_list_passes_the_check_it_stands_for() -> None:
    names = supported_names()
    assert len(names) > 20
    for name in names[len(EMBEDDED_NAMES) :]:
        require_supported(name)


def test_weights_that_cannot_be_downloaded_are_the_users_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> str:
        raise OSError("network is unreachable")

    monkeypatch.setattr(open_clip, "download_pretrained", no_network)
    with pytest.raises(UserError, match="could not be downloaded") as caught:
        load_backbone(BackboneSpec("ViT-B-32", "openai"))
    assert "checkpoint" in caught.value.remedy


def test_an_unknown_tag_is_refused_with_the_tags_that_exist() -> None:
    with pytest.raises(UserError, match="no pretrained tag 'openia'") as caught:
        load_backbone(BackboneSpec("ViT-B-32", "openia"))
    assert "openai" in caught.value.remedy


def test_a_backbone_without_any_weights_is_refused(architecture: str) -> None:
    with pytest.raises(UserError, match="has no weights"):
        load_backbone(BackboneSpec(architecture))


def test_a_local_checkpoint_gives_the_weights_it_holds(architecture: str, tmp_path: Path) -> None:
    saved = random_backbone(tiny_config(), seed=8)
    torch.save(saved.model.state_dict(), tmp_path / "weights.pt")
    spec = BackboneSpec(architecture, checkpoint=tmp_path / "weights.pt", sha256=saved.state_hash())
    assert load_backbone(spec).state_hash() == saved.state_hash()


def test_weights_of_another_hash_than_the_policy_pins_are_refused(architecture: str, tmp_path: Path) -> None:
    torch.save(random_backbone(tiny_config(), seed=8).model.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(UserError, match="the policy pins"):
        load_backbone(BackboneSpec(architecture, checkpoint=tmp_path / "weights.pt", sha256="0" * 64))


@pytest.mark.parametrize("kind", ["missing", "garbage", "other-architecture", "garbage-safetensors"])
def test_a_checkpoint_that_does_not_fit_is_the_users_message(kind: str, architecture: str, tmp_path: Path) -> None:
    path = tmp_path / ("weights.safetensors" if kind == "garbage-safetensors" else "weights.pt")
    if kind.startswith("garbage"):
        path.write_bytes(b"this is no checkpoint at all, only words")
    if kind == "other-architecture":
        torch.save(random_backbone(tiny_config(width=48), seed=0).model.state_dict(), path)
    with pytest.raises(UserError, match=str(path)):
        load_backbone(BackboneSpec(architecture, checkpoint=path))


def test_a_sentence_longer_than_the_text_tower_reads_is_refused_not_cut() -> None:
    with pytest.raises(UserError, match="has 40 tokens") as caught:
        tiny_backbone().encode_sentences(["a cat", "dog " * 40])
    assert "shorten" in caught.value.remedy


def test_sentences_are_normalised_and_do_not_depend_on_their_batch() -> None:
    backbone = tiny_backbone()
    sentences = [f"a photo of a dog number {n}" for n in range(300)]
    features = backbone.encode_sentences(sentences)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(300))
    torch.testing.assert_close(features[299:], backbone.encode_sentences(sentences[299:]))
