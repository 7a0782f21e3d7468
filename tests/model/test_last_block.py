from __future__ import annotations

import pytest
import torch

from fedmvp.model.last_block import LastBlock
from fedmvp.model.loading import random_backbone
from tests.model.tiny import random_images, tiny_config


@pytest.mark.parametrize("vision", [{}, {"ls_init_value": 0.3}, {"head_width": 8}], ids=["plain", "scaled", "4-heads"])
def test_the_short_way_equals_running_the_whole_block_on_all_tokens(vision: dict[str, float]) -> None:
    backbone = random_backbone(tiny_config(**vision), seed=2)
    torch.nn.init.normal_(backbone.last_block.attn.in_proj_bias)  # open_clip starts it at zero, trained towers do not
    tokens = backbone.run_blocks(backbone.enter(backbone.embed(backbone.normalise(random_images(3)))), stop=-1)
    prompts = torch.randn(3, 4, backbone.vision_width)
    tail = LastBlock(backbone)
    whole = backbone.last_block(torch.cat([tokens, prompts], dim=1))
    expected = backbone.project(whole[:, 0])
    torch.testing.assert_close(tail(prompts, tail.summarise(tokens)), expected, atol=1e-5, rtol=1e-5)
    unprompted = backbone.project(backbone.last_block(tokens)[:, 0])
    assert (expected - unprompted).abs().max() > 1e-3  # prompts matter here, so the comparison means something


def test_gradients_of_the_short_way_equal_those_of_the_whole_block() -> None:
    backbone = random_backbone(tiny_config(), seed=2)
    tokens = backbone.run_blocks(backbone.enter(backbone.embed(backbone.normalise(random_images(3)))), stop=-1)
    prompts = torch.randn(3, 4, backbone.vision_width, requires_grad=True)
    direction = torch.randn(3, backbone.joint_width)
    tail = LastBlock(backbone)
    (short,) = torch.autograd.grad((tail(prompts, tail.summarise(tokens)) * direction).sum(), prompts)
    whole = backbone.project(backbone.last_block(torch.cat([tokens, prompts], dim=1))[:, 0])
    (expected,) = torch.autograd.grad((whole * direction).sum(), prompts)
    torch.testing.assert_close(short, expected, atol=1e-5, rtol=1e-4)
