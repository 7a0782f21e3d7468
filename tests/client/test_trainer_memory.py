"""What a site says of its memory before it trains, when it stops, and which of its choices reach the engine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fedmvp.client.trainer import build_trainer
from fedmvp.errors import ExitCode, UserError
from fedmvp.study.config import ClientConfig, load_client_config
from fedmvp.study.policy import StudyPolicy
from fedmvp.study.site import SiteOptions
from fedmvp.study.workshop import create_study
from privacy.ledger import Ledger
from tests.e2e.federation import policy_text
from tests.e2e.test_real_training import make_images

Loaded = tuple[Path, StudyPolicy, Ledger]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Loaded]:
    make_images(tmp_path / "images", count=3, seed=1)
    names = ("site-1", "site-2", "site-3")
    sites = [SiteOptions(name, name, tmp_path / "images", dataset_id="d", epsilon_max=8.0) for name in names]
    study = create_study(tmp_path / "study", policy_text(private=True), sites=sites)
    with Ledger.create(tmp_path / "ledger", dataset_id="d", delta=1e-5, epsilon_max=8.0) as ledger:
        yield study.site_configs["site-1"], study.policy, ledger


def config(site: Loaded, **compute: object) -> ClientConfig:
    overrides = {f"compute.{name}": value for name, value in {"device": "cpu", **compute}.items()}
    return load_client_config(site[0], overrides=overrides, environment={})


def held_gb() -> float:
    """What this process holds, in GB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e9


def test_a_site_says_what_it_will_need_before_it_trains(site: Loaded) -> None:
    with capture_logs() as logs:
        trainer = build_trainer(config(site), *site[1:])
    (line,) = [entry for entry in logs if entry["event"] == "memory for training"]
    assert line["device"] == "cpu"
    assert 0 < line["estimated_peak_gb"] < line["usable_gb"]
    assert line["images_at_once"] == 20  # 8 are expected, and a Poisson batch is seldom larger than 8 + 4 sqrt 8
    assert trainer.train_round(trainer.initial_parameters()).any()


def test_a_site_with_too_little_memory_stops_before_it_trains(site: Loaded) -> None:
    with pytest.raises(UserError, match="even with one image at a time") as refused:
        build_trainer(config(site, memory_limit_gb=0.01), *site[1:])
    assert refused.value.exit_code is ExitCode.COMPUTE
    limit = held_gb() + 1.0  # whatever the tests before this one have left in the process
    with pytest.raises(UserError, match="65536 images at a time need"):
        build_trainer(config(site, memory_limit_gb=limit, max_physical_batch=65536), *site[1:])


@pytest.mark.parametrize(("chosen", "engine"), [({}, "book-keeping"), ({"per_sample_engine": "hooks"}, "hooks")])
def test_a_site_clips_from_one_backward_pass_unless_it_chooses_opacus_hooks(
    site: Loaded, chosen: dict[str, object], engine: str
) -> None:
    trainer = build_trainer(config(site, **chosen), *site[1:])
    assert trainer._trainer._engine._per_sample_engine == engine
    assert trainer.train_round(trainer.initial_parameters()).any()
