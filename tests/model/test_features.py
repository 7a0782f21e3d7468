from __future__ import annotations

import stat
from pathlib import Path

import pytest
import torch

from fedmvp.model.features import extract_features, images_digest
from fedmvp.model.prompt_config import Injection, NeutralStart, Variant
from fedmvp.model.prompted import PromptedModel
from tests.model.tiny import CHOICES, random_images, tiny_backbone, tiny_model

IMAGES = random_images(7)


@pytest.mark.parametrize(("variant", "injection", "start"), CHOICES)
def test_features_are_what_the_model_reads_and_do_not_depend_on_the_batch(
    variant: Variant, injection: Injection, start: NeutralStart
) -> None:
    model = tiny_model(variant, injection, start, flip=True, consistency_weight=1.0)
    whole, parts = extract_features(model, IMAGES), extract_features(model, IMAGES, batch_size=3)
    assert set(model.feature_names) == set(whole.tensors)
    assert len(whole) == 7
    for name in model.feature_names:
        torch.testing.assert_close(whole.tensors[name], parts.tensors[name], atol=1e-5, rtol=1e-4)


def test_a_second_extraction_reads_the_cache_and_the_tower_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    first = extract_features(model, IMAGES, cache_dir=tmp_path / "cache")

    def refuse(*_: object) -> None:
        raise AssertionError("the tower ran again")

    monkeypatch.setattr(PromptedModel, "summarise", refuse)
    calls: list[tuple[int, int]] = []
    second = extract_features(
        model, IMAGES, cache_dir=tmp_path / "cache", progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(7, 7)]
    for name, value in first.tensors.items():
        assert torch.equal(value, second.tensors[name])
    with pytest.raises(AssertionError, match="ran again"):
        extract_features(model, random_images(7, seed=1), cache_dir=tmp_path / "cache")
    with pytest.raises(AssertionError, match="ran again"):
        extract_features(tiny_model(injection=Injection.INPUT), IMAGES, cache_dir=tmp_path / "cache")
    with pytest.raises(AssertionError, match="ran again"):
        extract_features(tiny_model(n_prompts=8), IMAGES, cache_dir=tmp_path / "cache")


def test_the_anchor_is_never_taken_from_another_start(tmp_path: Path) -> None:
    first = extract_features(tiny_model(), IMAGES, cache_dir=tmp_path)
    other = extract_features(tiny_model(initial_seed=7), IMAGES, cache_dir=tmp_path)
    assert torch.equal(first.tensors["zero_shot"], other.tensors["zero_shot"])
    assert not torch.allclose(first.tensors["anchor"], other.tensors["anchor"], atol=1e-4)


def test_a_damaged_cache_file_is_computed_again(tmp_path: Path) -> None:
    first = extract_features(tiny_model(), IMAGES, cache_dir=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:500])
    again = extract_features(tiny_model(), IMAGES, cache_dir=tmp_path)
    assert torch.equal(first.tensors["zero_shot"], again.tensors["zero_shot"])
    assert file.stat().st_size > 500


def test_cached_features_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    extract_features(tiny_model(), IMAGES, cache_dir=tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700


def test_progress_counts_up_to_all_images() -> None:
    calls: list[tuple[int, int]] = []
    extract_features(tiny_model(), IMAGES, batch_size=3, progress=lambda done, total: calls.append((done, total)))
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert calls[0] == (3, 7)
    assert calls[-1] == (7, 7)


def test_the_target_is_the_mean_of_the_plain_and_the_mirrored_view() -> None:
    model = tiny_model(flip=True, consistency_weight=10.0)
    backbone = tiny_backbone()
    mirrored = backbone.encode_images(backbone.normalise(IMAGES.flip(-1)))
    features = extract_features(model, IMAGES).tensors
    torch.testing.assert_close(features["target"], (features["zero_shot"] + mirrored) / 2, atol=1e-5, rtol=1e-4)
    assert "target" not in extract_features(tiny_model(consistency_weight=10.0), IMAGES).tensors


def test_the_digest_sees_one_pixel_and_the_order() -> None:
    changed = IMAGES.clone()
    changed[3, 1, 2, 2] ^= 1
    assert images_digest(IMAGES) == images_digest(IMAGES.clone())
    assert len({images_digest(IMAGES), images_digest(changed), images_digest(IMAGES.flip(0))}) == 3
