from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from privacy import ADD_OR_REMOVE_ONE, Ledger, Mode, PrivacyParameters


@pytest.fixture
def params() -> PrivacyParameters:
    return PrivacyParameters(
        mode=Mode.RECORD_LOCAL,
        unit="record",
        neighboring_relation=ADD_OR_REMOVE_ONE,
        sample_rate=0.5,
        noise_multiplier=2.0,
        max_grad_norm=0.5,
        expected_batch_size=30,
        steps_per_round=3,
        delta=1e-5,
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.create(tmp_path / "ledger.db", dataset_id="ward", delta=1e-5, epsilon_max=50.0) as opened:
        yield opened


@pytest.fixture
def unsafe_ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.create(
        tmp_path / "unsafe.db", dataset_id="public", delta=1e-5, epsilon_max=float("inf"), unsafe=True
    ) as opened:
        yield opened
