"""Local DP-SGD: Poisson batches, per-sample clipping, noise, a public denominator.

The engine knows any module and any per-sample loss, and nothing but the parameters comes out of it. It cannot be built
without an open ledger, refuses before training what could not be released afterwards, and runs no more steps between
two releases than one release is charged for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from privacy.distributed import noisy_sum
from privacy.errors import PrivacyRefused
from privacy.ledger import Ledger
from privacy.mechanism import Mode, PerformanceParameters, PrivacyParameters, Unit
from privacy.optimizer import NoisyOptimizer, Units
from privacy.per_sample import (
    Batch,
    LossPerSample,
    Pass,
    check_decomposable,
    check_structure,
    choose_engine,
    compute_losses,
    per_sample_pass,
    trainable_parameters,
)
from privacy.records import Data, LookAhead, Records, as_records, invent_records, take_checked
from privacy.sampling import PoissonSampler

Piece = tuple[Batch, Units | None]
"""Part of a batch that fits in memory, and the units of its records; None where each record is one."""

__all__ = ["Batch", "DpSgdEngine", "LossPerSample", "check_decomposable"]


class DpSgdEngine:
    """Trains the trainable parameters of a module in place, under the rules of ``params``.

    Args:
        module: parameters that require a gradient are trained; the rest is frozen and may be anything.
        loss_per_sample: maps (module, batch) to the vector (B,) of losses; no loss may depend on another record.
        params: everything that decides privacy.
        ledger: the open ledger of the dataset that will be trained on.
        learning_rate: of plain SGD, >= 0.
        momentum: of plain SGD, in [0, 1).
        performance: memory and speed only.

    Raises:
        TypeError: ``params`` or ``ledger`` is not what it must be.
        ValueError: the module's structure does not permit per-sample gradients.
        PrivacyError: the ledger is closed, read-only or does not fit the parameters.
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
    ) -> None:
        if not isinstance(params, PrivacyParameters):
            raise TypeError(f"params must be PrivacyParameters, not {type(params).__name__}")
        if not isinstance(ledger, Ledger):
            raise TypeError(f"an engine needs the open Ledger of its dataset, not {type(ledger).__name__}")
        ledger.check_usable(params)
        check_structure(module)
        self._module = module
        self._parameters = trainable_parameters(module)
        self._loss_per_sample = loss_per_sample
        self._params = params
        self._ledger = ledger
        self._learning_rate = learning_rate
        self._momentum = momentum
        self._performance = performance or PerformanceParameters()
        self._per_sample_engine = choose_engine(module, self._performance.per_sample_engine)
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
        batches = self._prepare(data, steps, patients)
        try:
            if self._params.mode is Mode.RECORD_LOCAL:
                self._run_private(batches, steps)
            else:
                self._run_without_privacy(batches, steps)
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
        batches = self._prepare(data, 1, patients)
        self._left_behind = [parameter.detach().clone() for parameter in self._parameters]
        with per_sample_pass(self._module, self._per_sample_engine) as run:
            optimizer = self._make_noisy(self._plain_optimizer())
            optimizer.zero_grad(set_to_none=True)
            self._accumulate(optimizer, batches, run)
            clipped_sum = optimizer.take_sum()
            optimizer.zero_grad(set_to_none=True)
        return noisy_sum(clipped_sum, self._params, honest_survivors)

    def start_over(self) -> None:
        """Forget the gradient drawn since the last charge: it was not released and never will be.

        For a round that is tried again. Where steps move the parameters, starting from the published ones does as much.
        """
        self._left_behind = []

    def _prepare(self, data: Data, steps: int, patients: Sequence[int] | None) -> LookAhead[Piece]:
        """Refuse what must be refused before any record is used, and count the steps."""
        records = as_records(data)
        if (patients is not None) != (self._params.unit == Unit.PATIENT):
            raise ValueError("patients are given where the unit is a patient, and only there")
        if patients is not None and len(patients) != len(records):
            raise ValueError(f"{len(patients)} patients for {len(records)} records")
        if any(not bool(torch.isfinite(parameter).all()) for parameter in self._parameters):
            raise ValueError("the parameters to start from are not finite")
        self._ledger.check_affordable(self._params)
        self._count(steps)
        if not self._probed and self._params.mode in (Mode.RECORD_LOCAL, Mode.RECORD_DISTRIBUTED):
            self._probe(records)
        device, largest = self._parameters[0].device, self._performance.max_physical_batch
        batches = _Batches(records, patients, self._params.sample_rate, device, largest)
        return LookAhead(batches.draw, steps, in_background=not records.at_hand(device))

    def _probe(self, records: Records) -> None:
        """Check the loss once, before any charge: on invented records, at the parameters of construction.

        On real records, or at parameters that a server chose, the outcome would be a release without a charge: rounding
        at huge parameters makes it depend on the records. Here it depends on shapes and public values only.
        """
        invented = invent_records(records, self._parameters[0].device)
        current = [parameter.detach().clone() for parameter in self._parameters]
        try:
            _assign(self._parameters, self._initial)
            check_decomposable(self._module, self._loss_per_sample, invented, engine=self._per_sample_engine)
        finally:
            _assign(self._parameters, current)
        self._probed = True
        self._initial = []

    def _run_private(self, batches: LookAhead[Piece], steps: int) -> None:
        with per_sample_pass(self._module, self._per_sample_engine) as run:
            optimizer = self._make_noisy(self._plain_optimizer())
            for _ in range(steps):
                optimizer.zero_grad(set_to_none=True)
                self._accumulate(optimizer, batches, run)
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _accumulate(self, optimizer: NoisyOptimizer, batches: LookAhead[Piece], run: Pass) -> None:
        """Add the clipped gradients of one logical batch to the optimizer's sum."""
        for part, units in batches.draw():
            run(self._loss_per_sample, part)
            optimizer.accumulate(len(part[0]), units)

    def _make_noisy(self, optimizer: torch.optim.Optimizer) -> NoisyOptimizer:
        return NoisyOptimizer(optimizer, self._params)

    def _run_without_privacy(self, batches: LookAhead[Piece], steps: int) -> None:
        """The same batches and denominators, neither clipped nor noised."""
        former = {part: part.training for part in self._module.modules()}
        self._module.eval()
        optimizer = self._plain_optimizer()
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            for part, units in batches.draw():
                losses = compute_losses(self._module, self._loss_per_sample, part)
                if units is not None:
                    losses = losses * units.weights.to(losses)
                (losses.sum() / self._params.expected_batch_size).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for part_of_module, training in former.items():
            part_of_module.training = training

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


