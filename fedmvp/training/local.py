"""One site's part of a round: start from the published parameters, take the charged steps, return the difference.

Works for any module whose loss splits by sample: the prompted model and the baselines go through the same door. It
returns the update and nothing else; no loss, accuracy or count of a site leaves this module.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedmvp.errors import UserError
from fedmvp.model.feature_records import FeatureRecords
from fedmvp.model.features import FrozenFeatures
from fedmvp.model.parameters import Vector, get_vector, set_vector
from fedmvp.model.prompted import PromptedModel
from fedmvp.training.memory import MemoryPlan, MemoryRequest, plan_memory
from privacy.distributed import noisy_update
from privacy.dpsgd import DpSgdEngine, LossPerSample
from privacy.errors import PrivacyRefused
from privacy.ledger import Ledger
from privacy.mechanism import Mode, PerformanceParameters, PerSampleEngine, PrivacyParameters
from privacy.noise import Randomness
from privacy.ranks import LeadingRank
from privacy.records import Data, Records, as_records

Update = NDArray[np.float64]


@dataclass(frozen=True)
class LocalTraining:
    """How a site trains, apart from what changes privacy.

    Attributes:
        learning_rate: step size of local SGD.
        momentum: of local SGD, in [0, 1); forgotten between rounds.
        max_physical_batch: images at once through the module; memory and speed only.
        per_sample_engine: how gradients are clipped by image; memory and speed only.
    """

    learning_rate: float
    momentum: float = 0.0
    max_physical_batch: int = 256
    per_sample_engine: PerSampleEngine = "book-keeping"


class LabelledRecords(Records):
    """Frozen features and the label of each image, for the engine.

    Args:
        features: of the images.
        labels: class indices (n,).
    """

    def __init__(self, features: FeatureRecords, labels: Tensor) -> None:
        self._features = features
        self._labels = labels.to("cpu", torch.int64)
        self._layout = [*((shape, torch.float32) for shape in features.shapes), ((), torch.int64)]

    def __len__(self) -> int:
        return len(self._features)

    @property
    def layout(self) -> Sequence[tuple[tuple[int, ...], torch.dtype]]:
        """As in :class:`privacy.records.Records`."""
        return self._layout

    def take(self, positions: NDArray[np.int64], device: torch.device) -> tuple[Tensor, ...]:
        """As in :class:`privacy.records.Records`."""
        labels = self._labels.index_select(0, torch.from_numpy(positions))
        return (*self._features.take(positions, device), labels.to(device))

    def at_hand(self, device: torch.device) -> bool:
        """Whether the module trains on the CPU: fetching ahead would only take cores away from it."""
        return device.type == "cpu"


class LocalTrainer:
    """Trains a module on the records of one site.

    Args:
        module: its trained parameters are the vector of the study.
        data: tensors with the records along the first dimension, or a source of records.
        loss_per_sample: maps (module, batch) to the losses (b,).
        training: step size, momentum, memory.
        privacy: mode, noise, sampling, denominators and steps of a round.
        ledger: the open ledger of exactly these records.
        patients: whom each record is of, where the unit is a patient.
        ranks: the other processes of this site, where there are any.
        randomness: as of `privacy.dpsgd.DpSgdEngine`.

    Raises:
        ValueError: tensors of different lengths, or a module without per-sample gradients.
        PrivacyError: the ledger does not fit the parameters.
    """

    def __init__(
        self,
        module: nn.Module,
        data: Data,
        loss_per_sample: LossPerSample,
        *,
        training: LocalTraining,
        privacy: PrivacyParameters,
        ledger: Ledger,
        patients: Sequence[Hashable] | None = None,
        ranks: LeadingRank | None = None,
        randomness: Randomness = os.urandom,
    ) -> None:
        self._module = module
        self._data = as_records(data)
        self._privacy = privacy
        self._randomness = randomness
        self._patients = None if patients is None else numbered(patients)
        self._engine = DpSgdEngine(
            module,
            loss_per_sample,
            params=privacy,
            ledger=ledger,
            learning_rate=training.learning_rate,
            momentum=training.momentum,
            performance=PerformanceParameters(training.max_physical_batch, training.per_sample_engine),
            ranks=ranks,
            randomness=randomness,
        )

    @classmethod
    def for_prompts(
        cls,
        model: PromptedModel,
        features: FrozenFeatures | FeatureRecords,
        labels: Tensor,
        *,
        training: LocalTraining,
        privacy: PrivacyParameters,
        ledger: Ledger,
        patients: Sequence[Hashable] | None = None,
        ranks: LeadingRank | None = None,
    ) -> LocalTrainer:
        """Build the trainer of a prompted model.

        Args:
            model: the prompted model; its parameters are overwritten in every round.
            features: from `gather_features` or `extract_features` of the site's images.
            labels: class indices (n,).
            training: as above.
            privacy: as above.
            ledger: as above.
            patients: as above.
            ranks: as above.
        """
        data, loss_per_sample = prompt_records(model, features, labels)
        return cls(
            model,
            data,
            loss_per_sample,
            training=training,
            privacy=privacy,
            ledger=ledger,
            patients=patients,
            ranks=ranks,
        )

    def plan_memory(self, request: MemoryRequest, *, logical: float) -> MemoryPlan:
        """Estimate what training needs before it begins; arguments and errors as of `fedmvp.training.memory`."""
        return plan_memory(self._engine, self._data, request, logical=logical)

    def train_round(self, parameters: Vector) -> Update:
        """Train one round and return what changed.

        Args:
            parameters: the published parameters, float32 (dimension,).

        Returns:
            The difference after the round's steps, float64 (dimension,). Not private until the ledger was charged for
            it.

        Raises:
            BudgetExceeded: the round could not be released; nothing was trained.
            PrivacyRefused: the mode is a distributed one, whose updates leave with their noise only.
            UserError: the training diverged.
            ValueError: parameters of the wrong length, or not finite.
        """
        if self._privacy.mode.is_distributed:
            raise PrivacyRefused(f"an update of mode {self._privacy.mode.value} leaves on the grid: call train_on_grid")
        update = self._train(parameters)
        if not np.isfinite(update).all():
            raise UserError(
                "local training diverged: the update holds numbers that are not finite",
                remedy="leave this round out and ask the consortium for a smaller [training] learning_rate",
            )
        return update

    def train_on_grid(self, parameters: Vector, honest_survivors: int) -> NDArray[np.int64]:
        """Train one round of a distributed mode and return what changed on the ring's grid, with a share of the noise.

        Args:
            parameters: the published parameters, float32 (dimension,).
            honest_survivors: t - c of the cohort: as many shares of the noise are certain.

        Returns:
            The difference in steps of the grid, int64 (dimension,).

        Raises:
            BudgetExceeded: the round could not be released; nothing was trained.
            PrivacyRefused: the mode is not a distributed one, or the cohort is larger than the one charged for.
            ValueError: as in :meth:`train_round`.
        """
        if self._privacy.mode is Mode.SILO_DISTRIBUTED:
            # Training that diverges counts as an update of zero: to refuse would tell of the records without a charge.
            return noisy_update(self._train(parameters), self._privacy, honest_survivors, randomness=self._randomness)
        set_vector(self._module, parameters)
        self._engine.start_over()  # a second attempt at a round: what the first one drew was not sent
        # A step goes against the gradient; its length, learning_rate / expected_batch_size, is in the grid.
        return -self._engine.noisy_gradient(self._data, honest_survivors, patients=self._patients)

    def _train(self, parameters: Vector) -> Update:
        """What a round's steps change (dimension,), as they leave it."""
        set_vector(self._module, parameters)
        if self._privacy.mode is not Mode.RECORD_LOCAL:
            # Steps without noise may change nothing; a second attempt must not be told from the first by that.
            self._engine.start_over()
        self._engine.run(self._data, self._privacy.steps_per_round, patients=self._patients)
        with np.errstate(invalid="ignore"):  # infinity less infinity: the caller decides about it
            return get_vector(self._module).astype(np.float64) - parameters.astype(np.float64)


def prompt_records(
    model: PromptedModel, features: FrozenFeatures | FeatureRecords, labels: Tensor
) -> tuple[Data, LossPerSample]:
    """Return the records of a prompted model, as an engine takes them, and the loss of each.

    Args:
        model: the prompted model.
        features: from `gather_features` or `extract_features` of the site's images.
        labels: class indices (n,).

    Raises:
        ValueError: not one label of the study an image.
    """
    n_classes = len(model.bank.class_names)
    if len(labels) != len(features) or (len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < n_classes):
        raise ValueError(f"labels must be one class index below {n_classes} an image")
    names = model.feature_names

    def loss_per_sample(module: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        *tensors, targets = batch
        part = dict(zip(names, tensors, strict=True))
        return model.loss_per_sample(module(part), part, targets)

    if isinstance(features, FeatureRecords):
        return LabelledRecords(features, labels), loss_per_sample
    return (*features.ordered(names), labels.to(torch.int64)), loss_per_sample


def numbered(patients: Sequence[Hashable]) -> list[int]:
    """Return numbers in place of names; equal numbers for equal names."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(patient, len(numbers)) for patient in patients]
