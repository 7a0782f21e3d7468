"""PromptFormer: image tokens attend to attribute features and become visual prompts (FedMVP, ICCV 2025, section 3).

Three variants, one interface: `prepare` is the part without trained parameters, done once for each image; `forward`
maps what it returns and the attributes, which all images share, to prompts. There is no `nn.MultiheadAttention` and no
batch statistic, and what is shared is expanded inside `SharedLinear`, so every gradient splits by sample. Where nothing
is trained, `keys_and_values` does the attributes' part once for a class set and `answer` the images' part.
"""

from __future__ import annotations

from typing import Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedmvp.model.attention import KeysAndValues, attend, attend_to_shared, in_rows
from fedmvp.model.initial import orthogonal
from fedmvp.model.prompt_config import PromptConfig, Variant
from fedmvp.model.shared_linear import SharedLinear

_QUERY_GAIN = 3.0
"""Makes the attention sharp enough at the start that prompts differ by image; found necessary by measurement."""


class PromptModule(Protocol):
    """What every variant offers."""

    def prepare(self, tokens: Tensor) -> Tensor:
        """Map patch tokens (b, n_patches, vision_width) to what `forward` conditions on, by no trained parameter."""

    def __call__(self, prepared: Tensor, attributes: Tensor) -> Tensor:
        """Map these and attributes (n_attributes, joint_width) to prompts (b, n_prompts, vision_width)."""

    def keys_and_values(self, attributes: Tensor) -> KeysAndValues:
        """Map attributes (n_attributes, joint_width) to what the attention reads of them, at the present parameters."""

    def answer(self, prepared: Tensor, shared: KeysAndValues, *, keys_at_once: int | None = None) -> Tensor:
        """Return what `__call__` returns, up to rounding, from keys and values; `keys_at_once` as in the attention."""


class PromptFormer(nn.Module):
    """The paper's module: cross-attention without residual, a gated feed-forward layer, pooling to the prompts."""

    def __init__(self, config: PromptConfig, *, vision_width: int, joint_width: int) -> None:
        super().__init__()
        self.n_prompts = config.n_prompts
        self.n_heads = config.n_heads
        self.attribute_projection = SharedLinear(joint_width, vision_width)
        self.token_norm = nn.LayerNorm(vision_width)
        self.attribute_norm = nn.LayerNorm(vision_width)
        self.query = nn.Linear(vision_width, vision_width)
        self.key = nn.Linear(vision_width, vision_width)
        self.value = nn.Linear(vision_width, vision_width)
        self.output = nn.Linear(vision_width, vision_width)
        self.feed_forward_norm = nn.LayerNorm(vision_width)
        self.gate_and_value = nn.Linear(vision_width, 8 * vision_width)
        self.contract = nn.Linear(4 * vision_width, vision_width)

    def prepare(self, tokens: Tensor) -> Tensor:
        """Return the patch tokens as they are: the first layer is a trained norm."""
        return tokens

    def forward(self, prepared: Tensor, attributes: Tensor) -> Tensor:
        """Return the prompts (b, n_prompts, vision_width)."""
        projected = self.attribute_projection(attributes, prepared)  # (b, n_attributes, vision_width)
        query = self.query(self.token_norm(prepared))
        key = self.key(self.attribute_norm(projected))
        return self.finish(attend(query, key, self.value(projected), self.n_heads))

    def keys_and_values(self, attributes: Tensor) -> KeysAndValues:
        """Return keys and values (n_attributes, vision_width)."""

        def make(rows: Tensor) -> tuple[Tensor, Tensor]:
            projected = self.attribute_projection.project(rows)
            return self.key(self.attribute_norm(projected)), self.value(projected)

        return in_rows(make, attributes)

    def answer(self, prepared: Tensor, shared: KeysAndValues, *, keys_at_once: int | None = None) -> Tensor:
        """Return the prompts (b, n_prompts, vision_width)."""
        query = self.query(self.token_norm(prepared))
        return self.finish(attend_to_shared(query, shared, self.n_heads, keys_at_once=keys_at_once))

    def finish(self, mixed: Tensor) -> Tensor:
        """Project, feed forward and pool what the attention returned (b, n_patches, vision_width)."""
        attended = self.output(mixed)
        hidden, gate = self.gate_and_value(self.feed_forward_norm(attended)).chunk(2, dim=-1)
        refined = attended + self.contract(hidden * F.gelu(gate))
        return pool_tokens(refined, self.n_prompts)


class NarrowPromptFormer(nn.Module):
    """Attention through a bottleneck: 4 matrices of (width, bottleneck) and two of (bottleneck, bottleneck).

    Tokens are normalised and pooled to one query a prompt before the attention, so what an image contributes is small
    enough to keep for all images; norms have no parameters and layers no biases, since each parameter costs noise.
    """

    def __init__(self, config: PromptConfig, *, vision_width: int, joint_width: int) -> None:
        super().__init__()
        width = config.bottleneck_width
        self.n_prompts = config.n_prompts
        self.n_heads = config.n_heads
        self.attribute_projection = SharedLinear(joint_width, width, bias=False)
        self.query = nn.Linear(vision_width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, vision_width, bias=False)

    def prepare(self, tokens: Tensor) -> Tensor:
        """Return normalised tokens, pooled to one a prompt: (b, n_prompts, vision_width)."""
        return pool_tokens(F.layer_norm(tokens, tokens.shape[-1:]), self.n_prompts)

    def forward(self, prepared: Tensor, attributes: Tensor) -> Tensor:
        """Return the prompts (b, n_prompts, vision_width)."""
        projected = self.attribute_projection(attributes, prepared)  # (b, n_attributes, bottleneck_width)
        key = self.key(F.layer_norm(projected, projected.shape[-1:]))
        prompts: Tensor = self.output(attend(self.query(prepared), key, self.value(projected), self.n_heads))
        return prompts

    def keys_and_values(self, attributes: Tensor) -> KeysAndValues:
        """Return keys and values (n_attributes, bottleneck_width)."""

        def make(rows: Tensor) -> tuple[Tensor, Tensor]:
            projected = self.attribute_projection.project(rows)
            return self.key(F.layer_norm(projected, projected.shape[-1:])), self.value(projected)

        return in_rows(make, attributes)

    def answer(self, prepared: Tensor, shared: KeysAndValues, *, keys_at_once: int | None = None) -> Tensor:
        """Return the prompts (b, n_prompts, vision_width)."""
        mixed = attend_to_shared(self.query(prepared), shared, self.n_heads, keys_at_once=keys_at_once)
        prompts: Tensor = self.output(mixed)
        return prompts


