"""The noisy step: Opacus' DP optimizer with our clipping of bad gradients, our noise and a public denominator."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from privacy.mechanism import PrivacyParameters
from privacy.noise import gaussian
from privacy.per_sample import as_rows, take_grad_sample

Noise = Callable[[int, float], npt.NDArray[np.float64]]
"""Maps a length and a standard deviation to independent normal draws."""


class NoisyOptimizer(DPOptimizer):  # type: ignore[misc] # opacus is untyped
    """Sums clipped per-sample gradients of one logical batch, adds noise once, divides by a public number, steps.

    The clipped sum is kept in float64 on the CPU, where the noise is drawn; a batch may arrive in any number of parts,
    including none. Nothing about the batch (its size, its norms) is kept or returned.

    Args:
        optimizer: the plain optimizer whose step is taken.
        params: clipping norm, noise multiplier and denominator.
        noise: the generator; tests alone replace it.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, params: PrivacyParameters, noise: Noise = gaussian) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=params.noise_multiplier,
            max_grad_norm=params.max_grad_norm,
            expected_batch_size=params.expected_batch_size,
            loss_reduction="mean",
        )
        self._noise = noise

    def accumulate(self, batch_size: int) -> None:
        """Clip the gradients that a backward pass over ``batch_size`` records left, and add them to the sum."""
        parameters: list[nn.Parameter] = self.params
        clipped = clip([take_grad_sample(parameter, batch_size) for parameter in parameters], self.max_grad_norm)
        for parameter, gradient in zip(parameters, clipped, strict=True):
            part = gradient.sum(dim=0).cpu().double()
            summed = parameter.summed_grad  # type: ignore[attr-defined]
            parameter.summed_grad = part if summed is None else summed + part  # type: ignore[attr-defined]
            parameter.grad_sample = None  # type: ignore[attr-defined]
            parameter.grad = None

    def add_noise(self) -> None:
        """Add one draw of noise per coordinate to the sum; an empty batch is a sum of zero."""
        parameters: list[nn.Parameter] = self.params
        sizes = [parameter.numel() for parameter in parameters]
        draw = torch.from_numpy(self._noise(sum(sizes), self.noise_multiplier * self.max_grad_norm))
        for parameter, noise in zip(parameters, torch.split(draw, sizes), strict=True):
            summed = parameter.summed_grad  # type: ignore[attr-defined]
            noisy = noise.view(parameter.shape)
            parameter.summed_grad = noisy if summed is None else summed + noisy  # type: ignore[attr-defined]

    def scale_grad(self) -> None:
        """Divide the noisy sum by the public denominator and hand it to the plain optimizer."""
        for parameter in self.params:
            scaled = parameter.summed_grad / self.expected_batch_size
            parameter.grad = scaled.to(parameter.dtype).to(parameter.device)
            parameter.summed_grad = None

    def pre_step(self, closure: Callable[[], float] | None = None) -> bool:  # noqa: ARG002 - Opacus' signature
        """Noise and scale what was accumulated; never skips, whatever the batch held."""
        self.add_noise()
        self.scale_grad()
        return True


def clip(grad_samples: Sequence[Tensor], max_grad_norm: float) -> list[Tensor]:
    """Scale each record's gradient, over all parameters together, to an L2 norm of at most ``max_grad_norm``.

    A record whose gradient is not finite counts as zero: raising, or letting the NaN through, would tell that it is
    there.

    Args:
        grad_samples: one tensor (B, *shape) per parameter.
        max_grad_norm: > 0.

    Returns:
        The same shapes.
    """
    norms = torch.stack([as_rows(gradient).norm(dim=1) for gradient in grad_samples]).norm(dim=0)  # (B,)
    finite = torch.isfinite(norms)
    factor = torch.where(finite, (max_grad_norm / (norms + 1e-6)).clamp(max=1.0), torch.zeros_like(norms))
    clipped = []
    for gradient in grad_samples:
        shaped = (-1, *(1,) * (gradient.dim() - 1))
        kept = torch.where(finite.view(shaped), gradient, torch.zeros_like(gradient))
        clipped.append(kept * factor.view(shaped).to(gradient.dtype))
    return clipped
