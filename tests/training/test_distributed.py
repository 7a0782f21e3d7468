"""What a site sends in the distributed modes: the plain step on the grid, clipped, with a share of the noise."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fedmvp.training.local
import privacy.dpsgd
from fedmvp.training.aggregate import OptimizerKind, ServerOptimizer, ServerState
from fedmvp.training.local import LocalTrainer, LocalTraining
from fedmvp.training.rounds import Site, run_rounds
from privacy import Ledger, Mode, PrivacyParameters
from privacy.chain import EntryKind
from privacy.distributed import noisy_sum, noisy_update, share_sigma
from privacy.errors import PrivacyRefused
from privacy.mechanism import NoiseShares
from secure_agg.errors import PolicyError
from secure_agg.policy import SecureSumPolicy

WIDTH = 12
DIMENSION = 3 * WIDTH
START = np.random.default_rng(0).normal(size=DIMENSION).astype(np.float32)
FRACTION_BITS = 24
LEARNING_RATE, BATCH_SIZE = 0.3, 30.0


def parameters_of(params: PrivacyParameters, mode: Mode, *, norm: float = 0.5, **changes: Any) -> PrivacyParameters:
    """Parameters of a mode with the grid that the step size gives, as the policy lays it out."""
    influence = norm if mode is Mode.SILO_DISTRIBUTED else norm * LEARNING_RATE / BATCH_SIZE
    shares = NoiseShares(dimension=DIMENSION, shares=3, grid=influence * 2.0**FRACTION_BITS, clamp=2**40)
    return replace(
        params,
        mode=mode,
        unit="site" if mode is Mode.SILO_DISTRIBUTED else "record",
        noise_shares=shares if mode.is_distributed else None,
        max_grad_norm=norm,
        expected_batch_size=BATCH_SIZE,
        **{"steps_per_round": 1, "sample_rate": 1.0, **changes},
    )


def trainer_of(
    params: PrivacyParameters, ledger: Ledger, *, learning_rate: float = LEARNING_RATE, momentum: float = 0.0
) -> LocalTrainer:
    """A trainer of a linear model on thirty records."""
    draws = torch.Generator().manual_seed(3)
    data = (torch.randn((30, WIDTH), generator=draws), torch.arange(30) % 3)

    def loss_per_sample(module: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return nn.functional.cross_entropy(module(batch[0]), batch[1], reduction="none")

    training = LocalTraining(learning_rate=learning_rate, momentum=momentum)
    layer = nn.Linear(WIDTH, 3, bias=False)
    return LocalTrainer(layer, data, loss_per_sample, training=training, privacy=params, ledger=ledger)


@pytest.fixture
def site_ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.create(tmp_path / "site.db", dataset_id="b", delta=1e-5, epsilon_max=500.0, unit="site") as opened:
        yield opened


@contextmanager
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No noise, so that the value below it can be looked at."""

    def none(size: int, _sigma: Fraction, _randomness: object) -> np.ndarray:
        return np.zeros(size, dtype=np.int64)

    with monkeypatch.context() as patch:
        patch.setattr(privacy.dpsgd, "noisy_sum", functools.partial(noisy_sum, noise=none))
        patch.setattr(fedmvp.training.local, "noisy_update", functools.partial(noisy_update, noise=none))
        yield


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_below_its_noise_a_record_distributed_update_is_the_plain_step_against_the_gradient(
    momentum: float,
    params: PrivacyParameters,
    ledger: Ledger,
    unsafe_ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    norm = 1000.0  # nothing is clipped
    plain = trainer_of(parameters_of(params, Mode.UNSAFE_NO_DP, norm=norm), unsafe_ledger, momentum=momentum)
    shared = trainer_of(parameters_of(params, Mode.RECORD_DISTRIBUTED, norm=norm), ledger, momentum=momentum)
    wanted = plain.train_round(START)
    with silent(monkeypatch):
        update = shared.train_on_grid(START, 2) * 2.0**-FRACTION_BITS

    assert np.abs(wanted).max() > 1e-3
    np.testing.assert_allclose(update, wanted, atol=1e-6)  # the plain step is taken in float32


def test_each_record_moves_a_record_distributed_update_by_no_more_than_the_grid_says(
    params: PrivacyParameters, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    tight = parameters_of(params, Mode.RECORD_DISTRIBUTED, norm=0.1)
    assert tight.noise_shares is not None
    with silent(monkeypatch):
        update = trainer_of(tight, ledger).train_on_grid(START, 2)

    assert np.linalg.norm(update) <= 30 * tight.noise_shares.grid + np.sqrt(DIMENSION)
    assert np.linalg.norm(update) > tight.noise_shares.grid


@pytest.mark.parametrize("norm", [1e-3, 1e3])
def test_below_its_noise_a_silo_distributed_update_is_all_the_steps_clipped_as_a_whole(
    norm: float,
    params: PrivacyParameters,
    site_ledger: Ledger,
    unsafe_ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = trainer_of(parameters_of(params, Mode.UNSAFE_NO_DP, steps_per_round=5), unsafe_ledger, momentum=0.9)
    shared = trainer_of(
        parameters_of(params, Mode.SILO_DISTRIBUTED, norm=norm, steps_per_round=5), site_ledger, momentum=0.9
    )
    whole = plain.train_round(START)
    with silent(monkeypatch):
        update = shared.train_on_grid(START, 2) * 2.0**-FRACTION_BITS

    wanted = whole * min(1.0, norm / np.linalg.norm(whole))
    assert np.linalg.norm(whole) > 0.1
    np.testing.assert_allclose(update, wanted, atol=2.0**-FRACTION_BITS + 1e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("mode", [Mode.RECORD_DISTRIBUTED, Mode.SILO_DISTRIBUTED])
def test_a_site_adds_a_share_of_the_noise_that_grows_as_fewer_survivors_are_certain(
    mode: Mode, params: PrivacyParameters, ledger: Ledger, site_ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = parameters_of(params, mode, noise_multiplier=50.0)
    trainer = trainer_of(chosen, site_ledger if mode is Mode.SILO_DISTRIBUTED else ledger)
    with silent(monkeypatch):
        bare = trainer.train_on_grid(START, 2)
    for survivors in (1, 3):
        sigma = float(share_sigma(chosen, survivors))
        noise = np.concatenate([trainer.train_on_grid(START, survivors) - bare for _ in range(40)]) / sigma

        assert abs(noise.std() - 1) < 6 / np.sqrt(2 * noise.size)
        assert abs(noise.std() / 2 - 1) > 6 / np.sqrt(2 * noise.size)  # twice the share would be seen


def test_a_round_that_is_tried_again_draws_batch_and_noise_afresh(params: PrivacyParameters, ledger: Ledger) -> None:
    trainer = trainer_of(parameters_of(params, Mode.RECORD_DISTRIBUTED), ledger)

    assert not np.array_equal(trainer.train_on_grid(START, 2), trainer.train_on_grid(START, 2))


def test_silo_distributed_training_that_changes_nothing_may_be_tried_again_like_any_other(
    params: PrivacyParameters, site_ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A refusal would tell that the site's update was exactly zero, without a charge.
    chosen = parameters_of(params, Mode.SILO_DISTRIBUTED, steps_per_round=3, sample_rate=1e-12)
    trainer = trainer_of(chosen, site_ledger)
    for _ in range(3):
        assert trainer.train_on_grid(START, 2).any()  # noise, whatever was trained
    monkeypatch.setattr(privacy.dpsgd.DpSgdEngine, "start_over", lambda _self: None)
    with pytest.raises(PrivacyRefused, match="6 steps"):
        trainer.train_on_grid(START, 2)


def test_silo_distributed_training_that_diverges_sends_noise_and_tells_nobody(
    params: PrivacyParameters, site_ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = parameters_of(params, Mode.SILO_DISTRIBUTED, steps_per_round=40)
    trainer = trainer_of(chosen, site_ledger, learning_rate=3e38, momentum=0.9)
    with silent(monkeypatch):
        assert not trainer.train_on_grid(START, 2).any()
    assert trainer.train_on_grid(START, 2).any()


@pytest.mark.parametrize("mode", [Mode.RECORD_DISTRIBUTED, Mode.SILO_DISTRIBUTED])
def test_an_update_of_a_distributed_mode_is_never_given_out_without_its_noise(
    mode: Mode, params: PrivacyParameters, ledger: Ledger, site_ledger: Ledger
) -> None:
    trainer = trainer_of(parameters_of(params, mode), site_ledger if mode is Mode.SILO_DISTRIBUTED else ledger)

    with pytest.raises(PrivacyRefused, match="call train_on_grid"):
        trainer.train_round(START)


@pytest.mark.parametrize("mode", [Mode.RECORD_DISTRIBUTED, Mode.SILO_DISTRIBUTED])
def test_a_cohort_larger_than_the_one_that_is_charged_for_is_refused(
    mode: Mode, params: PrivacyParameters, ledger: Ledger, site_ledger: Ledger
) -> None:
    trainer = trainer_of(parameters_of(params, mode), site_ledger if mode is Mode.SILO_DISTRIBUTED else ledger)

    with pytest.raises(PrivacyRefused, match="up to 3 shares, not 4"):
        trainer.train_on_grid(START, 4)


def test_a_local_mode_has_no_update_on_a_grid(params: PrivacyParameters, ledger: Ledger) -> None:
    with pytest.raises(PrivacyRefused):
        trainer_of(parameters_of(params, Mode.RECORD_LOCAL), ledger).train_on_grid(START, 2)


def ring() -> SecureSumPolicy:
    return SecureSumPolicy(
        colluders=1,
        min_cohort=3,
        min_honest=2,
        max_cohort=4,
        dimension=DIMENSION,
        ring_bits=64,
        fraction_bits=FRACTION_BITS,
        max_magnitude=2**50,
    )


@pytest.mark.parametrize("kind", list(OptimizerKind))
def test_rounds_in_one_process_charge_the_distributed_mechanism_at_every_ledger(
    kind: OptimizerKind, params: PrivacyParameters, tmp_path: Path
) -> None:
    chosen = parameters_of(params, Mode.RECORD_DISTRIBUTED)
    ledgers = [
        Ledger.create(tmp_path / f"{kind}-{i}.db", dataset_id=f"{i}", delta=1e-5, epsilon_max=500.0) for i in range(3)
    ]
    sites = [Site(trainer_of(chosen, ledger), ledger) for ledger in ledgers]
    final = run_rounds(
        sites,
        ServerState.initial(START),
        rounds=2,
        optimizer=ServerOptimizer(kind, learning_rate=0.1),
        privacy=chosen,
        run_id="try",
        secure_sum=ring(),
    )

    assert final.step == 2
    assert np.isfinite(final.parameters).all()
    for ledger in ledgers:
        charges = [entry for entry in ledger.entries() if entry.kind is EntryKind.CHARGE]
        assert [charge.mechanism for charge in charges] == [chosen.mechanism] * 2
        ledger.close()


def test_rounds_of_a_distributed_mode_without_its_ring_and_a_ring_without_such_a_mode_are_refused(
    params: PrivacyParameters, ledger: Ledger
) -> None:
    shared, local = (parameters_of(params, mode) for mode in (Mode.RECORD_DISTRIBUTED, Mode.RECORD_LOCAL))
    state = ServerState.initial(START)
    for chosen, given in ((shared, None), (local, ring())):
        with pytest.raises(ValueError, match="the ring of its secure sum"):
            run_rounds([], state, rounds=1, optimizer=ServerOptimizer(), privacy=chosen, run_id="try", secure_sum=given)


def test_fewer_sites_than_the_secure_sum_allows_are_refused(params: PrivacyParameters, ledger: Ledger) -> None:
    chosen = parameters_of(params, Mode.RECORD_DISTRIBUTED)
    sites = [Site(trainer_of(chosen, ledger), ledger)] * 2
    with pytest.raises(PolicyError, match="below the floor"):
        run_rounds(
            sites,
            ServerState.initial(START),
            rounds=1,
            optimizer=ServerOptimizer(),
            privacy=chosen,
            run_id="try",
            secure_sum=ring(),
        )
