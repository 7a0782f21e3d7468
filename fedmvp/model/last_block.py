"""The tower's last block for a class token that also sees prompts, at the cost of the prompts alone.

Only the class token leaves the last block. Its attention over old and new tokens is a softmax over both, and a softmax
splits: the old tokens enter as one weight (the log of their total mass) and one averaged value for each head, both
frozen and computed once for each image. Keys of prompts are never formed either: the frozen query is folded through
the key matrix beforehand. The result equals running the whole block on [class token, patches, prompts] up to rounding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fedmvp.model.backbone import Backbone

TAIL_NAMES = ("class_token", "folded_query", "query_bias", "attended", "log_mass")
"""What `LastBlock.summarise` returns and `LastBlock.__call__` takes, in order."""


class LastBlock:
    """Last block, final norm and projection of a frozen backbone."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._block = backbone.last_block
        attention = self._block.attn
        self._n_heads = n_heads = int(attention.num_heads)
        query_weight, key_weight, value_weight = attention.in_proj_weight.chunk(3)
        query_bias, key_bias, value_bias = attention.in_proj_bias.chunk(3)
        width = query_weight.shape[0]
        self._query_weight, self._query_bias = query_weight, query_bias
        self._flat_value_weight, self._flat_value_bias = value_weight, value_bias
        self._key_weight = key_weight.reshape(n_heads, width // n_heads, width)
        self._value_weight = value_weight.reshape(n_heads, width // n_heads, width)
        self._key_bias = key_bias.reshape(n_heads, width // n_heads)
        self._value_bias = value_bias.reshape(n_heads, width // n_heads)

    @property
    def summary_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what `summarise` returns, without the dimension of the images."""
        n_heads, head_width, width = self._key_weight.shape
        return dict(
            zip(TAIL_NAMES, ((width,), (n_heads, width), (n_heads,), (n_heads, head_width), (n_heads,)), strict=True)
        )

    def summarise(self, tokens: Tensor) -> dict[str, Tensor]:
        """Reduce the tokens that enter the last block to what its class token needs of them.

        Args:
            tokens: (b, 1 + n_patches, vision_width), class token first.

        Returns:
            By the names of `TAIL_NAMES`: (b, vision_width), (b, n_heads, vision_width), (b, n_heads),
            (b, n_heads, head_width), (b, n_heads).
        """
        inputs = self._block.ln_1(tokens)
        query = self._by_head(F.linear(inputs[:, 0], self._query_weight, self._query_bias))
        query = query * query.shape[-1] ** -0.5  # (b, n_heads, head_width)
        folded = torch.einsum("bhe,hed->bhd", query, self._key_weight)
        query_bias = torch.einsum("bhe,he->bh", query, self._key_bias)
        logits = torch.einsum("bhd,bnd->bhn", folded, inputs) + query_bias[..., None]
        value = self._by_head(F.linear(inputs, self._flat_value_weight, self._flat_value_bias))
        attended = torch.einsum("bhn,bnhe->bhe", logits.softmax(dim=-1), value)
        return dict(
            zip(TAIL_NAMES, (tokens[:, 0], folded, query_bias, attended, logits.logsumexp(dim=-1)), strict=True)
        )

    def __call__(self, prompts: Tensor, summary: dict[str, Tensor]) -> Tensor:
        """Return normalised features (b, joint_width) of images that also have prompts (b, n_prompts, vision_width)."""
        block = self._block
        class_token, folded, query_bias, attended, log_mass = (summary[name] for name in TAIL_NAMES)
        inputs = block.ln_1(prompts)
        logits = folded @ inputs.transpose(1, 2) + query_bias[..., None]  # (b, n_heads, n_prompts)
        weights = torch.cat([log_mass[..., None], logits], dim=-1).softmax(dim=-1)
        old, new = weights[..., :1], weights[..., 1:]
        pooled = new @ inputs  # (b, n_heads, vision_width)
        value = torch.einsum("bhd,hed->bhe", pooled, self._value_weight)
        value = value + new.sum(dim=-1, keepdim=True) * self._value_bias
        mixed = (old * attended + value).flatten(1)  # (b, vision_width)
        token = class_token + block.ls_1(block.attn.out_proj(mixed))
        token = token + block.ls_2(block.mlp(block.ln_2(token)))
        return self._backbone.project(token)

    def _by_head(self, tokens: Tensor) -> Tensor:
        """Split the last dimension into (n_heads, head_width)."""
        return tokens.reshape(*tokens.shape[:-1], self._n_heads, tokens.shape[-1] // self._n_heads)
