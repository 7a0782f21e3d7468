"""Logits of images against sentences whose first words are trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedmvp.model.prompted_text import PromptedText


def text_logits(text: PromptedText, words: Tensor, feature: Tensor, *, trained: nn.Module, scale: float) -> Tensor:
    """Return class logits (b, n_classes).

    Args:
        text: the sentences of the classes.
        words: the first words, the same for every sample (b, n_words, text_width).
        feature: normalised image features (b, joint_width).
        trained: the layer with trained parameters from which the words come.
        scale: factor between cosine and logit.
    """
    # Gradients by sample are read by hooks on the layers. Where there is none, a plain step wants their sum alone,
    # which costs one backward pass through the text tower in place of one a sample. A reader that hangs no hook would
    # get wrong gradients, and is refused by the check on invented records.
    by_sample = torch.is_grad_enabled() and bool(trained._forward_hooks)  # noqa: SLF001
    rows = text.features_for_each(words, by_sample=by_sample)
    return scale * torch.einsum("bd,bcd->bc", feature, rows)
