from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from fedmvp.evaluation.accuracy import accuracy_of
from fedmvp.model.parameters import dimension, get_vector, set_vector
from fedmvp.training.baselines import LinearProbe, probe_trainer, synthetic_centre
from fedmvp.training.local import LocalTraining
from privacy import Ledger, Mode, PrivacyParameters
from tests.model.tiny import tiny_backbone


def clusters(count: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    centres = torch.eye(3, 24)
    return centres[labels] + 0.1 * torch.randn(count, 24, generator=draws) + 5.0, labels


def test_a_probe_starts_at_zero_and_learns_separable_features_privately(
    params: PrivacyParameters, ledger: Ledger
) -> None:
    features, labels = clusters()
    probe = LinearProbe(24, 3, centre=torch.full((24,), 5.0))
    assert not get_vector(probe).any()
    assert dimension(probe) == 24 * 3 + 3
    private = replace(params, expected_batch_size=150, steps_per_round=20, noise_multiplier=3.0)
    training = LocalTraining(learning_rate=2.0)
    trainer = probe_trainer(probe, features, labels, training=training, privacy=private, ledger=ledger)
    set_vector(probe, trainer.train_round(get_vector(probe)).astype(np.float32))
    assert accuracy_of(probe(features).detach(), labels).low > 0.8


def test_without_a_centre_the_common_part_of_the_features_drowns_the_classes(
    params: PrivacyParameters, unsafe_ledger: Ledger
) -> None:
    features, labels = clusters()
    unsafe = replace(params, mode=Mode.UNSAFE_NO_DP, sample_rate=1.0, expected_batch_size=300, steps_per_round=3)
    losses = []
    for centre in (None, torch.full((24,), 5.0)):
        probe = LinearProbe(24, 3, centre=centre)
        training = LocalTraining(learning_rate=2.0)
        trainer = probe_trainer(probe, features, labels, training=training, privacy=unsafe, ledger=unsafe_ledger)
        set_vector(probe, trainer.train_round(get_vector(probe)).astype(np.float32))
        losses.append(float(torch.nn.functional.cross_entropy(probe(features).detach(), labels)))
    assert losses[1] < 0.8 * losses[0]


def test_the_synthetic_centre_needs_no_image_and_is_the_same_every_time() -> None:
    first, second = synthetic_centre(tiny_backbone()), synthetic_centre(tiny_backbone())
    assert torch.equal(first, second)
    assert first.shape == (24,)
    assert 0.1 < float(first.norm()) <= 1.0
