"""Every method goes through the one trainer, under every privacy mode."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedmvp.evaluation.accuracy import accuracy_of
from fedmvp.evaluation.average_precision import mean_average_precision
from fedmvp.evaluation.predictions import method_logits
from fedmvp.evaluation.settings import BaseToNew, BySite
from fedmvp.methods.classes import Wording
from fedmvp.methods.features import complete_features, read_images, summarise_images
from fedmvp.methods.method import MethodModel, Reads
from fedmvp.methods.objective import MultiLabel, Objective, calibrate
from fedmvp.methods.zero_shot import ZeroShot
from fedmvp.model.features import FrozenFeatures
from fedmvp.model.parameters import dimension, get_vector, set_vector
from fedmvp.training.aggregate import ServerOptimizer, ServerState
from fedmvp.training.local import LocalTraining
from fedmvp.training.methods import method_trainer
from fedmvp.training.rounds import Site, run_rounds
from privacy import ADD_OR_REMOVE_ONE, Ledger, Mode, PrivacyParameters
from privacy.mechanism import NoiseShares
from tests.methods.toys import CLASSES, SINGLE, TOWER, TRAINED, UNSEEN, build, coloured_images
from tests.model.tiny import disturb, random_images

COUNT = 60


def params_of(mode: Mode, size: int, **changes: float) -> PrivacyParameters:
    """Parameters of a mode; the grid of a distributed one is that of a step of 0.1."""
    influence = 0.5 if mode is Mode.SILO_DISTRIBUTED else 0.5 * 0.1 / COUNT
    shares = NoiseShares(dimension=size, shares=3, grid=influence * 2.0**40, clamp=2**56)
    plain = mode is Mode.UNSAFE_NO_DP
    base = PrivacyParameters(
        mode=mode,
        unit="site" if mode is Mode.SILO_DISTRIBUTED else "record",
        neighboring_relation=ADD_OR_REMOVE_ONE,
        sample_rate=1.0 if mode is Mode.SILO_DISTRIBUTED or plain else 0.5,
        noise_multiplier=0.0 if plain else 2.0,
        max_grad_norm=0.5,
        expected_batch_size=COUNT,
        steps_per_round=1,
        delta=1e-5,
        noise_shares=shares if mode.is_distributed else None,
    )
    return replace(base, **changes)


def ledger_of(folder: Path, params: PrivacyParameters) -> Ledger:
    unsafe = params.mode is Mode.UNSAFE_NO_DP
    return Ledger.create(
        folder / "ledger.db",
        dataset_id="ward",
        delta=1e-5,
        epsilon_max=math.inf if unsafe else 500.0,
        unit=params.unit,
        unsafe=unsafe,
    )


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("name", TRAINED)
def test_a_round_of_every_mode_gives_an_update_that_reaches_every_parameter(
    name: str, mode: Mode, tmp_path: Path
) -> None:
    model = build(name)
    disturb(model)
    start = get_vector(model)
    images, labels = coloured_images(20)
    params = params_of(mode, len(start))
    with ledger_of(tmp_path, params) as ledger:
        training = LocalTraining(learning_rate=0.1)
        trainer = method_trainer(
            model, read_images(model, images), labels, SINGLE, training=training, privacy=params, ledger=ledger
        )
        update = trainer.train_on_grid(start, 2) if mode.is_distributed else trainer.train_round(start)
    assert update.shape == (dimension(model),)
    assert np.isfinite(update).all()
    assert (update != 0).mean() > 0.9


def toy(name: str) -> tuple[MethodModel, FrozenFeatures, Tensor]:
    """Images, or features alone, whose classes the tower does not know and the method can learn."""
    model = build(name)
    if TRAINED[name].reads & {Reads.TAIL, Reads.TOKENS}:
        images, labels = coloured_images(COUNT)
        return model, read_images(model, images), labels
    draws = torch.Generator().manual_seed(4)
    features = FrozenFeatures({"zero_shot": F.normalize(torch.randn(COUNT, 24, generator=draws), dim=-1)})
    teacher = build(name)
    disturb(teacher, scale=1.0)
    with torch.no_grad():
        return model, features, teacher(features.tensors).argmax(dim=-1)


def train(name: str, labels: Tensor, objective: Objective, folder: Path) -> tuple[float, float, Tensor]:
    """The mean loss before and after training without noise, and the logits after it."""
    model, features, _ = toy(name)
    start = get_vector(model)
    params = params_of(Mode.UNSAFE_NO_DP, len(start), steps_per_round=40)
    training = LocalTraining(learning_rate=10.0 if "vpt" in name else 0.3, momentum=0.9)
    with ledger_of(folder, params) as ledger:
        trainer = method_trainer(model, features, labels, objective, training=training, privacy=params, ledger=ledger)
        tuned = (start + trainer.train_round(start)).astype(np.float32)
    before, after = (method_logits(model, features, parameters=vector) for vector in (start, tuned))
    return float(objective(before, labels).mean()), float(objective(after, labels).mean()), after


@pytest.mark.parametrize("name", TRAINED)
def test_without_noise_it_learns_more_than_the_frequencies_of_the_classes(name: str, tmp_path: Path) -> None:
    labels = toy(name)[2]
    _, after, _ = train(name, labels, SINGLE, tmp_path)
    shares = torch.bincount(labels, minlength=3) / COUNT
    assert after < 0.9 * float(torch.special.entr(shares).sum())  # what the best constant answer costs


@pytest.mark.parametrize("name", TRAINED)
def test_without_noise_it_learns_several_labels_an_image(name: str, tmp_path: Path) -> None:
    model, features, single = toy(name)
    public = method_logits(model, features)
    objective = MultiLabel(calibrate(public, scale=1.0, prevalence=1 / 3))
    labels = F.one_hot(single, 3)
    before, after, logits = train(name, labels, objective, tmp_path)
    assert after < 0.9 * before
    assert mean_average_precision(logits, labels).value > mean_average_precision(public, labels).value


@pytest.mark.parametrize("name", TRAINED)
def test_a_vector_that_is_written_is_read_back_and_serves_other_classes(name: str) -> None:
    model, other = build(name), build(name, UNSEEN)
    start = get_vector(model)
    assert np.array_equal(start, get_vector(build(name)))  # public, and the same at all parties
    disturb(model)
    moved = get_vector(model)
    assert not np.array_equal(moved, start)
    set_vector(model, start)
    assert np.array_equal(get_vector(model), start)
    images = random_images(4)
    before = method_logits(other, read_images(other, images))
    after = method_logits(other, read_images(other, images), parameters=moved)
    assert before.shape == after.shape == (4, len(UNSEEN))
    assert torch.equal(before, after) == (name in ("linear-probe", "task-residual"))  # rows of trained classes alone


@pytest.mark.parametrize("name", TRAINED)
def test_the_trained_parameters_are_all_that_is_registered(name: str) -> None:
    model = build(name)
    read_images(model, random_images(2))
    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    assert {parameter for parameter in model.parameters() if parameter not in trained} == {
        parameter for key, parameter in model.named_parameters() if ".frozen." in key
    }
    assert not list(model.buffers())


def test_methods_with_equal_summaries_read_the_same_of_an_image() -> None:
    first, second = build("promptfl"), build("fedclip")
    assert first.summary == second.summary
    summary = summarise_images(first, random_images(5), batch_size=2)
    assert torch.equal(complete_features(second, summary).tensors["zero_shot"], summary.tensors["zero_shot"])
    assert build("fedmvp-narrow").summary != build("fedmvp-full").summary != build("fedvpt").summary


@pytest.mark.parametrize("labels", [torch.zeros(19).long(), torch.full((20,), 3), torch.zeros(20, 3).long()])
def test_labels_that_do_not_fit_are_refused(labels: Tensor, tmp_path: Path) -> None:
    model = build("fedclip")
    params = params_of(Mode.UNSAFE_NO_DP, dimension(model))
    with ledger_of(tmp_path, params) as ledger, pytest.raises(ValueError, match="labels"):
        method_trainer(
            model,
            read_images(model, random_images(20)),
            labels,
            SINGLE,
            training=LocalTraining(learning_rate=0.1),
            privacy=params,
            ledger=ledger,
        )


def test_zero_shot_has_nothing_to_train(tmp_path: Path) -> None:
    model = ZeroShot(Wording.TEMPLATE).build(TOWER, CLASSES)
    features = read_images(model, random_images(20))
    params = params_of(Mode.UNSAFE_NO_DP, 1)
    training = LocalTraining(learning_rate=0.1)
    with ledger_of(tmp_path, params) as ledger, pytest.raises(ValueError, match="nothing to train"):
        method_trainer(
            model, features, torch.zeros(20).long(), SINGLE, training=training, privacy=params, ledger=ledger
        )


@pytest.mark.parametrize("name", ["fedmvp-narrow", "promptfl", "fedtpg", "fedclip", "linear-probe"])
def test_sites_with_classes_of_their_own_share_one_vector(name: str, tmp_path: Path) -> None:
    """The base-to-new setting: each site decides among its own classes, and all are measured on all and on new ones."""
    images, labels = coloured_images(COUNT)
    whole = build(name)
    params = params_of(Mode.RECORD_LOCAL, dimension(whole))
    start, own = ServerState.initial(get_vector(whole)), {"a": ("cat", "car"), "b": ("tree",)}
    with ExitStack() as books:
        sites = []
        for site, names in own.items():
            model = build(name, CLASSES.subset(names))
            at_site = torch.isin(labels, torch.tensor([CLASSES.names.index(each) for each in names]))
            (tmp_path / site).mkdir()
            ledger = books.enter_context(ledger_of(tmp_path / site, params))
            trainer = method_trainer(
                model,
                read_images(model, images[at_site]),
                labels[at_site] - CLASSES.names.index(names[0]),
                SINGLE,
                training=LocalTraining(learning_rate=0.1),
                privacy=params,
                ledger=ledger,
            )
            sites.append(Site(trainer, ledger))
        tuned = run_rounds(sites, start, rounds=2, optimizer=ServerOptimizer(), privacy=params, run_id="base-to-new")
    assert not np.array_equal(tuned.parameters, start.parameters)
    measured = {}
    for key, classes in {"base": CLASSES, "new": UNSEEN, **{site: CLASSES.subset(own[site]) for site in own}}.items():
        model = build(name, classes)
        logits = method_logits(model, read_images(model, images), parameters=tuned.parameters)
        measured[key] = accuracy_of(logits, torch.arange(COUNT) % len(classes))
    run = BaseToNew(BySite({site: measured[site] for site in own}), base=measured["base"], new=measured["new"])
    assert 0 <= run.harmonic_mean <= 1
    assert measured["b"].value == 1.0  # one class to choose among
