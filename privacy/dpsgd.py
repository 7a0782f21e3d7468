"""Local DP-SGD: Poisson batches, per-sample clipping, noise, a public denominator.

The engine knows any module and any per-sample loss, and nothing but the parameters comes out of it. It cannot be built
without an open ledger, refuses before training what could not be released afterwards, and runs no more steps between
two releases than one release is charged for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from privacy.distributed import noisy_sum
from privacy.errors import PrivacyRefused
from privacy.gradient_sums import GradientSums, take_clipped_sums
from privacy.ledger import Ledger
from privacy.mechanism import Mode, PerformanceParameters, PrivacyParameters, Unit
from privacy.noise import Randomness
from privacy.optimizer import NoisyOptimizer
from privacy.per_sample import Batch, LossPerSample, Pass, check_decomposable, evaluating, per_sample_pass
from privacy.ranks import LeadingRank
from privacy.records import Data, LookAhead, Records, as_records, invent_records
from privacy.sampling import PoissonSampler
from privacy.seeded import require_unpredictable
from privacy.unit_batches import Piece, UnitBatches

Draw = Callable[[], Iterator[Piece]]
"""Draws the next batch and returns what this process computes of it, in pieces."""

__all__ = ["Batch", "DpSgdEngine", "LossPerSample", "check_decomposable"]


class DpSgdEngine(GradientSums):
    """Trains the trainable parameters of a module in place, under the rules of ``params``.

    Args:
        module: parameters that require a gradient are trained; the rest is frozen and may be anything.
        loss_per_sample: maps (module, batch) to the vector (B,) of losses; no loss may depend on another record.
        params: everything that decides privacy.
        ledger: the open ledger of the dataset that will be trained on.
        learning_rate: of plain SGD, >= 0.
        momentum: of plain SGD, in [0, 1).
        performance: memory and speed only.
        ranks: the other processes of this site, which compute parts of each batch; None where there are none.
        randomness: of batches and noise; another than the operating system's in studies of public data alone.

    Raises:
        TypeError: ``params`` or ``ledger`` is not what it must be.
        ValueError: the module's structure does not permit per-sample gradients.
        PrivacyError: the ledger is closed, read-only or does not fit the parameters, or a process of this site trains
            otherwise.
    """

    def __init__(
        self,
        module: nn.Module,
        loss_per_sample: LossPerSample,
        *,
        params: PrivacyParameters,
        ledger: Ledger,
        learning_rate: float,
        momentum: float = 0.0,
        performance: PerformanceParameters | None = None,
        ranks: LeadingRank | None = None,
        randomness: Randomness = os.urandom,
    ) -> None:
        if not isinstance(params, PrivacyParameters):
            raise TypeError(f"params must be PrivacyParameters, not {type(params).__name__}")
        if not isinstance(ledger, Ledger):
            raise TypeError(f"an engine needs the open Ledger of its dataset, not {type(ledger).__name__}")
        ledger.check_usable(params)
        require_unpredictable(randomness, ledger)
        super().__init__(module, loss_per_sample, params, performance, randomness)
        self._ledger = ledger
        self._learning_rate = learning_rate
        self._momentum = momentum
        self._ranks = ranks
        if ranks is not None:
            ranks.agree(self.facts())
        # The probe must not see what a server sent later, so it takes place at these parameters, which are public.
        self._initial: list[Tensor] = [parameter.detach().clone() for parameter in self._parameters]
        self._probed = False
        self._optimizer: torch.optim.Optimizer | None = None
        self._steps_uncharged = 0
        self._rounds_charged = 0
        self._left_behind: list[Tensor] = []

    def run(self, data: Data, steps: int, *, patients: Sequence[int] | None = None) -> None:
        """Take ``steps`` steps on ``data``; the module's trainable parameters are changed in place.

        Several calls may share one round: while the parameters are those that the last call left and nothing was
        reserved in between, their steps add up, and more than ``params.steps_per_round`` together are refused.

        In ``SILO_DISTRIBUTED`` and ``UNSAFE_NO_DP`` the steps are plain ones; what the former protects, and how, is
        :func:`privacy.distributed.noisy_update`'s work on the whole update.

        Args:
            data: tensors with the records along the first dimension, all of the same length, on any device; or a
                source that hands out records by position.
            steps: how many, at least 1.
            patients: whose record each one is, any whole numbers; needed where the unit is a patient, and only there.

        Raises:
            BudgetExceeded: the round could not be released; nothing was trained.
            PrivacyRefused: more steps than one release is charged for, or a mode whose steps are not taken here.
            NotDecomposable: the loss or a layer mixes records, found on invented records; nothing was trained.
            ValueError: the data do not fit together, or the parameters are not finite.
        """
        if self._params.mode is Mode.RECORD_DISTRIBUTED:
            raise PrivacyRefused("record-distributed takes no step at a site: call noisy_gradient")
        draw = self._prepare(data, steps, patients)
        try:
            if self._params.mode is Mode.RECORD_LOCAL:
                self._run_private(draw, steps)
            else:
                self._run_without_privacy(draw, steps)
        finally:
            self._left_behind = [parameter.detach().clone() for parameter in self._parameters]

    def noisy_gradient(
        self, data: Data, honest_survivors: int, *, patients: Sequence[int] | None = None
    ) -> npt.NDArray[np.int64]:
        """Draw one batch and return the sum of its clipped gradients on the grid, with this site's share of the noise.

        The parameters stay as they are. The sum over the sites, not this vector, carries the guarantee.

        Args:
            data: as in :meth:`run`.
            honest_survivors: t - c of the cohort at hand.
            patients: as in :meth:`run`.

        Returns:
            Integers (d,), the clipping norm being ``params.noise_shares.grid``; d counts the trained parameters.

        Raises:
            PrivacyRefused: the mode is not ``RECORD_DISTRIBUTED``, or a second gradient of the same round.
            BudgetExceeded: as in :meth:`run`, like the other errors.
        """
        if self._params.mode is not Mode.RECORD_DISTRIBUTED:
            raise PrivacyRefused(f"mode {self._params.mode.value} takes steps at the site: call run")
        draw = self._prepare(data, 1, patients)
        self._left_behind = [parameter.detach().clone() for parameter in self._parameters]
        with per_sample_pass(self._module, self._per_sample_engine) as run:
            optimizer = self._make_noisy(self._plain_optimizer())
            optimizer.zero_grad(set_to_none=True)
            self._accumulate(optimizer, draw(), run)
            clipped_sum = optimizer.take_sum()
            optimizer.zero_grad(set_to_none=True)
        return noisy_sum(clipped_sum, self._params, honest_survivors, **self._seeded)

    def start_over(self) -> None:
        """Forget the gradient drawn since the last charge: it was not released and never will be.

        For a round that is tried again. Where steps move the parameters, starting from the published ones does as much.
        """
        self._left_behind = []

    def _prepare(self, data: Data, steps: int, patients: Sequence[int] | None) -> Draw:
        """Refuse what must be refused before any record is used, count the steps, and return what draws a batch."""
        records = as_records(data)
        if (patients is not None) != (self._params.unit == Unit.PATIENT):
            raise ValueError("patients are given where the unit is a patient, and only there")
        if patients is not None and len(patients) != len(records):
            raise ValueError(f"{len(patients)} patients for {len(records)} records")
        if any(not bool(torch.isfinite(parameter).all()) for parameter in self._parameters):
            raise ValueError("the parameters to start from are not finite")
        self._ledger.check_affordable(self._params)
        self._count(steps)
        if not self._probed and self._clips:
            self._probe(records)
        device, largest = self.device, self.performance.max_physical_batch
        batches = UnitBatches(records, patients, device, largest)
        sampler = PoissonSampler(batches.n_units, self._params.sample_rate, **self._seeded)
        in_background = not records.at_hand(device)
        ranks = self._ranks
        if ranks is None:
            return LookAhead(lambda: batches.pieces(sampler.sample()), steps, in_background=in_background).draw

        def share() -> Iterator[Piece]:
            drawn = sampler.sample()  # not ahead of time: the others are told the parameters with their parts
            chosen = ranks.share(self._parameters, drawn, batches.sizes(drawn))
            return LookAhead(lambda: batches.pieces(chosen), 1, in_background=in_background).draw()

        return share

    def _probe(self, records: Records) -> None:
        """Check the loss once, before any charge: on invented records, at the parameters of construction.

        On real records, or at parameters that a server chose, the outcome would be a release without a charge: rounding
        at huge parameters makes it depend on the records. Here it depends on shapes and public values only.
        """
        invented = invent_records(records, self.device)
        current = [parameter.detach().clone() for parameter in self._parameters]
        try:
            _assign(self._parameters, self._initial)
            check_decomposable(self._module, self._loss_per_sample, invented, engine=self._per_sample_engine)
        finally:
            _assign(self._parameters, current)
        self._probed = True
        self._initial = []

    def _run_private(self, draw: Draw, steps: int) -> None:
        with per_sample_pass(self._module, self._per_sample_engine) as run:
            optimizer = self._make_noisy(self._plain_optimizer())
            for _ in range(steps):
                optimizer.zero_grad(set_to_none=True)
                self._accumulate(optimizer, draw(), run)
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _accumulate(self, optimizer: NoisyOptimizer, pieces: Iterator[Piece], run: Pass) -> None:
        """Add the clipped gradients of one logical batch to the optimizer's sum, whoever computes them."""
        self._add_clipped(optimizer, pieces, run)
        if self._ranks is not None:
            totals = self._ranks.add_up(take_clipped_sums(self._parameters), self._parameters)
            for parameter, total in zip(self._parameters, totals, strict=True):
                parameter.summed_grad = total  # type: ignore[attr-defined]

    def _run_without_privacy(self, draw: Draw, steps: int) -> None:
        """The same batches and denominators, neither clipped nor noised."""
        optimizer = self._plain_optimizer()
        with evaluating(self._module):
            for _ in range(steps):
                optimizer.zero_grad(set_to_none=True)
                self._add_plain(draw())
                self._gather_plain()
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _gather_plain(self) -> None:
        """Bring the gradients that other processes computed to the parameters of this one."""
        if self._ranks is not None:
            totals = self._ranks.add_up([parameter.grad for parameter in self._parameters], self._parameters)
            for parameter, total in zip(self._parameters, totals, strict=True):
                parameter.grad = None if total is None else total.to(parameter)

    def _plain_optimizer(self) -> torch.optim.Optimizer:
        if self._optimizer is None:
            self._optimizer = torch.optim.SGD(self._parameters, lr=self._learning_rate, momentum=self._momentum)
        return self._optimizer

    def _count(self, steps: int) -> None:
        """Refuse steps that no charge would cover; count from zero after a charge or a change of parameters."""
        if steps < 1:
            raise ValueError(f"steps must be at least 1, not {steps}")
        continues = (
            bool(self._left_behind)
            and self._ledger.rounds_charged == self._rounds_charged
            and all(torch.equal(now, then) for now, then in zip(self._parameters, self._left_behind, strict=True))
        )
        uncharged = (self._steps_uncharged if continues else 0) + steps
        if uncharged > self._params.steps_per_round:
            raise PrivacyRefused(
                f"{uncharged} steps would be released for a charge of {self._params.steps_per_round}; reserve the "
                "round, or start again from the published parameters"
            )
        if not continues:
            self._optimizer = None  # momentum belongs to the trajectory that is given up
        self._steps_uncharged = uncharged
        self._rounds_charged = self._ledger.rounds_charged


def _assign(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
