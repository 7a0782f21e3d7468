"""Turns the signed policy into the values of training; the only module of training that knows a policy."""

# ruff: noqa: PLC0415

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fedmvp.training.aggregate import OptimizerKind, ServerOptimizer

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from torch import Tensor

    from fedmvp.model.feature_records import FeatureRecords
    from fedmvp.model.features import FrozenFeatures
    from fedmvp.model.prompted import PromptedModel
    from fedmvp.study.policy import StudyPolicy
    from fedmvp.training.local import LocalTrainer, LocalTraining
    from privacy.ledger import Ledger
    from privacy.mechanism import PerSampleEngine
    from privacy.ranks import ComputingRank, LeadingRank
    from privacy.worker import GradientWorker

# torch is imported by the functions that need it: the server's optimizer is asked for by processes that never train.


def local_training_of(policy: StudyPolicy) -> LocalTraining:
    """Return how every site trains."""
    from fedmvp.training.local import LocalTraining

    return LocalTraining(learning_rate=policy.training.learning_rate, momentum=policy.training.momentum)


def server_optimizer_of(policy: StudyPolicy) -> ServerOptimizer:
    """Return how the mean update is applied."""
    aggregation = policy.aggregation
    return ServerOptimizer(
        kind=OptimizerKind(aggregation.server_optimizer),
        learning_rate=aggregation.server_learning_rate,
        beta1=aggregation.adam_beta1,
        beta2=aggregation.adam_beta2,
        epsilon=aggregation.adam_epsilon,
    )


def build_local_trainer(
    policy: StudyPolicy,
    model: PromptedModel,
    features: FrozenFeatures | FeatureRecords,
    labels: Tensor,
    ledger: Ledger,
    *,
    patients: Sequence[Hashable] | None = None,
    ranks: LeadingRank | None = None,
    per_sample_engine: PerSampleEngine = "book-keeping",
) -> LocalTrainer:
    """Return a site's trainer under a policy.

    Args:
        policy: the verified policy.
        model: from `build_prompted_model` of the same policy.
        features: from `gather_features` or `extract_features` of the site's images.
        labels: class indices (n,).
        ledger: the open ledger of these images.
        patients: whom each image is of, where the policy's unit is a patient.
        ranks: the other processes of this site, where there are any.
        per_sample_engine: how gradients are clipped by record; memory and speed only.
    """
    from fedmvp.model.parameters import get_vector
    from fedmvp.training.local import LocalTrainer

    return LocalTrainer.for_prompts(
        model,
        features,
        labels,
        training=replace(local_training_of(policy), per_sample_engine=per_sample_engine),
        privacy=policy.privacy_parameters(len(get_vector(model))),
        ledger=ledger,
        patients=patients,
        ranks=ranks,
    )


def build_worker(
    policy: StudyPolicy,
    model: PromptedModel,
    features: FrozenFeatures | FeatureRecords,
    labels: Tensor,
    ranks: ComputingRank,
    *,
    patients: Sequence[Hashable] | None = None,
    per_sample_engine: PerSampleEngine = "book-keeping",
) -> GradientWorker:
    """Return what computes for a site's leading process; arguments as of `build_local_trainer`, without a ledger."""
    from fedmvp.model.parameters import get_vector
    from fedmvp.training.local import numbered, prompt_records
    from privacy.mechanism import PerformanceParameters
    from privacy.worker import GradientWorker

    data, loss_per_sample = prompt_records(model, features, labels)
    return GradientWorker(
        model,
        loss_per_sample,
        params=policy.privacy_parameters(len(get_vector(model))),
        data=data,
        patients=None if patients is None else numbered(patients),
        performance=PerformanceParameters(per_sample_engine=per_sample_engine),
        ranks=ranks,
    )
