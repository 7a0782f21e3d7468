"""The noisy step: Opacus' DP optimizer with our clipping of bad gradients, our noise and a public denominator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from privacy.mechanism import Mode, PrivacyParameters
from privacy.noise import gaussian
from privacy.per_sample import take_gradients
from privacy.sample_gradients import LARGEST_NORM, Rows, SampleGradients, all_true, exact_dtype, joint_norms

Noise = Callable[[int, float], npt.NDArray[np.float64]]
"""Maps a length and a standard deviation to independent normal draws."""


@dataclass(frozen=True)
class Units:
    """The units of one forward pass. Either all of them are whole, or one fills the pass and goes on in the next.

    Args:
        owners: index of each record's unit within the pass (B,), int64.
        weights: one over the number of records of that unit (B,), so that a unit's records sum to their mean.
        count: units in the pass.
        complete: False while more records of the one unit follow.
    """

    owners: Tensor
    weights: Tensor
    count: int
    complete: bool


class NoisyOptimizer(DPOptimizer):  # type: ignore[misc] # opacus is untyped
    """Sums clipped per-sample gradients of one logical batch, adds noise once, divides by a public number, steps.

    The clipped sum is kept in float64, on the device of the parameters if that has it. The noise is always drawn on the
    CPU; where the gradients are computed elsewhere, it is drawn meanwhile. A batch may arrive in any number of parts,
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
        self._draws_ahead = params.mode is Mode.RECORD_LOCAL and self.params[0].device.type == "cuda"
        self._ahead: tuple[float, Future[Tensor]] | None = None
        self._unfinished: list[Tensor] | None = None

    def accumulate(self, batch_size: int, units: Units | None = None) -> None:
        """Clip the gradients that a pass over ``batch_size`` records left, and add them to the sum.

        Args:
            batch_size: records in the pass.
            units: which unit each of them belongs to; None where every record is one.
        """
        if self._draws_ahead and self._ahead is None:
            self._ahead = self._deviation, ThreadPoolExecutor(1).submit(self._draw, self._deviation)
        gradients = [take_gradients(parameter, batch_size) for parameter in self.params]
        if units is None:
            self._add_clipped(gradients)
        else:
            for mean in self._means_by_unit(gradients, units):
                self._add_clipped(mean)
        for parameter in self.params:
            parameter.sample_gradients = None
            parameter.grad_sample = None
            parameter.grad = None

    def _add_clipped(self, gradients: Sequence[SampleGradients]) -> None:
        factors, finite = clipping_factors(joint_norms(gradients), self.max_grad_norm)
        if not all_true(finite):  # zero times infinity is no number: what counts as zero is left out
            records = finite.nonzero().flatten()
            gradients = [gradient.take(records) for gradient in gradients]
            factors = factors[records]
        for parameter, gradient in zip(self.params, gradients, strict=True):
            part = gradient.weighted_sum(factors).to(_place_of_sum(parameter))
            if parameter.summed_grad is None:
                parameter.summed_grad = part.double()
            else:
                parameter.summed_grad += part

    def take_sum(self) -> npt.NDArray[np.float64]:
        """Take the clipped sum of the batch, without any noise, as one vector (d,), and forget it.

        For the distributed modes, whose noise is added on a grid afterwards; never to be released as it is.
        """
        summed = [parameter.summed_grad for parameter in self.params]
        sizes = [parameter.numel() for parameter in self.params]
        for parameter in self.params:
            parameter.summed_grad = None
        parts = [
            np.zeros(size) if part is None else part.cpu().numpy().reshape(-1)
            for part, size in zip(summed, sizes, strict=True)
        ]
        return np.concatenate(parts)

    def _means_by_unit(self, gradients: Sequence[SampleGradients], units: Units) -> Iterator[list[SampleGradients]]:
        """The mean gradient of each unit whose last record is in this pass; a unit's rest waits for the next pass."""
        for unit in range(units.count):
            of_unit = (units.owners == unit).nonzero().flatten()
            weights = units.weights[of_unit]
            sums = [gradient.take(of_unit).weighted_sum(weights) for gradient in gradients]
            if self._unfinished is not None:
                sums = [summed + rest for summed, rest in zip(sums, self._unfinished, strict=True)]
                self._unfinished = None
            if units.complete:
                yield [Rows(summed[None]) for summed in sums]
            else:
                self._unfinished = sums

    @property
    def _deviation(self) -> float:
        """Of the noise, for each coordinate of the sum."""
        return float(self.noise_multiplier * self.max_grad_norm)

    def _draw(self, deviation: float) -> Tensor:
        """One draw for each coordinate (d,), where the sum is."""
        draw = torch.from_numpy(self._noise(sum(parameter.numel() for parameter in self.params), deviation))
        return draw.to(_place_of_sum(self.params[0]))

    def add_noise(self) -> None:
        """Add one draw of noise per coordinate to the sum; an empty batch is a sum of zero."""
        parameters: list[nn.Parameter] = self.params
        ahead, self._ahead = self._ahead, None  # whatever happens next, it is used once
        draw = ahead[1].result() if ahead and ahead[0] == self._deviation else self._draw(self._deviation)
        for parameter, noise in zip(parameters, torch.split(draw, [p.numel() for p in parameters]), strict=True):
            summed = parameter.summed_grad  # type: ignore[attr-defined]
            noisy = noise.view(parameter.shape).to(_place_of_sum(parameter))
            parameter.summed_grad = noisy if summed is None else summed.add_(noisy)  # type: ignore[attr-defined]

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


def _place_of_sum(parameter: nn.Parameter) -> torch.device:
    """The parameter's device if that has float64, else the CPU."""
    has_float64 = exact_dtype(parameter.device) is torch.float64
    return parameter.device if has_float64 else torch.device("cpu")


def clipping_factors(norms: Tensor, max_grad_norm: float) -> tuple[Tensor, Tensor]:
    """What each record's gradient is multiplied by to be no longer than ``max_grad_norm``.

    A record whose gradient is not finite counts as zero: raising, or letting the NaN through, would tell that it is
    there.

    Args:
        norms: over all parameters together (B,).
        max_grad_norm: > 0.

    Returns:
        The factors (B,), and whether each record counts (B,).
    """
    finite = norms < LARGEST_NORM  # false for one that is not a number; a factor for a longer one would lose its digits
    factors = (max_grad_norm / (norms + 1e-6)).clamp(max=1.0)
    return torch.where(finite, factors, torch.zeros_like(norms)), finite
