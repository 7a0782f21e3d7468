"""A linear layer whose input is the same for every sample of a batch, with exact per-sample gradients.

Attributes are public and equal for all images, so their projection is computed once and handed to every sample.
Broadcasting the result of a plain `nn.Linear` would give one gradient for the whole batch, because per-sample
gradients are read off a layer's inputs; expanding the input first is exact and repeats the same product for every
sample. Here the output is expanded inside the layer, and the gradient of sample n is its own output gradient times the
shared input.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from opacus.grad_sample import register_grad_sampler
from torch import Tensor, nn

from privacy.book_keeping import register_book_keeping
from privacy.sample_gradients import Outer, SampleGradients


class SharedLinear(nn.Linear):
    """Maps one shared input to an output for each sample."""

    def forward(self, shared: Tensor, samples: Tensor) -> Tensor:  # type: ignore[override]
        """Return (b, n, out_features).

        Args:
            shared: the input of every sample (n, in_features).
            samples: any tensor with the batch in front; only its length b counts. It comes last because Opacus reads
                the batch size off a layer's last input.
        """
        return self.project(shared).expand(len(samples), -1, -1)

    def project(self, shared: Tensor) -> Tensor:
        """Return the output (n, out_features) once, where no gradient by sample is asked for."""
        return F.linear(shared, self.weight, self.bias)


def shared_linear_grad_sample(
    layer: SharedLinear, activations: list[Tensor], backprops: Tensor
) -> dict[Tensor, Tensor]:
    """Return the per-sample gradients of a `SharedLinear`, as Opacus asks of a layer.

    Args:
        layer: the layer.
        activations: its inputs, shared and samples.
        backprops: gradients of the summed loss by its output (b, n, out_features).
    """
    gradients: dict[Tensor, Tensor] = {}
    if layer.weight.requires_grad:
        gradients[layer.weight] = torch.einsum("bno,ni->boi", backprops, activations[0].to(backprops.dtype))
    if layer.bias is not None and layer.bias.requires_grad:
        gradients[layer.bias] = backprops.sum(dim=1)
    return gradients


register_grad_sampler(SharedLinear)(shared_linear_grad_sample)


@register_book_keeping(SharedLinear)
def _shared_linear_gradients(
    layer: SharedLinear, activations: list[Tensor], backprops: Tensor
) -> dict[Tensor, SampleGradients | Tensor]:
    """Return the same without forming them."""
    found: dict[Tensor, SampleGradients | Tensor] = {}
    gradients = backprops.to(layer.weight.dtype)
    if layer.weight.requires_grad:
        found[layer.weight] = Outer(activations[0].to(layer.weight.dtype), gradients)
    if layer.bias is not None and layer.bias.requires_grad:
        found[layer.bias] = gradients.sum(dim=1)
    return found
