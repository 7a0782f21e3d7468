import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from privacy.dpsgd import DpSgdEngine
from privacy.errors import PrivacyRefused
from privacy.ledger import Ledger
from privacy.mechanism import Mode, PrivacyParameters
from privacy.noise import Randomness
from privacy.seeded import SEEDED_DATASET, SeededRandomness

PARAMETERS = PrivacyParameters(
    mode=Mode.RECORD_LOCAL,
    unit="record",
    neighboring_relation="add-or-remove-one",
    sample_rate=0.5,
    noise_multiplier=4.0,
    max_grad_norm=1.0,
    expected_batch_size=4.0,
    steps_per_round=2,
    delta=1e-5,
)


@pytest.fixture
def seeded_ledger(tmp_path: Path) -> Iterator[Ledger]:
    path = tmp_path / "seeded.sqlite"
    with Ledger.create(path, dataset_id=f"{SEEDED_DATASET}study", delta=1e-5, epsilon_max=1000.0) as ledger:
        yield ledger


def loss(module: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    features, labels = batch
    losses: Tensor = (module(features)[:, 0] - labels) ** 2
    return losses


def trained(ledger: Ledger, randomness: Randomness) -> Tensor:
    torch.manual_seed(0)
    module = nn.Linear(3, 1)
    data = (torch.randn(16, 3), torch.randn(16))
    engine = DpSgdEngine(module, loss, params=PARAMETERS, ledger=ledger, learning_rate=0.1, randomness=randomness)
    engine.run(data, 2)
    return module.weight.detach().clone()


def test_equal_seeds_draw_equal_batches_and_noise_and_other_seeds_others(seeded_ledger: Ledger) -> None:
    first, again, other = (trained(seeded_ledger, SeededRandomness(seed)) for seed in (b"a", b"a", b"b"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_a_seed_no_two_runs_are_alike(seeded_ledger: Ledger) -> None:
    assert not torch.equal(trained(seeded_ledger, os.urandom), trained(seeded_ledger, os.urandom))


def test_a_seed_is_refused_beside_the_ledger_of_a_site(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "l.sqlite", dataset_id="ward-7", delta=1e-5, epsilon_max=1000.0) as ledger:
        with pytest.raises(PrivacyRefused, match="seeded randomness protects nobody"):
            trained(ledger, SeededRandomness(b"a"))
        with pytest.raises(PrivacyRefused, match="ward-7"):
            trained(ledger, bytes)
        trained(ledger, os.urandom)  # the same engine takes the operating system's


def test_no_call_repeats_the_bytes_of_another() -> None:
    randomness = SeededRandomness(b"a")
    drawn = [randomness(32) for _ in range(200)]
    assert len(set(drawn)) == len(drawn)
    bits = np.unpackbits(np.frombuffer(SeededRandomness(b"b")(1 << 16), dtype=np.uint8))
    assert abs(bits.mean() - 0.5) < 5 * 0.5 / len(bits) ** 0.5
