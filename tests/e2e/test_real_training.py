"""One private round with the real model, real images and DP-SGD, in processes of their own over mutual TLS."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedmvp.server.snapshot import read_snapshot
from secure_agg.ring import decode_sum
from tests.e2e.federation import Federation, policy_text
from tests.e2e.test_proof import logged_vectors, windows_found


def make_images(folder: Path, *, count: int, seed: int) -> None:
    """Folders of small red and blue images."""
    random = np.random.default_rng(seed)
    for channel, name in ((0, "red"), (2, "blue")):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 60, (32, 32, 3), dtype=np.uint8)
            pixels[:, :, channel] += 180
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


@pytest.fixture(scope="module")
def trained(
    federation: Callable[..., Federation], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Federation, Path, bytes]:
    folder = tmp_path_factory.mktemp("real")
    make_images(folder / "public", count=4, seed=9)
    made: Federation = federation(
        sites=3,
        policy=policy_text(rounds=1, private=True, training_seconds=90.0, join_seconds=90.0),
        epsilon_max=8.0,
        evaluation_images=folder / "public",
    )
    for number, config in enumerate(made.study.site_configs.values(), start=1):
        make_images(folder / f"site-{number}", count=5 + number, seed=number)
        text = config.read_text()
        line = next(line for line in text.splitlines() if line.startswith("path = "))
        config.write_text(text.replace(line, f'path = "{folder / f"site-{number}"}"'))
    server = made.start_server("--record", str(folder), "--real", module="tests.e2e.recording_server")
    sites = made.start_sites("--log", str(folder), "--real")
    for process in (*sites.values(), server):
        assert process.finish() == 0, process.errors
    return made, folder, (folder / "received.bin").read_bytes()


def test_a_private_round_on_real_images_is_charged_measured_and_published(
    trained: tuple[Federation, Path, bytes],
) -> None:
    made, _, _ = trained
    (event,) = made.events("round")

    assert event["survivors"] == [1, 2, 3]
    assert 0.0 <= event["accuracy"] <= 1.0
    assert {receipt["epsilon"] for receipt in event["receipts"].values()} == {event["receipts"]["1"]["epsilon"]}
    assert 0.0 < event["receipts"]["1"]["epsilon"] < 8.0


def test_the_published_model_is_the_start_plus_the_exact_mean_of_the_trained_updates(
    trained: tuple[Federation, Path, bytes],
) -> None:
    made, folder, _ = trained
    vectors = [vector for _, vector in sorted(logged_vectors(folder).items())]
    total = np.sum([vector.view(np.int32).astype(np.int64) for vector in vectors], axis=0)
    policy = made.study.policy.secure_sum(len(total))
    mean = decode_sum(policy, total.astype(np.uint32), 3).mean
    snapshot = read_snapshot(made.state_dir)

    assert len(vectors) == 3
    assert all(np.any(vector) for vector in vectors)
    assert snapshot is not None
    assert np.array_equal(snapshot.parameters, start_of(made) + mean.astype(np.float32))


def test_nothing_the_server_receives_holds_a_trained_update(trained: tuple[Federation, Path, bytes]) -> None:
    made, folder, received = trained
    vectors = logged_vectors(folder)

    assert {key: windows_found(made, vector, received) for key, vector in vectors.items()} == dict.fromkeys(vectors, 0)


def test_features_stay_sealed_at_the_site_and_their_key_is_never_sent(trained: tuple[Federation, Path, bytes]) -> None:
    made, _, received = trained
    for config in made.study.site_configs.values():
        key = config.parent / "cache.key"
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        assert key.read_bytes() not in received
        assert len(list((config.parent / "cache").glob("*.sealed"))) == 2  # what the tower says, and the anchors


def start_of(made: Federation) -> np.ndarray:
    """The public starting point of the policy's model."""
    from fedmvp.model.from_policy import build_prompted_model  # noqa: PLC0415
    from fedmvp.model.parameters import get_vector  # noqa: PLC0415

    return get_vector(build_prompted_model(made.study.policy))
