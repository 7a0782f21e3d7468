from __future__ import annotations

from pathlib import Path
from typing import cast, get_args

import numpy as np
import pytest
import torch

from fedmvp.errors import UserError
from fedmvp.evaluation.accuracy import prompted_accuracy
from fedmvp.model.clip_library import open_clip
from fedmvp.model.embedded import save_embedded
from fedmvp.model.features import extract_features
from fedmvp.model.from_policy import build_prompted_model, prompt_config_of, task_of
from fedmvp.model.loading import random_backbone
from fedmvp.model.parameters import dimension, get_vector
from fedmvp.model.prompt_config import Injection, NeutralStart, Variant
from fedmvp.study.policy import StudyPolicy, parse_policy
from fedmvp.study.templates import policy_template
from fedmvp.training.aggregate import OptimizerKind, ServerState, apply_sum
from fedmvp.training.from_policy import build_local_trainer, build_worker, local_training_of, server_optimizer_of
from privacy import Ledger
from privacy.mechanism import PerSampleEngine
from privacy.ranks import ComputingRank
from tests.model.caches import sealed
from tests.model.tiny import random_images, tiny_config


@pytest.fixture
def policy() -> StudyPolicy:
    return parse_policy(policy_template("run-1").encode())


@pytest.fixture
def weights(tmp_path: Path, policy: StudyPolicy) -> Path:
    """A tiny embedded model with more words than the task has."""
    tokenizer = open_clip.SimpleTokenizer()
    config = tiny_config(image_size=16)
    used = {token for row in policy.task.sentences for text in row for token in tokenizer.encode(text)}
    path = tmp_path / "fedmvp-tiny.safetensors"
    save_embedded(random_backbone(config, seed=0).model, config, path, used | {49406, 49407})
    return path


def test_a_policy_becomes_the_models_and_trainings_values(policy: StudyPolicy) -> None:
    config, task = prompt_config_of(policy), task_of(policy)
    assert config.variant is Variant(policy.model.variant)
    assert config.injection is Injection(policy.model.injection)
    assert config.neutral_start is NeutralStart(policy.model.neutral_start)
    assert (config.n_prompts, config.n_heads) == (policy.model.n_prompts, policy.model.n_heads)
    assert (config.bottleneck_width, config.lora_rank) == (policy.model.bottleneck_width, policy.model.lora_rank)
    assert (config.flip, config.initial_seed) == (policy.model.flip, policy.model.initial_seed)
    assert config.consistency_weight == policy.model.consistency_weight
    assert (config.probe_gain, prompt_config_of(_with_probe(policy)).probe_gain) == (0.0, 4.0)
    assert task.class_names == policy.task.class_names
    assert task.sentences == tuple(sentence for row in policy.task.sentences for sentence in row)
    training, optimizer = local_training_of(policy), server_optimizer_of(policy)
    assert (training.learning_rate, training.momentum) == (policy.training.learning_rate, policy.training.momentum)
    assert optimizer.kind is OptimizerKind(policy.aggregation.server_optimizer)
    assert optimizer.learning_rate == policy.aggregation.server_learning_rate
    assert (optimizer.beta1, optimizer.beta2) == (policy.aggregation.adam_beta1, policy.aggregation.adam_beta2)
    assert optimizer.epsilon == policy.aggregation.adam_epsilon


def _with_probe(policy: StudyPolicy) -> StudyPolicy:
    return policy.model_copy(update={"model": policy.model.model_copy(update={"probe_gain": 4.0})})


@pytest.mark.parametrize("probe_gain", [0.0, 4.0])
def test_from_policy_to_a_tuned_model_with_its_accuracy(
    probe_gain: float, policy: StudyPolicy, weights: Path, tmp_path: Path
) -> None:
    changes = {"n_prompts": 8, "n_heads": 2, "bottleneck_width": 8, "probe_gain": probe_gain}
    section = policy.model.model_copy(update=changes)
    policy = policy.model_copy(update={"model": section})
    model = build_prompted_model(policy, checkpoint=weights, cache_dir=tmp_path / "cache")
    images, labels = random_images(40), torch.arange(40) % len(policy.task.classes)
    features = extract_features(model, images, cache=sealed(tmp_path))
    state = ServerState.initial(get_vector(model))
    with Ledger.create(
        tmp_path / "ledger.db", dataset_id="ward", delta=policy.privacy.delta, epsilon_max=policy.privacy.epsilon_max
    ) as ledger:
        trainer = build_local_trainer(policy, model, features, labels, ledger)
        update = trainer.train_round(state.parameters)
    after = apply_sum(state, 3 * update, 3, server_optimizer_of(policy))
    assert after.dimension == dimension(model)
    assert not np.array_equal(after.parameters, state.parameters)
    accuracy = prompted_accuracy(model, features, labels, parameters=after.parameters)
    assert accuracy.total == 40


class Stated:
    """A process's place among others that agree to everything."""

    def __init__(self) -> None:
        self.facts: dict[str, bytes] = {}

    def agree(self, facts: dict[str, bytes]) -> None:
        self.facts |= facts


@pytest.mark.parametrize("engine", get_args(PerSampleEngine))
def test_a_computing_process_trains_what_the_leading_one_trains_in_the_way_that_the_site_chose(
    policy: StudyPolicy, weights: Path, engine: PerSampleEngine
) -> None:
    section = policy.model.model_copy(update={"n_prompts": 8, "n_heads": 2, "bottleneck_width": 8})
    policy = policy.model_copy(update={"model": section})
    model = build_prompted_model(policy, checkpoint=weights)
    labels, stated = torch.arange(6) % len(policy.task.classes), Stated()
    features = extract_features(model, random_images(6))
    worker = build_worker(policy, model, features, labels, cast("ComputingRank", stated), per_sample_engine=engine)
    assert worker.performance.per_sample_engine == engine
    assert len(worker.data) == 6
    assert set(stated.facts) == {"privacy parameters", "trained parameters"}


def test_a_pinned_hash_that_does_not_match_stops_the_build(policy: StudyPolicy, weights: Path) -> None:
    section = policy.model.model_copy(update={"backbone_sha256": "ab" * 32})
    with pytest.raises(UserError, match="the policy pins"):
        build_prompted_model(policy.model_copy(update={"model": section}), checkpoint=weights)
