"""A process of a site that computes parts of batches for the leading one, and decides nothing.

It has the records and the module, but no ledger, no sampler, no noise and no optimizer of its own: what it may do is to
take the gradients of the units it is told at the parameters it is told, clip them by unit, and give their sum back.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from privacy.errors import PrivacyRefused, RankLost
from privacy.gradient_sums import GradientSums, take_clipped_sums
from privacy.mechanism import PerformanceParameters, PrivacyParameters
from privacy.optimizer import NoisyOptimizer
from privacy.per_sample import LossPerSample, evaluating, per_sample_pass
from privacy.ranks import ComputingRank, Order, Positions
from privacy.records import Data, as_records
from privacy.unit_batches import UnitBatches


class GradientWorker(GradientSums):
    """Computes shares of batches until the leading process stops it.

    Args:
        module: as at the leading process; its trained parameters are overwritten in every batch.
        loss_per_sample: as at the leading process.
        params: as at the leading process.
        data: the same records in the same order as at the leading process.
        patients: whose record each one is, where the unit is a patient.
        performance: memory and speed of this process.
        ranks: this process's place among the others.

    Raises:
        RanksDisagree: the leading process trains something else.
        ValueError: as for the engine.
    """

    def __init__(
        self,
        module: nn.Module,
        loss_per_sample: LossPerSample,
        *,
        params: PrivacyParameters,
        data: Data,
        ranks: ComputingRank,
        patients: Sequence[int] | None = None,
        performance: PerformanceParameters | None = None,
    ) -> None:
        super().__init__(module, loss_per_sample, params, performance)
        self.data = as_records(data)
        self._patients = patients
        self._ranks = ranks
        ranks.agree(self.facts())

    def serve(self) -> None:
        """Compute what the leading process asks for until it says stop.

        Raises:
            RankLost: the leading process, or another one, is gone or failed.
        """
        largest = self.performance.max_physical_batch
        batches = UnitBatches(self.data, self._patients, self.device, largest)
        while (instruction := self._ranks.next_instruction()).order is not Order.STOP:
            if instruction.order is not Order.SUM:
                raise PrivacyRefused(f"a computing process was told to {instruction.order.name.lower()}")
            chosen = self._ranks.receive(instruction, self._parameters)
            try:
                sums = self._compute(batches, chosen)
            except BaseException:
                with suppress(RankLost):  # the reason is the error at hand
                    self._ranks.give_up(instruction)
                raise
            self._ranks.give(instruction, sums, self._parameters)

    def _compute(self, batches: UnitBatches, chosen: Positions) -> list[Tensor | None]:
        """The sums of this process's share, and nothing left on the parameters."""
        optimizer = torch.optim.SGD(self._parameters, lr=0.0)
        if not self._clips:
            with evaluating(self._module):
                self._add_plain(batches.pieces(chosen))
            sums = [parameter.grad for parameter in self._parameters]
            optimizer.zero_grad(set_to_none=True)
            return sums
        with per_sample_pass(self._module, self._per_sample_engine) as run:
            noisy = self._make_noisy(optimizer)
            self._add_clipped(noisy, batches.pieces(chosen), run)
            sums = take_clipped_sums(self._parameters)
            noisy.zero_grad(set_to_none=True)
        return sums

    def _make_noisy(self, optimizer: torch.optim.Optimizer) -> NoisyOptimizer:
        return NoisyOptimizer(optimizer, self._params, _no_noise)


def _no_noise(_size: int, _standard_deviation: float) -> npt.NDArray[np.float64]:
    raise PrivacyRefused("a computing process draws no noise: the leading one does, once")
