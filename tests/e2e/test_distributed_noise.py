"""Rounds whose noise is complete only in the sum: real server and sites over TLS, with a drawn or a trained update."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedmvp.client.runner import run_client
from fedmvp.errors import ExitCode, UserError
from fedmvp.server.snapshot import read_snapshot
from fedmvp.study.config import load_client_config
from fedmvp.study.policy import parse_policy
from privacy.accountant import DISTRIBUTED_ACCOUNTANT
from privacy.chain import EntryKind
from privacy.mechanism import DistributedGaussian, Rounding
from privacy.renyi import epsilon_distributed
from secure_agg.encoding import vector_digest
from tests.e2e.federation import RECORD_DISTRIBUTED, SILO_DISTRIBUTED, Federation, policy_text
from tests.e2e.test_faults import charged_rounds, published
from tests.e2e.test_proof import logged_vectors
from tests.e2e.test_real_training import make_images

Federations = Callable[..., Federation]
Vectors = dict[tuple[int, int], NDArray[Any]]

DIMENSION = 4096
SIX_SIGMA = 6 / math.sqrt(2 * DIMENSION)
"""Of the relative error of a standard deviation over so many coordinates: passed by chance once in 5e8."""


@pytest.fixture(scope="module")
def noise_only(federation: Federations, tmp_path_factory: pytest.TempPathFactory) -> tuple[Federation, Vectors]:
    """Two rounds of four sites whose gradients are all zero; in the first, one dies after its keys are shared."""
    folder = tmp_path_factory.mktemp("noise")
    made: Federation = federation(dimension=DIMENSION, policy=policy_text(changes=RECORD_DISTRIBUTED), epsilon_max=8.0)
    options = ("--log", str(folder), "--size", "0")
    server = made.start_server("--grace", "60")
    sites = [made.start_site(name, *options) for name in ("site-1", "site-2", "site-3")]
    victim = made.start_site("site-4", *options, "--stall-at", "reserve")
    victim.wait_for("stalled reserve")
    victim.kill()
    last = made.start_site("site-4", *options)
    for process in (server, *sites, last):
        assert process.finish() == 0, process.errors
    return made, logged_vectors(folder)


def summed(vectors: Vectors, round_number: int, survivors: Sequence[int]) -> NDArray[Any]:
    """The sum in the ring of what these sites masked."""
    return np.sum([vectors[site, round_number] for site in survivors], axis=0, dtype=np.uint64)


def shares_in(made: Federation, total: NDArray[Any]) -> float:
    """How many sites' shares a sum of nothing but noise holds, by its variance."""
    ring = made.study.policy.secure_sum(DIMENSION)
    grid = made.study.policy.privacy_parameters(DIMENSION).noise_shares.grid
    promised = made.study.policy.privacy.noise_multiplier * grid
    certain = ring.threshold(4) - ring.colluders
    return certain * float((total.view(np.int64) / promised).std()) ** 2


def test_every_published_sum_is_the_exact_sum_of_what_its_survivors_masked(
    noise_only: tuple[Federation, Vectors],
) -> None:
    made, vectors = noise_only
    rounds = published(made)

    assert {number: record["survivors"] for number, record in rounds.items()} == {1: [1, 2, 3], 2: [1, 2, 3, 4]}
    for number, record in rounds.items():
        assert record["sum_hash"] == vector_digest(summed(vectors, number, record["survivors"])).hex()


def test_the_published_model_moved_by_the_mean_of_the_decoded_sums(noise_only: tuple[Federation, Vectors]) -> None:
    made, vectors = noise_only
    bits = made.study.policy.secure_sum(DIMENSION).fraction_bits
    parameters = np.zeros(DIMENSION, dtype=np.float32)
    for number, survivors in ((1, [1, 2, 3]), (2, [1, 2, 3, 4])):
        mean = np.ldexp(summed(vectors, number, survivors).view(np.int64).astype(float), -bits) / len(survivors)
        parameters = parameters + mean.astype(np.float32)
    snapshot = read_snapshot(made.state_dir)

    assert snapshot is not None
    assert np.array_equal(snapshot.parameters, parameters)


@pytest.mark.parametrize(("number", "survivors"), [(1, [1, 2, 3]), (2, [1, 2, 3, 4])])
def test_a_sum_holds_every_survivors_share_and_a_share_left_out_fails_the_same_check(
    noise_only: tuple[Federation, Vectors], number: int, survivors: list[int]
) -> None:
    made, vectors = noise_only

    def is_whole(total: NDArray[Any]) -> bool:
        return abs(math.sqrt(shares_in(made, total) / len(survivors)) - 1) < SIX_SIGMA

    assert is_whole(summed(vectors, number, survivors))
    assert not is_whole(summed(vectors, number, survivors[:-1]))


