from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fedmvp.errors import UserError
from fedmvp.model.features import extract_features
from fedmvp.model.prompt_config import Injection, NeutralStart, Variant
from fedmvp.model.promptformer import as_prompt_module
from tests.model.tiny import CHOICES, disturb, random_images, tiny_backbone, tiny_model

IMAGES = random_images(6)


@pytest.mark.parametrize(("variant", "injection", "start"), CHOICES)
def test_before_training_the_feature_is_exactly_zero_shot_clips(
    variant: Variant, injection: Injection, start: NeutralStart
) -> None:
    model = tiny_model(variant, injection, start)
    features = extract_features(model, IMAGES).tensors
    with torch.no_grad():
        assert torch.equal(model(features), F.normalize(features["zero_shot"], dim=-1))
        one = {name: value[2:3] for name, value in features.items()}  # the anchor came from another batch
        torch.testing.assert_close(model(one), features["zero_shot"][2:3], atol=1e-6, rtol=0)
    pixels = tiny_backbone().normalise(IMAGES)
    torch.testing.assert_close(features["zero_shot"], tiny_backbone().encode_images(pixels), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("variant", "injection", "start"), CHOICES)
def test_trained_parameters_move_the_feature_and_each_image_differently(
    variant: Variant, injection: Injection, start: NeutralStart
) -> None:
    model = tiny_model(variant, injection, start)
    features = extract_features(model, IMAGES).tensors
    disturb(model)
    with torch.no_grad():
        moved = model(features) - features["zero_shot"]
    torch.testing.assert_close((moved + features["zero_shot"]).norm(dim=-1), torch.ones(6))
    assert moved.norm(dim=-1).min() > 1e-3
    assert moved.std(dim=0).max() > 1e-4


@pytest.mark.parametrize("injection", Injection)
def test_the_prompted_feature_is_the_towers_own_with_prompts_among_its_tokens(injection: Injection) -> None:
    backbone, model = tiny_backbone(), tiny_model(injection=injection, start=NeutralStart.MIX)
    disturb(model)
    model.gate.weight.data.fill_(20.0)  # tanh(20) is 1 in float32: the prompted feature alone
    features = extract_features(model, IMAGES).tensors
    attributes = model.bank.conditioning
    promptformer = as_prompt_module(model.promptformer)
    with torch.no_grad():
        tokens = backbone.embed(backbone.normalise(IMAGES))
        if injection is Injection.LAST_BLOCK:
            tokens = backbone.run_blocks(backbone.enter(tokens), stop=-1)
            prompts = promptformer(promptformer.prepare(tokens[:, 1:]), attributes)
            leaving = backbone.last_block(torch.cat([tokens, prompts], dim=1))
        else:
            prompts = promptformer(promptformer.prepare(tokens[:, 1:]), attributes)
            leaving = backbone.run_blocks(backbone.enter(torch.cat([tokens, prompts], dim=1)))
        torch.testing.assert_close(model(features), backbone.project(leaving[:, 0]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("variant", "injection", "start"), CHOICES)
def test_only_the_prompt_module_and_the_gate_are_registered(
    variant: Variant, injection: Injection, start: NeutralStart
) -> None:
    model = tiny_model(variant, injection, start)
    extract_features(model, IMAGES)
    names = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert names == ({"promptformer", "gate"} if start is NeutralStart.MIX else {"promptformer"})
    assert not list(model.buffers())


def test_the_anchor_stays_at_the_initial_parameters_when_training_moves_on() -> None:
    model = tiny_model()
    before = extract_features(model, IMAGES).tensors["anchor"]
    disturb(model)
    assert torch.equal(extract_features(model, IMAGES).tensors["anchor"], before)


def test_logits_are_the_scaled_product_with_the_classifier() -> None:
    model = tiny_model()
    feature = F.normalize(torch.randn(2, 24), dim=-1)
    expected = tiny_backbone().logit_scale * feature @ model.bank.classifier.T
    torch.testing.assert_close(model.logits(feature), expected)


def test_a_choice_that_does_not_fit_the_backbone_is_refused_when_the_model_is_built() -> None:
    with pytest.raises(UserError, match="n_heads 3"):
        tiny_model(n_heads=3)
