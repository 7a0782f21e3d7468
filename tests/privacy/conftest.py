"""What every privacy test needs: parameters, and a ledger in a folder of its own."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from privacy import ADD_OR_REMOVE_ONE, Ledger, Mode, PrivacyParameters

PARAMS = PrivacyParameters(
    mode=Mode.RECORD_LOCAL,
    unit="record",
    neighboring_relation=ADD_OR_REMOVE_ONE,
    sample_rate=0.1,
    noise_multiplier=1.5,
    max_grad_norm=0.5,
    expected_batch_size=20,
    steps_per_round=5,
    delta=1e-5,
)
UNSAFE = replace(PARAMS, mode=Mode.UNSAFE_NO_DP)
POLICY = bytes(range(32))


@pytest.fixture
def params() -> PrivacyParameters:
    return PARAMS


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.create(tmp_path / "ledger.db", dataset_id="ward-7", delta=1e-5, epsilon_max=8.0) as opened:
        yield opened


@pytest.fixture
def unsafe_ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.create(
        tmp_path / "unsafe.db", dataset_id="public", delta=1e-5, epsilon_max=float("inf"), unsafe=True
    ) as opened:
        yield opened