class _Batches:
    """Draws Poisson batches of units, in pieces that fit in memory.

    Args:
        records: where they come from.
        patients: whose record each one is; None where a record is the unit.
        sample_rate: of a unit.
        device: where the pieces go.
        largest: most records in a piece.
    """

    def __init__(
        self,
        records: Records,
        patients: Sequence[int] | None,
        sample_rate: float,
        device: torch.device,
        largest: int,
    ) -> None:
        self._records = records
        self._device = device
        self._largest = largest
        self._records_of: list[npt.NDArray[np.int64]] | None = None
        n_units = len(records)
        if patients is not None:
            _, owners = np.unique(np.asarray(patients), return_inverse=True)
            order = np.argsort(owners, kind="stable")
            self._records_of = np.split(order, np.cumsum(np.bincount(owners))[:-1]) if len(owners) else []
            n_units = len(self._records_of)
        self._sampler = PoissonSampler(n_units, sample_rate)

    def draw(self) -> Iterator[tuple[Batch, Units | None]]:
        """One Poisson batch in pieces; none if it is empty. Nothing is dropped or cut short."""
        chosen = self._sampler.sample()
        if self._records_of is None:
            for positions in np.split(chosen, range(self._largest, len(chosen), self._largest)):
                if len(positions):
                    yield self._take(positions), None
            return
        piece: list[npt.NDArray[np.int64]] = []
        for unit in chosen:
            records = self._records_of[unit]
            if piece and sum(map(len, piece)) + len(records) > self._largest:
                yield self._whole(piece)
                piece = []
            if len(records) > self._largest:
                yield from self._in_parts(records)
            else:
                piece.append(records)
        if piece:
            yield self._whole(piece)

    def _whole(self, piece: list[npt.NDArray[np.int64]]) -> tuple[Batch, Units]:
        """Some units with all their records."""
        owners = np.repeat(np.arange(len(piece)), [len(records) for records in piece])
        weights = np.concatenate([np.full(len(records), 1 / len(records)) for records in piece])
        units = Units(torch.from_numpy(owners), torch.from_numpy(weights), len(piece), complete=True)
        return self._take(np.concatenate(piece)), units

    def _in_parts(self, records: npt.NDArray[np.int64]) -> Iterator[tuple[Batch, Units]]:
        """One unit with more records than fit in a piece."""
        parts = np.split(records, range(self._largest, len(records), self._largest))
        for number, part in enumerate(parts, start=1):
            weights = torch.full((len(part),), 1 / len(records), dtype=torch.float64)
            units = Units(torch.zeros(len(part), dtype=torch.int64), weights, 1, complete=number == len(parts))
            yield self._take(part), units

    def _take(self, positions: npt.NDArray[np.int64]) -> Batch:
        return take_checked(self._records, positions, self._device)


def _assign(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