def test_after_a_loss_the_noise_is_above_the_promise_and_below_it_the_same_check_fails(
    noise_only: tuple[Federation, Vectors],
) -> None:
    made, vectors = noise_only
    ring = made.study.policy.secure_sum(DIMENSION)
    certain = ring.threshold(4) - ring.colluders

    def is_promised(total: NDArray[Any]) -> bool:
        return math.sqrt(shares_in(made, total) / certain) >= 1 - SIX_SIGMA

    assert certain == 2
    assert shares_in(made, summed(vectors, 1, [1, 2, 3])) > certain
    assert is_promised(summed(vectors, 1, [1, 2]))  # a colluder's share is known to it and protects nobody
    assert not is_promised(summed(vectors, 1, [1]))


def test_the_sum_in_units_of_the_update_has_the_noise_that_the_policy_states(
    noise_only: tuple[Federation, Vectors],
) -> None:
    made, vectors = noise_only
    privacy, training = made.study.policy.privacy, made.study.policy.training
    bits = made.study.policy.secure_sum(DIMENSION).fraction_bits
    step = training.learning_rate / privacy.expected_batch_size
    stated = privacy.noise_multiplier * privacy.max_grad_norm * step
    decoded = np.ldexp(summed(vectors, 2, [1, 2, 3, 4]).view(np.int64).astype(float), -bits)

    assert abs(decoded.std() / (stated * math.sqrt(4 / 2)) - 1) < SIX_SIGMA
    assert decoded.std() > stated


def test_every_site_is_charged_for_the_distributed_mechanism_and_nothing_for_a_vector_that_never_left(
    noise_only: tuple[Federation, Vectors],
) -> None:
    made, _ = noise_only
    policy = made.study.policy
    ring, shares = policy.secure_sum(DIMENSION), policy.privacy_parameters(DIMENSION).noise_shares
    mechanism = DistributedGaussian(0.5, 3.0, 1, DIMENSION, ring.threshold(8) - 1, shares.grid, Rounding.DITHERED)
    receipts = made.events("round")[-1]["receipts"]

    for name, rounds in (("site-1", [1, 2]), ("site-2", [1, 2]), ("site-3", [1, 2]), ("site-4", [2])):
        expected = epsilon_distributed([mechanism] * len(rounds), [], policy.privacy.delta)
        with made.ledger(name) as ledger:
            charges = [entry for entry in ledger.entries() if entry.kind is EntryKind.CHARGE]
            spent = ledger.spent()
        assert charged_rounds(made, name) == rounds
        assert [charge.mechanism for charge in charges] == [mechanism] * len(rounds)
        assert [charge.body["mode"] for charge in charges] == ["record-distributed"] * len(rounds)
        assert (spent.epsilon, spent.accountant) == (expected, DISTRIBUTED_ACCOUNTANT)
        assert receipts[name[-1]]["epsilon"] == expected


@pytest.fixture(scope="module")
def silos(federation: Federations, tmp_path_factory: pytest.TempPathFactory) -> tuple[Federation, Vectors]:
    """One silo-distributed round of three sites whose updates are far above the bound."""
    folder = tmp_path_factory.mktemp("silos")
    policy = policy_text(rounds=1, changes={**SILO_DISTRIBUTED, "epsilon_max = inf": "epsilon_max = 50.0"})
    made: Federation = federation(sites=3, dimension=DIMENSION, policy=policy, epsilon_max=50.0)
    server = made.start_server()
    sites = made.start_sites("--log", str(folder), "--size", "1e6")
    for process in (*sites.values(), server):
        assert process.finish() == 0, process.errors
    return made, logged_vectors(folder)


def test_a_silo_distributed_round_sums_exactly_what_the_sites_masked(silos: tuple[Federation, Vectors]) -> None:
    made, vectors = silos
    (record,) = published(made).values()

    assert record["survivors"] == [1, 2, 3]
    assert record["sum_hash"] == vector_digest(summed(vectors, 1, [1, 2, 3])).hex()


def test_in_a_silo_distributed_round_a_site_counts_no_more_than_the_bound_on_its_update(
    silos: tuple[Federation, Vectors],
) -> None:
    made, vectors = silos
    policy = made.study.policy
    bits, grid = policy.secure_sum(DIMENSION).fraction_bits, 2.0 ** policy.secure_sum(DIMENSION).fraction_bits
    noise = policy.privacy.noise_multiplier * policy.privacy.max_grad_norm * math.sqrt(3 / 2)
    total = np.ldexp(summed(vectors, 1, [1, 2, 3]).view(np.int64).astype(float), -bits)

    assert policy.privacy_parameters(DIMENSION).noise_shares.grid == policy.privacy.max_grad_norm * grid
    # Three vectors of norm 1 hide in noise of norm 235; one update unclipped would have one above a million.
    assert abs(total.std() / noise - 1) < SIX_SIGMA


def test_a_silo_distributed_round_is_charged_for_a_whole_site(silos: tuple[Federation, Vectors]) -> None:
    made, _ = silos
    policy = made.study.policy
    mechanism = policy.privacy_parameters(DIMENSION).mechanism
    assert (mechanism.rounding, mechanism.sample_rate) == (Rounding.CONDITIONAL, 1.0)

    for name in made.study.site_configs:
        with made.ledger(name) as ledger:
            spent = ledger.spent()
            (charge,) = [entry for entry in ledger.entries() if entry.kind is EntryKind.CHARGE]
        assert charge.mechanism == mechanism
        assert (spent.unit, spent.epsilon) == ("site", epsilon_distributed([mechanism], [], policy.privacy.delta))


