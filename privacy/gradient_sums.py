"""What every process of a site computes: gradients of the units it is given, clipped by unit and summed.

It holds no ledger, draws neither batches nor noise, and takes no step. The one that does is
:class:`privacy.dpsgd.DpSgdEngine`, which is built upon it; a process that only computes is
:class:`privacy.worker.GradientWorker`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from privacy.mechanism import Mode, PerformanceParameters, PrivacyParameters, Unit
from privacy.noise import Randomness, gaussian
from privacy.optimizer import NoisyOptimizer, Units
from privacy.per_sample import (
    Batch,
    LossPerSample,
    Pass,
    check_structure,
    choose_engine,
    compute_losses,
    evaluating,
    per_sample_pass,
    trainable_parameters,
)
from privacy.unit_batches import Piece


class GradientSums:
    """Sums of gradients of a module's trained parameters.

    Args:
        module: parameters that require a gradient are trained.
        loss_per_sample: maps (module, batch) to the vector (B,) of losses.
        params: clipping norm and denominator.
        performance: memory and speed only; may be replaced between batches.
        randomness: of the noise.

    Raises:
        ValueError: the module's structure does not permit per-sample gradients.
    """

    def __init__(
        self,
        module: nn.Module,
        loss_per_sample: LossPerSample,
        params: PrivacyParameters,
        performance: PerformanceParameters | None = None,
        randomness: Randomness = os.urandom,
    ) -> None:
        check_structure(module)
        self.performance = performance or PerformanceParameters()
        self._module = module
        self._parameters = trainable_parameters(module)
        self._loss_per_sample = loss_per_sample
        self._params = params
        # Nothing is passed on unless it is seeded: the generators then take the operating system's by themselves.
        self._seeded: dict[str, Any] = {} if randomness is os.urandom else {"randomness": randomness}
        self._per_sample_engine = choose_engine(module, self.performance.per_sample_engine)

    @property
    def device(self) -> torch.device:
        """Where the module is."""
        return self._parameters[0].device

    @property
    def trained(self) -> tuple[nn.Parameter, ...]:
        """The trained parameters, in the module's order."""
        return tuple(self._parameters)

    @property
    def _clips(self) -> bool:
        """Whether gradients are clipped by unit; otherwise the mode protects the whole update, or nothing."""
        return self._params.mode in (Mode.RECORD_LOCAL, Mode.RECORD_DISTRIBUTED)

    def facts(self) -> dict[str, bytes]:
        """What every process of a site must have alike to compute parts of one batch."""
        shapes = [(tuple(parameter.shape), str(parameter.dtype)) for parameter in self._parameters]
        return {"privacy parameters": repr(self._params).encode(), "trained parameters": repr(shapes).encode()}

    def rehearse(self, invented: Batch) -> None:
        """Do with invented records what is done with a piece of a batch, and leave nothing behind.

        For measuring memory. Neither a record nor a parameter that a server sent is seen, nothing is drawn or changed.

        Args:
            invented: never private records.
        """
        optimizer = torch.optim.SGD(self._parameters, lr=0.0)
        count = len(invented[0])
        alone = Units(torch.arange(count), torch.ones(count, dtype=torch.float64), count, complete=True)
        piece = (invented, alone if self._params.unit == Unit.PATIENT else None)
        if self._clips:
            with per_sample_pass(self._module, self._per_sample_engine) as run:
                noisy = self._make_noisy(optimizer)
                self._add_clipped(noisy, [piece], run)
                take_clipped_sums(self._parameters)
                noisy.zero_grad(set_to_none=True)
        else:
            with evaluating(self._module):
                self._add_plain([piece])
            optimizer.zero_grad(set_to_none=True)

    def _add_clipped(self, optimizer: NoisyOptimizer, pieces: Iterable[Piece], run: Pass) -> None:
        """Add the clipped gradients of the units of a batch to the optimizer's sum."""
        for part, units in pieces:
            run(self._loss_per_sample, part)
            optimizer.accumulate(len(part[0]), units)

    def _add_plain(self, pieces: Iterable[Piece]) -> None:
        """Add the gradients of the units of a batch, neither clipped nor noised, to those on the parameters."""
        for part, units in pieces:
            losses = compute_losses(self._module, self._loss_per_sample, part)
            if units is not None:
                losses = losses * units.weights.to(losses)
            (losses.sum() / self._params.expected_batch_size).backward()  # type: ignore[no-untyped-call]

    def _make_noisy(self, optimizer: torch.optim.Optimizer) -> NoisyOptimizer:
        seeded = {"noise": partial(gaussian, **self._seeded)} if self._seeded else {}
        return NoisyOptimizer(optimizer, self._params, **seeded)


def take_clipped_sums(parameters: list[nn.Parameter]) -> list[Tensor | None]:
    """Take the clipped sums that a :class:`NoisyOptimizer` holds on its parameters; None where no unit was added."""
    taken = [parameter.summed_grad for parameter in parameters]  # type: ignore[attr-defined]
    for parameter in parameters:
        parameter.summed_grad = None  # type: ignore[attr-defined]
    return taken
