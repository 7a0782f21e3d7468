"""What the federated result is set beside: the same training without privacy, and a private linear probe.

Both run in this process, over the same sites, rounds, steps and server optimizer as the study, with plain sums
in place of
masked ones: masking does not change a sum. The probe pays the same epsilon at the same delta from ledgers of its own,
in the study's own mode.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedmvp.evaluation.accuracy import Accuracy, accuracy_of, prompted_accuracy
from fedmvp.model.features import FrozenFeatures
from fedmvp.model.parameters import Vector, get_vector, set_vector
from fedmvp.model.prompted import PromptedModel
from fedmvp.study.policy import StudyPolicy
from fedmvp.training.aggregate import OptimizerKind, ServerOptimizer, ServerState
from fedmvp.training.baselines import LinearProbe, probe_trainer, synthetic_centre
from fedmvp.training.from_policy import local_training_of, server_optimizer_of
from fedmvp.training.local import LocalTrainer, LocalTraining
from fedmvp.training.rounds import Site, run_rounds
from privacy.ledger import Ledger
from privacy.mechanism import Mode, PrivacyParameters

# Plain averaging with the textbook step of softmax regression on features of norm one; chosen on the public
# proxy images (`python -m tools.choose_demo_settings`), as everything in demo/policy.toml was.
PROBE_TRAINING = LocalTraining(learning_rate=1.0, max_physical_batch=2048)
PROBE_OPTIMIZER = ServerOptimizer(OptimizerKind.ADAM, learning_rate=0.3)
PROBE_MAX_GRAD_NORM = 0.5


@dataclass(frozen=True)
class LabelledFeatures:
    """Frozen features of one party's images and their class indices ``(n,)``."""

    features: FrozenFeatures
    labels: Tensor


def without_privacy(params: PrivacyParameters) -> PrivacyParameters:
    """The same sampling, denominators and steps, without clipping and noise."""
    return dataclasses.replace(params, mode=Mode.UNSAFE_NO_DP, noise_multiplier=0.0, noise_shares=None)


def nonprivate_accuracy(
    policy: StudyPolicy, model: PromptedModel, sites: Sequence[LabelledFeatures], public: LabelledFeatures, folder: Path
) -> Accuracy:
    """Accuracy of the same study with the mode UNSAFE-no-dp."""
    params = without_privacy(policy.privacy_parameters(len(initial_parameters(model))))
    ledgers = [
        unsafe_ledger(folder / f"nonprivate-{i}.sqlite", params.delta, unit=params.unit) for i in range(len(sites))
    ]
    try:
        simulated = [
            Site(
                LocalTrainer.for_prompts(
                    model, site.features, site.labels, training=local_training_of(policy), privacy=params, ledger=ledger
                ),
                ledger,
            )
            for site, ledger in zip(sites, ledgers, strict=True)
        ]
        start = ServerState.initial(initial_parameters(model))
        tuned = run_rounds(
            simulated,
            start,
            rounds=policy.study.rounds,
            optimizer=server_optimizer_of(policy),
            privacy=params,
            run_id=f"{policy.study.run_id}-nonprivate",
        )
    finally:
        for ledger in ledgers:
            ledger.close()
    return prompted_accuracy(model, public.features, public.labels, parameters=tuned.parameters)


def probe_accuracy(
    policy: StudyPolicy, model: PromptedModel, sites: Sequence[LabelledFeatures], public: LabelledFeatures, folder: Path
) -> tuple[Accuracy, float]:
    """Accuracy of a DP linear probe under the study's mechanism, and the largest epsilon its ledgers show."""
    probe = LinearProbe(
        model.backbone.joint_width, len(model.bank.class_names), centre=synthetic_centre(model.backbone)
    )
    dimension = len(get_vector(probe))
    section = policy.privacy.model_copy(update={"max_grad_norm": PROBE_MAX_GRAD_NORM})
    policy = policy.model_copy(update={"privacy": section})
    params = policy.privacy_parameters(dimension)
    ledgers = [
        Ledger.create(
            folder / f"probe-{i}.sqlite",
            dataset_id=f"probe-{i}",
            delta=params.delta,
            epsilon_max=policy.privacy.epsilon_max,
            unit=params.unit,
        )
        for i in range(len(sites))
    ]
    try:
        simulated = [
            Site(
                probe_trainer(
                    probe,
                    site.features.tensors["zero_shot"],
                    site.labels,
                    training=PROBE_TRAINING,
                    privacy=params,
                    ledger=ledger,
                ),
                ledger,
            )
            for site, ledger in zip(sites, ledgers, strict=True)
        ]
        tuned = run_rounds(
            simulated,
            ServerState.initial(get_vector(probe)),
            rounds=policy.study.rounds,
            optimizer=PROBE_OPTIMIZER,
            privacy=params,
            run_id=f"{policy.study.run_id}-probe",
            secure_sum=policy.secure_sum(dimension) if policy.is_distributed else None,
        )
        epsilon = max(ledger.spent().epsilon for ledger in ledgers)
    finally:
        for ledger in ledgers:
            ledger.close()
    set_vector(probe, tuned.parameters)
    with torch.no_grad():
        return accuracy_of(probe(public.features.tensors["zero_shot"]), public.labels), epsilon


def unsafe_ledger(path: Path, delta: float, *, unit: str = "record") -> Ledger:
    """A ledger that permits training without privacy: for comparison, on images that may be public."""
    return Ledger.create(path, dataset_id=path.stem, delta=delta, epsilon_max=math.inf, unit=unit, unsafe=True)


def initial_parameters(model: PromptedModel) -> Vector:
    """The public initial parameters of a model, whatever it holds now."""
    return get_vector(PromptedModel(model.backbone, model.bank, model.config))
