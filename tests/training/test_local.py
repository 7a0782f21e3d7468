from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedmvp.data.source import PixelTensor
from fedmvp.errors import UserError
from fedmvp.evaluation.accuracy import prompted_accuracy, zero_shot_accuracy
from fedmvp.model.compute import compute_reproducibly
from fedmvp.model.feature_records import FeatureLimits, FeatureRecords, gather_features
from fedmvp.model.features import FrozenFeatures, extract_features
from fedmvp.model.parameters import dimension, get_vector
from fedmvp.model.prompt_config import Injection, NeutralStart, Variant
from fedmvp.model.prompted import PromptedModel
from fedmvp.training.aggregate import ServerOptimizer, ServerState
from fedmvp.training.local import LabelledRecords, LocalTrainer, LocalTraining
from fedmvp.training.rounds import Site, run_rounds
from privacy import BudgetExceeded, Ledger, Mode, PrivacyParameters
from tests.model.caches import sealed
from tests.model.tiny import CHOICES, random_images, tiny_model

SLOW = LocalTraining(learning_rate=0.1)

ROUNDED_AWAY = 4
"""Coordinates of the largest module whose noise may happen to be below float32's last bit; 0.01 are expected."""


def coloured_images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of three classes that differ by their brightest channel."""
    images, labels = random_images(count), torch.arange(count) % 3
    for index, label in enumerate(labels.tolist()):
        images[index] //= 4
        images[index, label] += 150
    return images, labels


def site(model: PromptedModel, count: int = 60) -> tuple[FrozenFeatures, torch.Tensor]:
    images, labels = coloured_images(count)
    return extract_features(model, images), labels


@pytest.mark.parametrize(("variant", "injection", "start"), CHOICES)
def test_a_private_round_returns_a_finite_difference_for_every_choice(
    variant: Variant, injection: Injection, start: NeutralStart, params: PrivacyParameters, ledger: Ledger
) -> None:
    model = tiny_model(variant, injection, start)
    trainer = LocalTrainer.for_prompts(model, *site(model, 20), training=SLOW, privacy=params, ledger=ledger)
    start_vector = get_vector(model)
    update = trainer.train_round(start_vector)
    assert update.shape == (dimension(model),)
    assert update.dtype == np.float64
    assert np.isfinite(update).all()
    assert (update == 0).sum() <= ROUNDED_AWAY  # noise reaches every parameter
    np.testing.assert_allclose(get_vector(model), start_vector + update, rtol=1e-5, atol=1e-6)


def test_the_noise_of_an_update_has_the_deviation_the_policy_implies(params: PrivacyParameters, ledger: Ledger) -> None:
    model = tiny_model()
    params = replace(params, max_grad_norm=1e-6, noise_multiplier=3e6)
    trainer = LocalTrainer.for_prompts(model, *site(model), training=SLOW, privacy=params, ledger=ledger)
    update = trainer.train_round(get_vector(model))
    expected = 0.1 * 3e6 * 1e-6 / 30 * np.sqrt(3)  # rate x multiplier x norm / public batch size, three steps
    assert abs(update.std() / expected - 1) < 6 / np.sqrt(2 * len(update))


def test_a_round_starts_from_the_published_parameters_not_from_the_last_ones(
    params: PrivacyParameters, unsafe_ledger: Ledger
) -> None:
    model = tiny_model()
    start = get_vector(model)
    certain = replace(params, mode=Mode.UNSAFE_NO_DP, sample_rate=1.0)
    trainer = LocalTrainer.for_prompts(model, *site(model), training=SLOW, privacy=certain, ledger=unsafe_ledger)
    first, second = trainer.train_round(start), trainer.train_round(start)
    np.testing.assert_allclose(first, second, atol=1e-7)
    assert np.abs(first).max() > 1e-4


@pytest.mark.parametrize(("start", "rate"), [(NeutralStart.ANCHOR, 3.0), (NeutralStart.MIX, 3.0)])
def test_training_without_noise_learns_what_zero_shot_does_not_know(
    start: NeutralStart, rate: float, params: PrivacyParameters, unsafe_ledger: Ledger
) -> None:
    model = tiny_model(start=start, n_prompts=8)
    features, labels = site(model)
    certain = replace(params, mode=Mode.UNSAFE_NO_DP, sample_rate=1.0, expected_batch_size=60, steps_per_round=60)
    training = LocalTraining(learning_rate=rate, momentum=0.9)
    trainer = LocalTrainer.for_prompts(
        model, features, labels, training=training, privacy=certain, ledger=unsafe_ledger
    )
    parameters = get_vector(model)
    tuned = (parameters + trainer.train_round(parameters)).astype(np.float32)
    before = zero_shot_accuracy(model, features, labels)
    after = prompted_accuracy(model, features, labels, parameters=tuned)
    assert after.low > before.high


def test_a_round_over_the_budget_trains_nothing(params: PrivacyParameters, tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "small.db", dataset_id="ward", delta=1e-5, epsilon_max=0.1) as poor:
        model = tiny_model()
        trainer = LocalTrainer.for_prompts(model, *site(model), training=SLOW, privacy=params, ledger=poor)
        start = get_vector(model)
        with pytest.raises(BudgetExceeded):
            trainer.train_round(start)
        assert np.array_equal(get_vector(model), start)


def test_training_that_diverges_is_the_users_message(params: PrivacyParameters, unsafe_ledger: Ledger) -> None:
    model = tiny_model()
    unsafe = replace(params, mode=Mode.UNSAFE_NO_DP, steps_per_round=20)
    training = LocalTraining(learning_rate=1e38)
    trainer = LocalTrainer.for_prompts(model, *site(model), training=training, privacy=unsafe, ledger=unsafe_ledger)
    with pytest.raises(UserError, match="diverged"):
        trainer.train_round(get_vector(model))


@pytest.mark.parametrize("labels", [torch.zeros(59), torch.full((60,), 3), torch.full((60,), -1)])
def test_labels_that_do_not_fit_are_refused(labels: torch.Tensor, params: PrivacyParameters, ledger: Ledger) -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match="class index below 3"):
        LocalTrainer.for_prompts(model, site(model)[0], labels.long(), training=SLOW, privacy=params, ledger=ledger)


def test_published_parameters_that_are_not_finite_are_refused(params: PrivacyParameters, ledger: Ledger) -> None:
    model = tiny_model()
    trainer = LocalTrainer.for_prompts(model, *site(model), training=SLOW, privacy=params, ledger=ledger)
    with pytest.raises(ValueError, match="not finite"):
        trainer.train_round(np.full(dimension(model), np.nan, dtype=np.float32))


def test_a_site_without_records_returns_noise_like_any_other(params: PrivacyParameters, ledger: Ledger) -> None:
    model = tiny_model()
    features, labels = site(model)
    none = FrozenFeatures({name: value[:0] for name, value in features.tensors.items()})
    trainer = LocalTrainer.for_prompts(model, none, labels[:0], training=SLOW, privacy=params, ledger=ledger)
    assert (trainer.train_round(get_vector(model)) == 0).sum() <= ROUNDED_AWAY


def test_rounds_in_one_process_average_the_sites_and_charge_each_ledger(
    params: PrivacyParameters, ledger: Ledger, tmp_path: Path
) -> None:
    model = tiny_model()
    states: list[ServerState] = []
    with Ledger.create(tmp_path / "other.db", dataset_id="b", delta=1e-5, epsilon_max=50.0) as other:
        sites = [
            Site(LocalTrainer.for_prompts(model, *site(model), training=SLOW, privacy=params, ledger=book), book)
            for book in (ledger, other)
        ]
        run_rounds(
            sites,
            ServerState.initial(get_vector(model)),
            rounds=2,
            optimizer=ServerOptimizer(),
            privacy=params,
            run_id="try",
            after_round=lambda _, state: states.append(state),
        )
        assert [book.last_round("try") for book in (ledger, other)] == [2, 2]
        assert ledger.spent().steps == 6
    assert [state.step for state in states] == [1, 2]
    assert not np.array_equal(states[0].parameters, states[1].parameters)


def records_of(model: PromptedModel, images: torch.Tensor, where: str, tmp_path: Path) -> FeatureRecords:
    """The same features in memory, on disk, and nowhere yet."""
    cache = sealed(tmp_path) if where == "on disk" else None
    limits = FeatureLimits() if where == "in memory" else FeatureLimits(memory_bytes=0)
    return gather_features(model, PixelTensor(images), cache=cache, limits=limits)


@pytest.mark.parametrize("where", ["in memory", "on disk", "computed"])
def test_fetching_ahead_as_for_a_gpu_changes_nothing(
    where: str, params: PrivacyParameters, unsafe_ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = coloured_images(20)
    model = tiny_model()
    records = records_of(model, images, where, tmp_path)
    certain = replace(params, mode=Mode.UNSAFE_NO_DP, sample_rate=1.0)
    threads: set[str] = set()
    take = FeatureRecords.take

    def noted(self: FeatureRecords, *arguments: object) -> tuple[torch.Tensor, ...]:
        threads.add(threading.current_thread().name)
        return take(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(FeatureRecords, "take", noted)
    updates = []
    for at_hand in (True, False):
        monkeypatch.setattr(LabelledRecords, "at_hand", lambda _self, _device, value=at_hand: value)
        threads.clear()
        training = LocalTraining(0.1, max_physical_batch=7)
        trainer = LocalTrainer.for_prompts(
            model, records, labels, training=training, privacy=certain, ledger=unsafe_ledger
        )
        updates.append(trainer.train_round(get_vector(tiny_model())))
        assert all(name.startswith("MainThread" if at_hand else "records") for name in threads)
    np.testing.assert_allclose(updates[0], updates[1], atol=1e-7)
    monkeypatch.undo()
    assert LabelledRecords(records, labels).at_hand(torch.device("cpu"))
    assert not LabelledRecords(records, labels).at_hand(torch.device("cuda"))


@pytest.mark.parametrize("injection", Injection)
def test_the_update_is_the_same_wherever_the_features_are_and_however_they_are_batched(
    injection: Injection, params: PrivacyParameters, unsafe_ledger: Ledger, tmp_path: Path
) -> None:
    images, labels = coloured_images(20)
    model = tiny_model(injection=injection, flip=True, consistency_weight=1.0)
    start = get_vector(model)
    certain = replace(params, mode=Mode.UNSAFE_NO_DP, sample_rate=1.0)
    updates = {}
    for where in ("in memory", "on disk", "computed"):
        for largest in (256, 7):
            trainer = LocalTrainer.for_prompts(
                model,
                records_of(model, images, where, tmp_path),
                labels,
                training=LocalTraining(0.1, max_physical_batch=largest),
                privacy=certain,
                ledger=unsafe_ledger,
            )
            updates[where, largest] = trainer.train_round(start)
    expected = updates["in memory", 256]
    assert np.abs(expected).max() > 1e-3
    assert np.array_equal(updates["on disk", 256], expected)
    for update in updates.values():
        np.testing.assert_allclose(update, expected, atol=2e-5)
    exact = LocalTrainer.for_prompts(
        model, extract_features(model, images), labels, training=SLOW, privacy=certain, ledger=unsafe_ledger
    ).train_round(start)
    np.testing.assert_allclose(exact, expected, atol=1e-3 * np.abs(expected).max() + 1e-5)  # without float16


def test_a_private_round_on_records_that_do_not_fit_in_memory_runs_and_is_noised(
    params: PrivacyParameters, ledger: Ledger, tmp_path: Path
) -> None:
    images, labels = coloured_images(20)
    model = tiny_model()
    records = records_of(model, images, "on disk", tmp_path)
    assert not records.in_memory
    trainer = LocalTrainer.for_prompts(model, records, labels, training=SLOW, privacy=params, ledger=ledger)
    assert (trainer.train_round(get_vector(model)) == 0).sum() <= ROUNDED_AWAY


def test_reproducible_computing_repeats_the_arithmetic_and_neither_noise_nor_sampling(
    params: PrivacyParameters, ledger: Ledger, unsafe_ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    certain = replace(params, mode=Mode.UNSAFE_NO_DP, sample_rate=1.0)
    compute_reproducibly()
    try:
        updates = []
        for privacy, book in (
            (certain, unsafe_ledger),
            (replace(certain, sample_rate=0.5), unsafe_ledger),
            (params, ledger),
        ):
            for _ in range(2):
                model = tiny_model(Variant.FULL)
                trainer = LocalTrainer.for_prompts(model, *site(model), training=SLOW, privacy=privacy, ledger=book)
                updates.append(trainer.train_round(get_vector(model)))
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before
    assert np.array_equal(updates[0], updates[1])
    assert not np.array_equal(updates[2], updates[3])  # sampled anew
    assert (updates[4] == updates[5]).sum() <= ROUNDED_AWAY  # noise is fresh
