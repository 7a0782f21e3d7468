"""Tokens that are trained themselves and are the same for every sample, with exact per-sample gradients.

A bare parameter that is broadcast over a batch has one gradient for all of it. Here the parameter is a layer of its own
whose output has the batch in front, so the gradient of sample n is the gradient at its own copy.
"""

from __future__ import annotations

import torch
from opacus.grad_sample import register_grad_sampler
from torch import Tensor, nn


class LearnedTokens(nn.Module):
    """A trained matrix, handed to each sample.

    Args:
        initial: the public start (n_tokens, width).
    """

    def __init__(self, initial: Tensor) -> None:
        super().__init__()
        self.tokens = nn.Parameter(initial.detach().clone().to(torch.float32))

    def forward(self, samples: Tensor) -> Tensor:
        """Return (b, n_tokens, width); of `samples`, any tensor with the batch in front, only the length b counts."""
        return self.tokens.expand(len(samples), -1, -1)


def learned_tokens_grad_sample(
    layer: LearnedTokens, activations: list[Tensor], backprops: Tensor
) -> dict[Tensor, Tensor]:
    """Return the per-sample gradients of a `LearnedTokens`, as Opacus asks of a layer.

    Args:
        layer: the layer.
        activations: its inputs, which do not matter.
        backprops: gradients of the summed loss by its output (b, n_tokens, width).
    """
    del activations
    return {layer.tokens: backprops.to(layer.tokens.dtype)} if layer.tokens.requires_grad else {}


register_grad_sampler(LearnedTokens)(learned_tokens_grad_sample)
