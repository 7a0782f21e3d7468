"""Multi-head attention without trained parameters: by sample for training, over shared keys for inference.

In training every sample has keys and values of its own, so that gradients split by sample. At inference attributes are
the same for all images: their keys and values are made once for a class set, and those of thousands of classes are
attended to in parts, with a running softmax, so that memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

WORKING_BYTES = 128 << 20
"""What attention weights, or logits, of one batch may take at inference before they are computed in parts."""

_FEWEST_KEYS = 128
"""A part is not made smaller than this: below it the calls cost more than the products."""

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, eq=False)
class KeysAndValues:
    """Attributes as the attention of one PromptFormer reads them, at the parameters it had when they were made.

    Attributes:
        key: (n_attributes, width).
        value: (n_attributes, width).
    """

    key: Tensor
    value: Tensor

    def __len__(self) -> int:
        return len(self.key)


def attend(query: Tensor, key: Tensor, value: Tensor, n_heads: int) -> Tensor:
    """Return multi-head attention of (b, q, width) over (b, k, width), before the output projection."""
    asking, asked, answers = (_by_head(tokens, n_heads) for tokens in (query, key, value))
    return _joined(F.scaled_dot_product_attention(asking, asked, answers))


def attend_to_shared(query: Tensor, shared: KeysAndValues, n_heads: int, *, keys_at_once: int | None = None) -> Tensor:
    """Return multi-head attention of (b, q, width) over keys and values that all samples share.

    More keys than `keys_at_once` are taken in parts by the running softmax of Milakov and Gimelshein (2018): each part
    scales what was gathered before to the largest logit so far. Equal to `attend` up to rounding.

    Args:
        query: (b, q, width).
        shared: keys and values.
        n_heads: divides the width.
        keys_at_once: most keys in a part, at least 1; None takes as many as `WORKING_BYTES` hold.
    """
    most = keys_that_fit(query.shape[0] * n_heads * query.shape[1]) if keys_at_once is None else keys_at_once
    if len(shared) <= most:
        key, value = (tokens.expand(query.shape[0], -1, -1) for tokens in (shared.key, shared.value))
        return attend(query, key, value, n_heads)
    asking = _by_head(query, n_heads) * (query.shape[-1] // n_heads) ** -0.5
    peak, mass, mixed = _part(asking, shared, slice(0, most), n_heads)
    for start in range(most, len(shared), most):
        new_peak, new_mass, new_mixed = _part(asking, shared, slice(start, start + most), n_heads)
        top = torch.maximum(peak, new_peak)
        old, new = (peak - top).exp(), (new_peak - top).exp()
        peak, mass, mixed = top, old * mass + new * new_mass, old * mixed + new * new_mixed
    return _joined(mixed / mass)


def keys_that_fit(rows: int, working_bytes: int = WORKING_BYTES) -> int:
    """Return how many keys go into a part: three float32 numbers for each of `rows` (samples x heads x queries)."""
    return max(_FEWEST_KEYS, working_bytes // (3 * 4 * max(1, rows)))


def in_rows(make: Callable[[Tensor], tuple[Tensor, Tensor]], attributes: Tensor) -> KeysAndValues:
    """Return keys and values that `make` computes row by row of (n_attributes, joint_width), a few rows at a time."""
    parts = [make(rows) for rows in torch.split(attributes, _ROWS_AT_ONCE)]
    return KeysAndValues(torch.cat([key for key, _ in parts]), torch.cat([value for _, value in parts]))


def _part(asking: Tensor, shared: KeysAndValues, part: slice, n_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """The largest logit (b, n_heads, q, 1), the sum of weights relative to it, and the values mixed by them."""
    key, value = (_by_head(tokens[part][None], n_heads) for tokens in (shared.key, shared.value))
    logits = asking @ key.transpose(-1, -2)  # (b, n_heads, q, k)
    peak = logits.amax(dim=-1, keepdim=True)
    weights = (logits - peak).exp()
    return peak, weights.sum(dim=-1, keepdim=True), weights @ value


def _by_head(tokens: Tensor, n_heads: int) -> Tensor:
    by_head = tokens.reshape(*tokens.shape[:-1], n_heads, tokens.shape[-1] // n_heads)
    return by_head.transpose(1, 2)  # (b, n_heads, n, head_width)


def _joined(by_head: Tensor) -> Tensor:
    return by_head.transpose(1, 2).flatten(2)
