"""Two clients on one ledger, and a ledger that is not the one of this site's past."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmvp.client.runner import run_client
from fedmvp.study.config import ClientConfig, load_client_config
from fedmvp.study.site import SiteOptions
from fedmvp.study.workshop import create_study
from privacy.errors import LedgerLocked, LedgerRolledBack
from privacy.ledger import Ledger
from tests.e2e.federation import policy_text


@pytest.fixture
def config(tmp_path: Path) -> ClientConfig:
    names = ("site-1", "site-2", "site-3")
    sites = [SiteOptions(name, name, tmp_path, dataset_id="d", epsilon_max=float("inf")) for name in names]
    study = create_study(tmp_path / "study", policy_text(), sites=sites)
    config = load_client_config(study.site_configs["site-1"], environment={})
    Ledger.create(config.privacy.ledger, dataset_id="d", delta=1e-5, epsilon_max=float("inf"), unsafe=True).close()
    return config


def test_a_second_client_is_refused_before_it_touches_the_records_of_the_first(config: ClientConfig) -> None:
    config.state.dir.mkdir(parents=True)
    journal = config.state.dir / "rounds.jsonl"
    journal.write_text('{"half a line')
    with Ledger.open(config.privacy.ledger), pytest.raises(LedgerLocked):
        run_client(config)

    assert journal.read_text() == '{"half a line'


def test_a_ledger_requires_the_head_that_was_recorded_elsewhere(config: ClientConfig) -> None:
    with Ledger.open(config.privacy.ledger) as ledger:
        ledger.require_head(ledger.head)
        with pytest.raises(LedgerRolledBack):
            ledger.require_head(bytes(32))
