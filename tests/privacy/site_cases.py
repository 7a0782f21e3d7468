"""Trainings that are the same for one process and for several, and what several processes can do wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from privacy import Ledger, Mode, PrivacyParameters, dpsgd
from privacy import ranks as ranks_module
from privacy.dpsgd import DpSgdEngine
from privacy.mechanism import NoiseShares, PerformanceParameters
from privacy.noise import gaussian
from privacy.optimizer import NoisyOptimizer, Units
from privacy.per_sample import Batch
from privacy.ranks import ComputingRank, LeadingRank, Ranks
from privacy.records import Data, TensorRecords
from privacy.sampling import PoissonSampler
from privacy.unit_batches import UnitBatches
from privacy.worker import GradientWorker
from tests.privacy.conftest import PARAMS
from tests.privacy.modules import Whole, cross_entropy, make_batch

PATIENTS = (7, 7, -2, 7, 30, -2, 7, 7, 30, 1, 7, 7, 4)
"""Of seven, two, two, one and one image, in no order."""

DIMENSION = sum(parameter.numel() for parameter in Whole().parameters() if parameter.requires_grad)
SHARES = NoiseShares(dimension=DIMENSION, shares=2, grid=2.0**20, clamp=2**40)
NOISY_SUM = dpsgd.noisy_sum

NOISE_EVERYWHERE = "noise on every process"
DRAWN_EVERYWHERE = "a batch drawn on every process"
WHOLE_EVERYWHERE = "the whole batch on every process"
CLIPPED_LATE = "clipping after the sum"
PATIENT_IN_PARTS = "a patient clipped in parts by several processes"
STALE = "parameters of the first step in all steps"


@dataclass(frozen=True)
class Case:
    """One training, the same for any number of processes; `broken` names what several of them do wrong."""

    mode: Mode = Mode.RECORD_LOCAL
    by_patient: bool = False
    records: int = len(PATIENTS)
    sample_rate: float = 0.7
    largest: int = 3
    broken: str = ""
    from_afar: bool = False

    @property
    def params(self) -> PrivacyParameters:
        return replace(
            PARAMS,
            mode=self.mode,
            unit="site" if self.mode is Mode.SILO_DISTRIBUTED else "patient" if self.by_patient else "record",
            sample_rate=self.sample_rate,
            max_grad_norm=0.2,
            steps_per_round=1 if self.mode is Mode.RECORD_DISTRIBUTED else 3,
            noise_shares=SHARES if self.mode.is_distributed else None,
        )

    @property
    def patients(self) -> list[int] | None:
        return list(PATIENTS[: self.records]) if self.by_patient else None

    @property
    def data(self) -> Data:
        image, attributes, labels = make_batch(len(PATIENTS))
        tensors = image[: self.records].double(), attributes[: self.records].double(), labels[: self.records]
        return FromAfar(tensors) if self.from_afar else tensors


class FromAfar(TensorRecords):
    """Records that are worth fetching ahead."""

    def at_hand(self, device: torch.device) -> bool:
        return False


CASES = {
    "records": Case(),
    "patients": Case(by_patient=True),
    "a gradient for the ring": Case(Mode.RECORD_DISTRIBUTED),
    "a gradient of patients for the ring": Case(Mode.RECORD_DISTRIBUTED, by_patient=True),
    "a whole site": Case(Mode.SILO_DISTRIBUTED),
    "without privacy": Case(Mode.UNSAFE_NO_DP),
    "patients without privacy": Case(Mode.UNSAFE_NO_DP, by_patient=True),
    "one record": Case(records=1, sample_rate=1.0),
    "one patient": Case(by_patient=True, records=2, sample_rate=1.0),
    "two records": Case(records=2, sample_rate=1.0),
    "no record at all": Case(records=0),
    "no record in the batch": Case(sample_rate=1e-9),
    "no record without privacy": Case(Mode.UNSAFE_NO_DP, sample_rate=1e-9),
    "no patient for the ring": Case(Mode.RECORD_DISTRIBUTED, by_patient=True, sample_rate=1e-9),
    "pieces of one record": Case(by_patient=True, largest=1),
    "records that are fetched ahead": Case(from_afar=True),
    "patients that are fetched ahead": Case(from_afar=True, by_patient=True, largest=1),
    "a gradient of records that are fetched ahead": Case(Mode.RECORD_DISTRIBUTED, from_afar=True),
    "records that are fetched ahead without privacy": Case(Mode.UNSAFE_NO_DP, from_afar=True),
    "everything in one piece": Case(by_patient=True, sample_rate=1.0, largest=256),
}
CONTROLS = {
    name: Case(broken=name, sample_rate=0.5)
    for name in (NOISE_EVERYWHERE, DRAWN_EVERYWHERE, WHOLE_EVERYWHERE, CLIPPED_LATE, STALE)
} | {PATIENT_IN_PARTS: Case(broken=PATIENT_IN_PARTS, by_patient=True, sample_rate=1.0)}


def make_module() -> nn.Module:
    torch.manual_seed(3)
    return Whole().eval().double()


def trained(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters() if p.requires_grad]).clone()


class Unclipped(NoisyOptimizer):
    def accumulate(self, batch_size: int, units: Units | None = None) -> None:
        self.max_grad_norm, bound = 1e12, self.max_grad_norm
        super().accumulate(batch_size, units)
        self.max_grad_norm = bound


class RepeatableEngine(DpSgdEngine):
    """Draws the same noise in every run; tests alone have such a thing."""

    draws: np.random.Generator
    broken: str

    def _make_noisy(self, optimizer: torch.optim.Optimizer) -> NoisyOptimizer:
        kind = Unclipped if self.broken == CLIPPED_LATE else NoisyOptimizer
        return kind(optimizer, self._params, lambda size, deviation: gaussian(size, deviation, self.draws.bytes))

    def _accumulate(self, optimizer: NoisyOptimizer, pieces: Any, run: Any) -> None:
        super()._accumulate(optimizer, pieces, run)
        if self.broken == CLIPPED_LATE:
            total = torch.cat([parameter.summed_grad.flatten() for parameter in self._parameters])
            factor = min(1.0, self._params.max_grad_norm / float(total.norm()))
            for parameter in self._parameters:
                parameter.summed_grad = parameter.summed_grad * factor


class BreakableWorker(GradientWorker):
    broken: str
    first: list[Tensor]

    def _compute(self, batches: Any, chosen: np.ndarray) -> list[Tensor | None]:
        if self.broken == DRAWN_EVERYWHERE:
            chosen = PoissonSampler(len(self.data), self._params.sample_rate).sample()
        if self.broken == STALE:
            self.first = getattr(self, "first", None) or [p.detach().clone() for p in self._parameters]
            dpsgd._assign(self._parameters, self.first)
        sums = super()._compute(batches, chosen)
        if self.broken != NOISE_EVERYWHERE:
            return sums
        deviation = self._params.noise_multiplier * self._params.max_grad_norm
        return [
            torch.from_numpy(gaussian(tuple(parameter.shape), deviation)) + (0.0 if part is None else part)
            for parameter, part in zip(self._parameters, sums, strict=True)
        ]

    def _make_noisy(self, optimizer: torch.optim.Optimizer) -> NoisyOptimizer:
        if self.broken == CLIPPED_LATE:
            return Unclipped(optimizer, self._params)
        return super()._make_noisy(optimizer)


def break_shares(case: Case, ranks: Ranks, patch: pytest.MonkeyPatch) -> None:
    """Give every process the whole batch, or every process a part of each patient."""
    if case.broken in (WHOLE_EVERYWHERE, PATIENT_IN_PARTS):
        patch.setattr(ranks_module, "part_of", lambda chosen, bounds, rank: chosen)
    if case.broken == PATIENT_IN_PARTS:
        patch.setattr(UnitBatches, "pieces", partial_patients(ranks))


def partial_patients(ranks: Ranks) -> Callable[..., Iterator[tuple[Batch, Units]]]:
    def pieces(batches: Any, chosen: np.ndarray) -> Iterator[tuple[Batch, Units]]:
        for unit in chosen:
            everything = batches._records_of[unit]
            if len(own := everything[ranks.rank :: ranks.size]):
                weights = torch.full((len(own),), 1 / len(everything), dtype=torch.float64)
                yield batches._take(own), Units(torch.zeros(len(own), dtype=torch.int64), weights, 1, complete=True)

    return pieces


def train(case: Case, folder: Path, ranks: LeadingRank | None = None) -> Tensor:
    """What a case ends with: parameters, or the integers for the ring."""
    with pytest.MonkeyPatch.context() as patch:
        draws, members = np.random.default_rng(11), np.random.default_rng(12)
        patch.setattr(dpsgd, "PoissonSampler", lambda count, rate: PoissonSampler(count, rate, members.bytes))
        patch.setattr(dpsgd, "noisy_sum", partial(NOISY_SUM, randomness=draws.bytes))
        if ranks is not None:
            break_shares(case, ranks, patch)
        params, module = case.params, make_module()
        unsafe = params.mode is Mode.UNSAFE_NO_DP
        with Ledger.create(
            folder / f"{len(list(folder.iterdir()))}.db",
            dataset_id="d",
            delta=1e-5,
            epsilon_max=float("inf") if unsafe else 8.0,
            unit=params.unit,
            unsafe=unsafe,
        ) as ledger:
            engine = RepeatableEngine(
                module,
                cross_entropy,
                params=params,
                ledger=ledger,
                learning_rate=2.0,
                momentum=0.5,
                performance=PerformanceParameters(case.largest),
                ranks=ranks,
            )
            engine.draws, engine.broken = draws, "" if ranks is None else case.broken
            if params.mode is Mode.RECORD_DISTRIBUTED:
                return torch.from_numpy(engine.noisy_gradient(case.data, 2, patients=case.patients))
            engine.run(case.data, 3, patients=case.patients)
            return trained(module)


def make_worker(case: Case, ranks: ComputingRank) -> BreakableWorker:
    helper = BreakableWorker(
        make_module(),
        cross_entropy,
        params=case.params,
        data=case.data,
        patients=case.patients,
        ranks=ranks,
        performance=PerformanceParameters(case.largest),
    )
    helper.broken = case.broken
    return helper
