from __future__ import annotations

import pytest
import torch
from torch import nn

from fedmvp.errors import UserError
from fedmvp.model.parameters import dimension
from fedmvp.model.prompt_config import PromptConfig, Variant
from fedmvp.model.promptformer import as_prompt_module, build_promptformer, pool_tokens
from tests.model.tiny import tiny_bank

WIDTH, JOINT = 48, 24


def build(variant: Variant, **other: int) -> nn.Module:
    config = PromptConfig(variant, n_prompts=4, n_heads=2, bottleneck_width=8, **other)  # type: ignore[arg-type]
    return build_promptformer(config, vision_width=WIDTH, joint_width=JOINT)


def inputs(batch: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(2)
    tokens = torch.randn(batch, 16, WIDTH, generator=draws)
    return tokens, tiny_bank().conditioning


@pytest.mark.parametrize(
    ("variant", "count"),
    [(Variant.FULL, 9_845_760), (Variant.LORA, 36_864), (Variant.NARROW, 8 * (3 * 768 - 256) + 2 * 64)],
)
def test_trained_parameters_at_the_size_of_vit_b_16(variant: Variant, count: int) -> None:
    with torch.device("meta"):
        module = build_promptformer(PromptConfig(variant, bottleneck_width=8), vision_width=768, joint_width=512)
    assert dimension(module) == count


def test_the_narrow_variant_has_under_five_thousand_parameters_on_the_embedded_width() -> None:
    config = PromptConfig(Variant.NARROW, bottleneck_width=8)
    assert dimension(build_promptformer(config, vision_width=192, joint_width=192)) == 4736


@pytest.mark.parametrize("variant", Variant)
def test_prompts_have_the_shape_of_vision_tokens(variant: Variant) -> None:
    tokens, attributes = inputs()
    module = as_prompt_module(build(variant))
    assert module(module.prepare(tokens), attributes).shape == (6, 4, WIDTH)


@pytest.mark.parametrize("variant", Variant)
def test_prompts_differ_by_image_and_by_attributes_from_the_start(variant: Variant) -> None:
    tokens, attributes = inputs()
    module = as_prompt_module(build(variant))
    prompts = module(module.prepare(tokens), attributes)
    scale = prompts.square().mean().sqrt()
    assert prompts.std(dim=0).mean() > 0.1 * scale
    other = module(module.prepare(tokens), attributes.roll(1, dims=-1))
    assert (prompts - other).square().mean().sqrt() > 0.1 * scale


@pytest.mark.parametrize("variant", Variant)
def test_raw_attributes_and_torchs_own_initialisation_would_make_all_prompts_alike(variant: Variant) -> None:
    """The contrast that the test above stands on: what it measures does see the collapse."""
    tokens, _ = inputs()
    torch.manual_seed(0)
    raw = tiny_bank().attributes[tiny_bank().mask]
    module = build(variant)
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    prompts = as_prompt_module(module)(as_prompt_module(module).prepare(tokens), raw)
    assert prompts.std(dim=0).mean() < 0.1 * prompts.square().mean().sqrt()


@pytest.mark.parametrize("variant", Variant)
def test_the_start_depends_on_the_seed_of_the_policy_alone(variant: Variant) -> None:
    torch.manual_seed(1)
    first = build(variant).state_dict()
    torch.manual_seed(2)
    second, other = build(variant).state_dict(), build(variant, initial_seed=9).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_queries_start_orthogonal_and_three_times_as_large_and_biases_at_zero() -> None:
    module = build(Variant.FULL)
    torch.testing.assert_close(module.query.weight @ module.query.weight.T, 9 * torch.eye(WIDTH), atol=1e-4, rtol=0)
    torch.testing.assert_close(module.key.weight @ module.key.weight.T, torch.eye(WIDTH), atol=1e-5, rtol=0)
    assert all(not layer.bias.any() for layer in module.modules() if isinstance(layer, nn.Linear))


def test_low_rank_pairs_start_as_no_correction() -> None:
    tokens, attributes = inputs()
    module = build(Variant.LORA)
    frozen = module.frozen
    torch.testing.assert_close(module(module.prepare(tokens), attributes), frozen(tokens, attributes))
    assert all(not value.requires_grad for value in frozen.parameters())


@pytest.mark.parametrize("variant", Variant)
def test_no_layer_has_gradients_that_do_not_split_by_sample(variant: Variant) -> None:
    banned = (nn.MultiheadAttention, nn.modules.batchnorm._BatchNorm)
    assert not any(isinstance(layer, banned) for layer in build(variant).modules())
    assert not list(build(variant).buffers())


def test_pooling_averages_neighbouring_tokens() -> None:
    tokens = torch.arange(8.0).view(1, 8, 1)
    torch.testing.assert_close(pool_tokens(tokens, 4), torch.tensor([[[0.5], [2.5], [4.5], [6.5]]]))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PromptConfig(Variant.NARROW, bottleneck_width=10, n_heads=4), "bottleneck_width 10"),
        (PromptConfig(Variant.FULL, n_heads=5), "vision width 32"),
        (PromptConfig(Variant.NARROW, n_prompts=17), "17 is more than the 16 patches"),
    ],
)
def test_sizes_that_do_not_fit_the_backbone_are_the_users_message(config: PromptConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.check_widths(vision_width=32, n_patches=16)
