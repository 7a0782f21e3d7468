from __future__ import annotations

import pytest
import torch

from fedmvp.model.features import extract_features
from fedmvp.model.prompt_config import Injection, NeutralStart, Variant
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
