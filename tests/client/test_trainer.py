"""From client.toml to a trainer: what [compute] says reaches the tower, the cache and the memory."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedmvp.client import trainer as trainer_module
from fedmvp.client.trainer import build_trainer, feature_cache_of, tower_options_of
from fedmvp.model import from_policy
from fedmvp.model.compute import Precision, TowerOptions
from fedmvp.model.prompted import PromptedModel
from fedmvp.study.config import ClientConfig, load_client_config
from fedmvp.study.policy import parse_policy
from fedmvp.study.templates import CLIENT_TEMPLATE, policy_template, toml_value
from privacy import Ledger
from tests.model.tiny import tiny_backbone

POLICY = parse_policy(
    policy_template("run-1")
    .replace("n_prompts = 16", "n_prompts = 4")
    .replace("n_heads = 4", "n_heads = 2")
    .replace("delta = 1e-5", "delta = 1e-3")
    .encode()
)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the backbone was asked to be loaded with; a tiny one takes its place."""
    asked: dict[str, Any] = {}

    def load(_spec: object, **options: Any) -> object:
        asked.update(options)
        return tiny_backbone()

    monkeypatch.setattr(from_policy, "load_backbone", load)
    return asked


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site's folder with ten small images."""
    for number in range(10):
        folder = tmp_path / "images" / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    values = {"name": "site-1", "kind": "image-folder", "data": "images", "dataset_id": "records"}
    text = CLIENT_TEMPLATE.format(epsilon_max=8.0, **{key: toml_value(value) for key, value in values.items()})
    (tmp_path / "client.toml").write_text(text)
    return tmp_path


def configured(site: Path, **compute: object) -> ClientConfig:
    overrides = {f"compute.{key}": value for key, value in {"device": "cpu", **compute}.items()}
    return load_client_config(site / "client.toml", overrides=overrides, environment={})


def update_of(config: ClientConfig, site: Path) -> np.ndarray:
    """A round of a new run of the client; noise makes it finite and nothing more can be said of it."""
    path = site / "ledger.sqlite"
    created = {"dataset_id": "records", "delta": 1e-3, "epsilon_max": 8.0}
    with Ledger.open(path) if path.exists() else Ledger.create(path, **created) as ledger:
        trainer = build_trainer(config, POLICY, ledger)
        return trainer.train_round(trainer.initial_parameters())


def test_a_second_run_computes_nothing_that_is_frozen(
    site: Path, loaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(site)
    assert np.isfinite(update_of(config, site)).all()
    key = site / "cache.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert len(list((site / "cache").glob("*.sealed"))) == 2
    monkeypatch.setattr(PromptedModel, "summarise", None)
    monkeypatch.setattr(PromptedModel, "anchor", None)
    monkeypatch.setattr("fedmvp.data.source.decode_image", None)
    assert np.isfinite(update_of(config, site)).all()


@pytest.mark.parametrize(("cache", "memory"), [(0.0, 4.0), (20.0, 0.0), (0.0, 0.0)])
def test_a_round_is_trained_whatever_the_bounds(
    site: Path, loaded: dict[str, Any], cache: float, memory: float
) -> None:
    config = configured(site, cache_max_gb=cache, features_max_gb=memory)
    assert np.isfinite(update_of(config, site)).all()
    assert bool(list((site / "cache").glob("*.sealed"))) == bool(cache)
    assert (feature_cache_of(config) is None) == (cache == 0)


def test_compute_reaches_the_tower(site: Path, loaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(trainer_module, "compute_reproducibly", lambda: called.append("reproducibly"))
    config = configured(site, precision="bfloat16", channels_last=True, compile=True, activation_checkpointing=True)
    update_of(config, site)
    assert loaded["options"] == TowerOptions(Precision.BFLOAT16, True, True, True)
    assert loaded["device"] == "cpu"
    assert called == []
    update_of(configured(site, deterministic=True), site)
    assert called == ["reproducibly"]
    assert loaded["options"] == TowerOptions() == tower_options_of(configured(site).compute)
    assert not torch.are_deterministic_algorithms_enabled()


def test_every_key_of_compute_has_its_variable(site: Path) -> None:
    environment = {
        "FEDMVP_COMPUTE_PRECISION": "float16",
        "FEDMVP_COMPUTE_COMPILE": "true",
        "FEDMVP_COMPUTE_CHANNELS_LAST": "true",
        "FEDMVP_COMPUTE_ACTIVATION_CHECKPOINTING": "true",
        "FEDMVP_COMPUTE_DETERMINISTIC": "true",
        "FEDMVP_COMPUTE_WORKERS": "3",
        "FEDMVP_COMPUTE_CACHE_MAX_GB": "1.5",
        "FEDMVP_COMPUTE_FEATURES_MAX_GB": "2.5",
    }
    compute = load_client_config(site / "client.toml", environment=environment).compute
    assert compute.workers == 3
    assert (compute.precision, compute.cache_max_gb, compute.features_max_gb) == ("float16", 1.5, 2.5)
    assert compute.compile
    assert compute.channels_last
    assert compute.activation_checkpointing
    assert compute.deterministic
