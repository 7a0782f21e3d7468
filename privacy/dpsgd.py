"""Local DP-SGD: Poisson batches, per-sample clipping, noise, a public denominator.

The engine knows any module and any per-sample loss, and nothing but the parameters comes out of it. It cannot be built
without an open ledger, refuses before training what could not be released afterwards, and runs no more steps between
two releases than one release is charged for.
"""

from __future__ import annotations

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
from privacy.optimizer import NoisyOptimizer, Units
from privacy.per_sample import (
    PROBED_RECORDS,
    Batch,
    LossPerSample,
    check_decomposable,
    evaluating,
    per_sample_hooks,
)
from privacy.ranks import LeadingRank
from privacy.sampling import PoissonSampler

_PROBE_SEED = 0  # fixed and public: the same records are invented at every site

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
    ) -> None:
        if not isinstance(params, PrivacyParameters):
            raise TypeError(f"params must be PrivacyParameters, not {type(params).__name__}")
        if not isinstance(ledger, Ledger):
            raise TypeError(f"an engine needs the open Ledger of its dataset, not {type(ledger).__name__}")
        ledger.check_usable(params)
        super().__init__(module, loss_per_sample, params, performance)
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

    def run(self, data: Sequence[Tensor], steps: int, *, patients: Sequence[int] | None = None) -> None:
        """Take ``steps`` steps on ``data``; the module's trainable parameters are changed in place.

        Several calls may share one round: while the parameters are those that the last call left and nothing was
        reserved in between, their steps add up, and more than ``params.steps_per_round`` together are refused.

        In ``SILO_DISTRIBUTED`` and ``UNSAFE_NO_DP`` the steps are plain ones; what the former protects, and how, is
        :func:`privacy.distributed.noisy_update`'s work on the whole update.

        Args:
            data: tensors with the records along the first dimension, all of the same length; on any device.
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
        self, data: Sequence[Tensor], honest_survivors: int, *, patients: Sequence[int] | None = None
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
        with per_sample_hooks(self._module):
            optimizer = self._make_noisy(self._plain_optimizer())
            optimizer.zero_grad(set_to_none=True)
            self._accumulate(optimizer, batches)
            clipped_sum = optimizer.take_sum()
            optimizer.zero_grad(set_to_none=True)
        return noisy_sum(clipped_sum, self._params, honest_survivors)

    def start_over(self) -> None:
        """Forget the gradient drawn since the last charge: it was not released and never will be.

        For a round that is tried again. Where steps move the parameters, starting from the published ones does as much.
        """
        self._left_behind = []

    def _prepare(self, data: Sequence[Tensor], steps: int, patients: Sequence[int] | None) -> _Batches:
        """Refuse what must be refused before any record is used, and count the steps."""
        tensors = _check_data(data)
        if (patients is not None) != (self._params.unit == Unit.PATIENT):
            raise ValueError("patients are given where the unit is a patient, and only there")
        if patients is not None and len(patients) != len(tensors[0]):
            raise ValueError(f"{len(patients)} patients for {len(tensors[0])} records")
        if any(not bool(torch.isfinite(parameter).all()) for parameter in self._parameters):
            raise ValueError("the parameters to start from are not finite")
        self._ledger.check_affordable(self._params)
        self._count(steps)
        if not self._probed and self._clips:
            self._probe(tensors)
        device, largest = self.device, self.performance.max_physical_batch
        return _Batches(tensors, patients, self._params.sample_rate, device, largest)

    def _probe(self, tensors: Batch) -> None:
        """Check the loss once, before any charge: on invented records, at the parameters of construction.

        On real records, or at parameters that a server chose, the outcome would be a release without a charge: rounding
        at huge parameters makes it depend on the records. Here it depends on shapes and public values only.
        """
        invented = invent_records(tensors, self.device)
        current = [parameter.detach().clone() for parameter in self._parameters]
        try:
            _assign(self._parameters, self._initial)
            check_decomposable(self._module, self._loss_per_sample, invented)
        finally:
            _assign(self._parameters, current)
        self._probed = True
        self._initial = []

    def _run_private(self, batches: _Batches, steps: int) -> None:
        with per_sample_hooks(self._module):
            optimizer = self._make_noisy(self._plain_optimizer())
            for _ in range(steps):
                optimizer.zero_grad(set_to_none=True)
                self._accumulate(optimizer, batches)
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _accumulate(self, optimizer: NoisyOptimizer, batches: _Batches) -> None:
        """Add the clipped gradients of one logical batch to the optimizer's sum, whoever computes them."""
        self._add_clipped(optimizer, batches.draw(self._share()))
        if self._ranks is not None:
            totals = self._ranks.add_up(take_clipped_sums(self._parameters), self._parameters)
            for parameter, total in zip(self._parameters, totals, strict=True):
                parameter.summed_grad = total  # type: ignore[attr-defined]

    def _share(self) -> Share | None:
        """What leaves this process its part of a batch that it has drawn."""
        ranks = self._ranks
        if ranks is None:
            return None
        return lambda chosen, sizes: ranks.share(self._parameters, chosen, sizes)

    def _run_without_privacy(self, batches: _Batches, steps: int) -> None:
        """The same batches and denominators, neither clipped nor noised."""
        optimizer = self._plain_optimizer()
        with evaluating(self._module):
            for _ in range(steps):
                optimizer.zero_grad(set_to_none=True)
                self._add_plain(batches.draw(self._share()))
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


