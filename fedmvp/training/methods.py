"""A site's trainer of any method, under any privacy mode, for any objective."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence

from torch import Tensor, nn

from fedmvp.methods.method import MethodModel
from fedmvp.methods.objective import Objective
from fedmvp.model.features import FrozenFeatures
from fedmvp.training.local import LocalTrainer, LocalTraining
from privacy.dpsgd import LossPerSample
from privacy.ledger import Ledger
from privacy.mechanism import PrivacyParameters
from privacy.noise import Randomness


def method_trainer(
    model: MethodModel,
    features: FrozenFeatures,
    labels: Tensor,
    objective: Objective,
    *,
    training: LocalTraining,
    privacy: PrivacyParameters,
    ledger: Ledger,
    patients: Sequence[Hashable] | None = None,
    randomness: Randomness = os.urandom,
) -> LocalTrainer:
    """Return the trainer of a method at one site.

    Args:
        model: the method for this site's classes; its parameters are overwritten in every round.
        features: from `complete_features` of the site's images.
        labels: as the objective takes them, one row an image.
        objective: the loss of the labels.
        training: step size, momentum, memory.
        privacy: as for any other method, so that all spend the same epsilon at the same delta.
        ledger: the open ledger of these records.
        patients: whom each image is of, where the unit is a patient.
        randomness: as of `privacy.dpsgd.DpSgdEngine`.

    Raises:
        ValueError: labels that do not fit, or a method that trains nothing.
    """
    if len(labels) != len(features):
        raise ValueError(f"{len(labels)} labels for {len(features)} images")
    objective.check_labels(labels, len(model.candidates))
    data = (*features.ordered(model.feature_names), labels.long())
    loss = method_loss(objective)
    return LocalTrainer(
        model,
        data,
        loss,
        training=training,
        privacy=privacy,
        ledger=ledger,
        patients=patients,
        randomness=randomness,
    )


def method_loss(objective: Objective) -> LossPerSample:
    """Return the loss of a batch whose tensors are the model's `feature_names` in order, and then the labels."""

    def loss_per_sample(module: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        assert isinstance(module, MethodModel)  # noqa: S101 - the trainer was built on one
        *tensors, labels = batch
        features = dict(zip(module.feature_names, tensors, strict=True))
        return module.loss_per_sample(features, labels, objective)

    return loss_per_sample
