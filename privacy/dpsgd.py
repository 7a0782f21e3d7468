"""Local DP-SGD: Poisson batches, per-sample clipping, noise, a public denominator.

The engine knows any module and any per-sample loss, and nothing but the parameters comes out of it. It cannot be built
without an open ledger, refuses before training what could not be released afterwards, and runs no more steps between
two releases than one release is charged for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from privacy.errors import PrivacyRefused
from privacy.ledger import Ledger
from privacy.mechanism import Mode, PrivacyParameters
from privacy.optimizer import NoisyOptimizer
from privacy.per_sample import (
    PROBED_RECORDS,
    Batch,
    LossPerSample,
    backward,
    check_decomposable,
    check_structure,
    compute_losses,
    per_sample_hooks,
    trainable_parameters,
)
from privacy.sampling import PoissonSampler

_PROBE_SEED = 0  # fixed and public: the same records are invented at every site

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
        max_physical_batch: most records in one forward pass; changes memory and speed only.

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
        max_physical_batch: int = 256,
    ) -> None:
        if not isinstance(params, PrivacyParameters):
            raise TypeError(f"params must be PrivacyParameters, not {type(params).__name__}")
        if not isinstance(ledger, Ledger):
            raise TypeError(f"an engine needs the open Ledger of its dataset, not {type(ledger).__name__}")
        if max_physical_batch < 1:
            raise ValueError(f"max_physical_batch must be at least 1, not {max_physical_batch}")
        ledger.check_usable(params)
        check_structure(module)
        self._module = module
        self._parameters = trainable_parameters(module)
        self._loss_per_sample = loss_per_sample
        self._params = params
        self._ledger = ledger
        self._learning_rate = learning_rate
        self._momentum = momentum
        self._max_physical_batch = max_physical_batch
        # The probe must not see what a server sent later, so it takes place at these parameters, which are public.
        self._initial: list[Tensor] = [parameter.detach().clone() for parameter in self._parameters]
        self._probed = False
        self._optimizer: torch.optim.Optimizer | None = None
        self._steps_uncharged = 0
        self._rounds_charged = 0
        self._left_behind: list[Tensor] = []

    def run(self, data: Sequence[Tensor], steps: int) -> None:
        """Take ``steps`` steps on ``data``; the module's trainable parameters are changed in place.

        Several calls may share one round: while the parameters are those that the last call left and nothing was
        reserved in between, their steps add up, and more than ``params.steps_per_round`` together are refused.

        Args:
            data: tensors with the records along the first dimension, all of the same length; on any device.
            steps: how many, at least 1.

        Raises:
            BudgetExceeded: the round could not be released; nothing was trained.
            PrivacyRefused: more steps than one release is charged for.
            NotDecomposable: the loss or a layer mixes records, found on invented records; nothing was trained.
            ValueError: the data do not fit together, or the parameters are not finite.
        """
        tensors = _check_data(data)
        if any(not bool(torch.isfinite(parameter).all()) for parameter in self._parameters):
            raise ValueError("the parameters to start from are not finite")
        self._ledger.check_affordable(self._params)
        self._count(steps)
        if not self._probed and self._params.mode is Mode.RECORD_LOCAL:
            self._probe(tensors)
        sampler = PoissonSampler(len(tensors[0]), self._params.sample_rate)
        try:
            if self._params.mode is Mode.UNSAFE_NO_DP:
                self._run_without_privacy(tensors, steps, sampler)
            else:
                self._run_private(tensors, steps, sampler)
        finally:
            self._left_behind = [parameter.detach().clone() for parameter in self._parameters]

    def _probe(self, tensors: Batch) -> None:
        """Check the loss once, before any charge: on invented records, at the parameters of construction.

        On real records, or at parameters that a server chose, the outcome would be a release without a charge: rounding
        at huge parameters makes it depend on the records. Here it depends on shapes and public values only.
        """
        invented = _invent_records(tensors, self._parameters[0].device)
        current = [parameter.detach().clone() for parameter in self._parameters]
        try:
            _assign(self._parameters, self._initial)
            check_decomposable(self._module, self._loss_per_sample, invented)
        finally:
            _assign(self._parameters, current)
        self._probed = True
        self._initial = []

    def _run_private(self, tensors: Batch, steps: int, sampler: PoissonSampler) -> None:
        with per_sample_hooks(self._module):
            optimizer = self._make_noisy(self._plain_optimizer())
            for _ in range(steps):
                optimizer.zero_grad(set_to_none=True)
                for part in self._parts(tensors, sampler):
                    backward(self._module, self._loss_per_sample, part)
                    optimizer.accumulate(len(part[0]))
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _make_noisy(self, optimizer: torch.optim.Optimizer) -> NoisyOptimizer:
        return NoisyOptimizer(optimizer, self._params)

    def _run_without_privacy(self, tensors: Batch, steps: int, sampler: PoissonSampler) -> None:
        """The same batches and denominators, neither clipped nor noised: for comparison, on an unsafe ledger."""
        former = {part: part.training for part in self._module.modules()}
        self._module.eval()
        optimizer = self._plain_optimizer()
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            for part in self._parts(tensors, sampler):
                losses = compute_losses(self._module, self._loss_per_sample, part)
                (losses.sum() / self._params.expected_batch_size).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for part_of_module, training in former.items():
            part_of_module.training = training

    def _parts(self, tensors: Batch, sampler: PoissonSampler) -> Iterator[Batch]:
        """One Poisson batch in pieces that fit in memory; none if it is empty. Nothing is dropped."""
        device = self._parameters[0].device
        for positions in torch.split(torch.from_numpy(sampler.sample()), self._max_physical_batch):
            if len(positions):  # torch splits nothing into one piece of nothing
                yield tuple(tensor.index_select(0, positions.to(tensor.device)).to(device) for tensor in tensors)

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


def _check_data(data: Sequence[Tensor]) -> Batch:
    tensors = tuple(data)
    if not tensors or any(not isinstance(tensor, Tensor) or tensor.dim() < 1 for tensor in tensors):
        raise ValueError("data must be one or more tensors with the records along the first dimension")
    if len({len(tensor) for tensor in tensors}) != 1:
        raise ValueError(f"the tensors hold different numbers of records: {[len(tensor) for tensor in tensors]}")
    return tensors


def _invent_records(tensors: Batch, device: torch.device) -> Batch:
    """Records of the same widths and types, nothing of them taken from the data.

    Floating-point numbers are drawn from a normal distribution with a fixed seed; the rest, such as labels, is zero.
    """
    generator = torch.Generator().manual_seed(_PROBE_SEED)
    return tuple(_invent(tensor, generator).to(device) for tensor in tensors)


def _invent(like: Tensor, generator: torch.Generator) -> Tensor:
    shape = (PROBED_RECORDS, *like.shape[1:])
    if like.dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(like.dtype)
    return torch.zeros(shape, dtype=like.dtype)


def _assign(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