Share = Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], npt.NDArray[np.int64]]
"""Maps the units of a batch, and how many records each has, to those that this process computes."""


class _Batches:
    """Draws Poisson batches of units, in pieces that fit in memory.

    Args:
        tensors: the records.
        patients: whose record each one is; None where a record is the unit.
        sample_rate: of a unit; None where the batches are drawn by another process.
        device: where the pieces go.
        largest: most records in a piece.
    """

    def __init__(
        self,
        tensors: Batch,
        patients: Sequence[int] | None,
        sample_rate: float | None,
        device: torch.device,
        largest: int,
    ) -> None:
        self._tensors = tensors
        self._device = device
        self._largest = largest
        self._records_of: list[npt.NDArray[np.int64]] | None = None
        n_units = len(tensors[0])
        if patients is not None:
            _, owners = np.unique(np.asarray(patients), return_inverse=True)
            order = np.argsort(owners, kind="stable")
            self._records_of = np.split(order, np.cumsum(np.bincount(owners))[:-1]) if len(owners) else []
            n_units = len(self._records_of)
        self._sampler = None if sample_rate is None else PoissonSampler(n_units, sample_rate)

    def draw(self, share: Share | None = None) -> Iterator[tuple[Batch, Units | None]]:
        """One Poisson batch, or this process's share of it, in pieces; none if it is empty."""
        if self._sampler is None:
            raise PrivacyRefused("this process computes what it is told and draws no batches")
        chosen = self._sampler.sample()
        if share is not None:
            of_unit = self._records_of
            sizes = np.ones_like(chosen) if of_unit is None else _lengths(of_unit, chosen)
            chosen = share(chosen, sizes)
        yield from self.pieces(chosen)

    def pieces(self, chosen: npt.NDArray[np.int64]) -> Iterator[tuple[Batch, Units | None]]:
        """These units in pieces that fit. Nothing is dropped or cut short."""
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
        index = torch.from_numpy(positions)
        return tuple(tensor.index_select(0, index.to(tensor.device)).to(self._device) for tensor in self._tensors)


def _lengths(records_of: list[npt.NDArray[np.int64]], chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.array([len(records_of[unit]) for unit in chosen], dtype=np.int64)


def _check_data(data: Sequence[Tensor]) -> Batch:
    tensors = tuple(data)
    if not tensors or any(not isinstance(tensor, Tensor) or tensor.dim() < 1 for tensor in tensors):
        raise ValueError("data must be one or more tensors with the records along the first dimension")
    if len({len(tensor) for tensor in tensors}) != 1:
        raise ValueError(f"the tensors hold different numbers of records: {[len(tensor) for tensor in tensors]}")
    return tensors


def invent_records(tensors: Batch, device: torch.device, count: int = PROBED_RECORDS) -> Batch:
    """Records of the same widths and types, nothing of them taken from the data.

    Floating-point numbers are drawn from a normal distribution with a fixed seed; the rest, such as labels, is zero.

    Args:
        tensors: the data, of which shapes and types are read.
        device: where the result goes.
        count: how many.
    """
    generator = torch.Generator().manual_seed(_PROBE_SEED)
    return tuple(_invent(tensor, generator, count).to(device) for tensor in tensors)


def _invent(like: Tensor, generator: torch.Generator, count: int) -> Tensor:
    shape = (count, *like.shape[1:])
    if like.dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(like.dtype)
    return torch.zeros(shape, dtype=like.dtype)


def _assign(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
