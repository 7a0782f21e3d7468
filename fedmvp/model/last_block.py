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
        self._n_heads = int(self._block.attn.num_heads)

    @property
    def summary_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what `summarise` returns, without the dimension of the images."""
        n_heads, width = self._n_heads, self._backbone.vision_width
        head_width = width // n_heads
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
        (query_weight, query_bias), (key_weight, key_bias), (value_weight, value_bias) = map(self._projection, range(3))
        query = self._by_head(F.linear(inputs[:, 0], query_weight, query_bias))
        query = query * query.shape[-1] ** -0.5  # (b, n_heads, head_width)
        folded = torch.einsum("bhe,hed->bhd", query, self._rows_by_head(key_weight))
        query_bias = torch.einsum("bhe,he->bh", query, self._by_head(key_bias))
        logits = torch.einsum("bhd,bnd->bhn", folded, inputs) + query_bias[..., None]
        value = self._by_head(F.linear(inputs, value_weight, value_bias))
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
        value_weight, value_bias = self._projection(2)
        value = torch.einsum("bhd,hed->bhe", pooled, self._rows_by_head(value_weight))
        value = value + new.sum(dim=-1, keepdim=True) * self._by_head(value_bias)
        return self._leave(class_token, old * attended + value)

    def without_prompts(self, summary: dict[str, Tensor]) -> Tensor:
        """Return zero-shot CLIP's normalised features (b, joint_width) of images summarised by `summarise`."""
        return self._leave(summary["class_token"], summary["attended"])

    def _leave(self, class_token: Tensor, mixed: Tensor) -> Tensor:
        """Finish the block for class tokens (b, vision_width) whose attention returned (b, n_heads, head_width)."""
        block = self._block
        token = class_token + block.ls_1(block.attn.out_proj(mixed.flatten(1)))
        token = token + block.ls_2(block.mlp(block.ln_2(token)))
        return self._backbone.project(token)

    def _projection(self, which: int) -> tuple[Tensor, Tensor]:
        """Weight (vision_width, vision_width) and bias of the query (0), key (1) or value (2); views of the block's."""
        attention = self._block.attn
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        return weight.view(3, -1, weight.shape[-1])[which], bias.view(3, -1)[which]

    def _rows_by_head(self, weight: Tensor) -> Tensor:
        """Split the rows of a weight into (n_heads, head_width)."""
        return weight.reshape(self._n_heads, -1, weight.shape[-1])

    def _by_head(self, tokens: Tensor) -> Tensor:
        """Split the last dimension into (n_heads, head_width)."""
        return tokens.reshape(*tokens.shape[:-1], self._n_heads, tokens.shape[-1] // self._n_heads)