def write_manifest(folder: Path, *, images_of_a_patient: int) -> Path:
    """A manifest of the images in a folder, every few of which are of one patient."""
    lines = ["image,label,patient"]
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        patient = f"patient-{number // images_of_a_patient}"
        lines.append(f"{path.relative_to(folder)},{path.parent.name},{patient}")
    manifest = folder / "images.csv"
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return manifest


def point_at(config: Path, *, path: Path, kind: str) -> None:
    """Change the data of a site's configuration."""
    lines = config.read_text(encoding="utf-8").splitlines()
    for key, value in (("path", str(path)), ("kind", kind)):
        (at,) = [number for number, line in enumerate(lines) if line.startswith(f"{key} = ")]
        lines[at] = f"{key} = {json.dumps(value)}"
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")


PATIENTS = {**RECORD_DISTRIBUTED, 'unit = "record"': 'unit = "patient"'}


@pytest.fixture(scope="module")
def patients(federation: Federations, tmp_path_factory: pytest.TempPathFactory) -> tuple[Federation, Vectors]:
    """A round of the real model on images of patients, three or four of each."""
    folder = tmp_path_factory.mktemp("patients")
    make_images(folder / "public", count=4, seed=9)
    made: Federation = federation(
        sites=3,
        policy=policy_text(rounds=1, changes=PATIENTS, training_seconds=90.0, join_seconds=90.0),
        epsilon_max=8.0,
        evaluation_images=folder / "public",
    )
    for number, config in enumerate(made.study.site_configs.values(), start=1):
        images = folder / f"site-{number}"
        make_images(images, count=6, seed=number)
        point_at(config, path=write_manifest(images, images_of_a_patient=2 + number), kind="manifest")
    server = made.start_server("--real")
    sites = made.start_sites("--log", str(folder), "--real")
    for process in (*sites.values(), server):
        assert process.finish() == 0, process.errors
    return made, logged_vectors(folder)


def test_a_trained_round_on_patients_is_summed_exactly_and_charged_for_patients(
    patients: tuple[Federation, Vectors],
) -> None:
    made, vectors = patients
    (record,) = published(made).values()
    length = len(vectors[1, 1])
    mechanism = made.study.policy.privacy_parameters(length).mechanism

    assert record["survivors"] == [1, 2, 3]
    assert record["sum_hash"] == vector_digest(summed(vectors, 1, [1, 2, 3])).hex()
    for name in made.study.site_configs:
        with made.ledger(name) as ledger:
            (charge,) = [entry for entry in ledger.entries() if entry.kind is EntryKind.CHARGE]
            assert (charge.body["unit"], charge.mechanism) == ("patient", mechanism)
            assert ledger.spent().epsilon == epsilon_distributed([mechanism], [], 1e-5)


def test_an_image_folder_where_patients_are_protected_is_refused_with_the_file_to_write(
    federation: Federations, tmp_path: Path
) -> None:
    make_images(tmp_path / "images", count=1, seed=1)
    made = federation(sites=3, policy=policy_text(rounds=1, changes=PATIENTS), epsilon_max=8.0)
    config = made.study.site_configs["site-1"]
    point_at(config, path=tmp_path / "images", kind="image-folder")

    with pytest.raises(UserError, match="does not say whose image each one is") as caught:
        run_client(load_client_config(config, environment={}))
    assert "image,label,patient" in caught.value.remedy
    assert 'kind = "manifest"' in caught.value.remedy
    with made.ledger("site-1") as ledger:
        assert ledger.rounds_charged == 0


def test_a_study_without_privacy_is_stamped_in_ledger_receipts_and_events(federation: Federations) -> None:
    made = federation(sites=3, policy=policy_text(rounds=1))
    server = made.start_server()
    sites = made.start_sites()
    for process in (*sites.values(), server):
        assert process.finish() == 0, process.errors
    (event,) = made.events("round")
    (started,) = made.events("run-started")

    assert started["mode"] == "UNSAFE-no-dp"
    assert {float(receipt["epsilon"]) for receipt in event["receipts"].values()} == {math.inf}
    for name in made.study.site_configs:
        with made.ledger(name) as ledger:
            (charge,) = [entry for entry in ledger.entries() if entry.kind is EntryKind.CHARGE]
            assert charge.body["mode"] == "UNSAFE-no-dp"
            assert ledger.spent().epsilon == math.inf


def test_several_local_steps_of_a_record_distributed_study_are_refused_with_the_reason_before_it_is_signed() -> None:
    text = policy_text(changes={**RECORD_DISTRIBUTED, "local_steps = 1": "local_steps = 2"})

    with pytest.raises(UserError, match="exactly one step a round, not 2: with more, the state between") as caught:
        parse_policy(text.encode())
    assert caught.value.exit_code is ExitCode.CONFIG