class LowRankPair(nn.Module):
    """A trained correction of low rank to a frozen linear layer; zero at the start."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the correction for inputs (..., width)."""
        correction: Tensor = self.up(self.down(inputs))
        return correction


class LoraPromptFormer(nn.Module):
    """A frozen PromptFormer whose query, key and value inputs have trained low-rank pairs."""

    def __init__(self, config: PromptConfig, *, vision_width: int, joint_width: int) -> None:
        super().__init__()
        self.frozen = PromptFormer(config, vision_width=vision_width, joint_width=joint_width).requires_grad_(False)
        self.query_pair = LowRankPair(vision_width, config.lora_rank)
        self.key_pair = LowRankPair(vision_width, config.lora_rank)
        self.value_pair = LowRankPair(vision_width, config.lora_rank)

    def prepare(self, tokens: Tensor) -> Tensor:
        """Return the tokens through the frozen norm."""
        with torch.no_grad():
            normalised: Tensor = self.frozen.token_norm(tokens)
        return normalised

    def forward(self, prepared: Tensor, attributes: Tensor) -> Tensor:
        """Return the prompts (b, n_prompts, vision_width)."""
        frozen = self.frozen
        projected = frozen.attribute_projection(attributes, prepared)
        normalised = frozen.attribute_norm(projected[:1]).expand_as(
            projected
        )  # nothing trained yet: one copy is enough
        query = frozen.query(prepared) + self.query_pair(prepared)
        key = frozen.key(normalised[:1]) + self.key_pair(normalised)
        value = frozen.value(projected[:1]) + self.value_pair(projected)
        return frozen.finish(attend(query, key, value, frozen.n_heads))

    def keys_and_values(self, attributes: Tensor) -> KeysAndValues:
        """Return keys and values (n_attributes, vision_width)."""
        frozen = self.frozen

        def make(rows: Tensor) -> tuple[Tensor, Tensor]:
            projected = frozen.attribute_projection.project(rows)
            normalised = frozen.attribute_norm(projected)
            key = frozen.key(normalised) + self.key_pair(normalised)
            return key, frozen.value(projected) + self.value_pair(projected)

        return in_rows(make, attributes)

    def answer(self, prepared: Tensor, shared: KeysAndValues, *, keys_at_once: int | None = None) -> Tensor:
        """Return the prompts (b, n_prompts, vision_width)."""
        query = self.frozen.query(prepared) + self.query_pair(prepared)
        return self.frozen.finish(attend_to_shared(query, shared, self.frozen.n_heads, keys_at_once=keys_at_once))


def build_promptformer(config: PromptConfig, *, vision_width: int, joint_width: int) -> nn.Module:
    """Build and initialise the module of a configuration; the same numbers on every machine.

    Returns:
        A module that satisfies `PromptModule`.
    """
    kinds = {Variant.FULL: PromptFormer, Variant.NARROW: NarrowPromptFormer, Variant.LORA: LoraPromptFormer}
    module: nn.Module = kinds[config.variant](config, vision_width=vision_width, joint_width=joint_width)
    initialise(module, config.initial_seed)
    return module


def initialise(module: nn.Module, seed: int) -> None:
    """Set orthogonal weights, zero biases, sharper queries, zero low-rank outputs.

    Torch's default initialisation collapses: prompts come out equal for every image and nothing is learned. The draws
    come from numpy in float64 and depend on the layer's name, so that platforms and orders of construction agree.
    """
    for name, layer in module.named_modules():
        if not isinstance(layer, nn.Linear) or layer.weight.is_meta:
            continue
        gain = _QUERY_GAIN if name.rsplit(".", 1)[-1] == "query" else 1.0
        weight = (
            np.zeros(layer.weight.shape) if name.endswith("_pair.up") else orthogonal(layer.weight.shape, name, seed)
        )
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(gain * weight))
            if layer.bias is not None:
                layer.bias.zero_()


def pool_tokens(tokens: Tensor, n_prompts: int) -> Tensor:
    """Average tokens (b, n, width) in raster order down to (b, n_prompts, width)."""
    if torch.are_deterministic_algorithms_enabled():  # the pool's own way back has no such algorithm on CUDA
        each = torch.eye(tokens.shape[1], dtype=tokens.dtype, device=tokens.device)[None]
        return F.adaptive_avg_pool1d(each, n_prompts)[0].T @ tokens
    return F.adaptive_avg_pool1d(tokens.transpose(1, 2), n_prompts).transpose(1, 2)


def as_prompt_module(module: nn.Module) -> PromptModule:
    """Return a built module under its interface, for the type checker."""
    return cast("PromptModule", module)
