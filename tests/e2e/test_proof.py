"""The proof that the server sees no single update: everything it receives in a real run is kept and searched."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedmvp.server.snapshot import read_snapshot
from fedmvp.training.aggregate import ServerState, apply_sum
from fedmvp.training.from_policy import server_optimizer_of
from secure_agg.encoding import vector_digest
from secure_agg.ring import decode_sum
from tests.e2e.federation import Federation, policy_text

DIMENSION = 200
ROUNDS = 2
WINDOW_ELEMENTS = 3
"""Twelve bytes of masked noise equal a given window once in 2^96: a hit is no accident."""

Recording = tuple[Federation, Path, bytes]


def run_recorded(federation: Federation, folder: Path, *extra: str, samples: int = 1_234_567) -> Recording:
    """Run a whole study with a recording server; the federation, the sites' logs, and what the server received."""
    folder.mkdir()
    server = federation.start_server("--record", folder, *extra, module="tests.e2e.recording_server")
    sites = federation.start_sites("--log", str(folder), "--samples", str(samples), *extra)
    for process in (*sites.values(), server):
        assert process.finish() == 0, process.errors
    return federation, folder, (folder / "received.bin").read_bytes()


@pytest.fixture(scope="module")
def recording(federation: Callable[..., Federation], tmp_path_factory: pytest.TempPathFactory) -> Recording:
    made = federation(dimension=DIMENSION, policy=policy_text(rounds=ROUNDS))
    return run_recorded(made, tmp_path_factory.mktemp("recording") / "log")


def logged_vectors(folder: Path) -> dict[tuple[int, int], NDArray[Any]]:
    """(site, round) to the quantised update that the site's own log holds."""
    return {
        (int(path.stem.split("-")[0]), int(path.stem.split("-")[1])): np.load(path)
        for path in sorted(folder.glob("*.npy"))
    }


def forms(federation: Federation, vector: NDArray[Any]) -> Iterator[bytes]:
    """Every form in which a vector could be sent: ring elements, and real numbers in both widths and byte orders."""
    policy = federation.study.policy.secure_sum(len(vector))
    real = np.ldexp(vector.view(np.int32).astype(np.float64), -policy.fraction_bits)
    for array in (vector, real.astype(np.float32), real):
        for order in "<>":
            yield array.astype(array.dtype.newbyteorder(order)).tobytes()


def windows_found(federation: Federation, vector: NDArray[Any], received: bytes) -> int:
    """How many windows of a vector, in any form, are in what the server received."""
    found = 0
    for form in forms(federation, vector):
        width = len(form) // len(vector)
        starts = range(0, len(form) - WINDOW_ELEMENTS * width + 1, width)
        found += sum(form[start : start + WINDOW_ELEMENTS * width] in received for start in starts)
    return found


def varint(value: int) -> bytes:
    """A whole number as protobuf writes it."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def figure_forms(figures: dict[str, Any]) -> Iterator[bytes]:
    """A site's loss, accuracy and sample count in every form in which they could be sent."""
    for value in (figures["loss"], figures["accuracy"]):
        yield from (struct.pack(code, value) for code in ("<f", ">f", "<d", ">d"))
        yield f"{value:.6f}".encode()
    samples = figures["samples"]
    yield from (struct.pack(code, samples) for code in ("<I", ">I", "<Q", ">Q", "<f", "<d"))
    yield varint(samples)
    yield str(samples).encode()


def test_nothing_the_server_receives_holds_a_sites_update(recording: Recording) -> None:
    federation, folder, received = recording
    vectors = logged_vectors(folder)

    assert len(vectors) == 4 * ROUNDS
    assert len(received) > 4 * ROUNDS * 4 * DIMENSION
    assert {key: windows_found(federation, vector, received) for key, vector in vectors.items()} == dict.fromkeys(
        vectors, 0
    )


def test_nothing_the_server_receives_holds_a_loss_an_accuracy_or_a_sample_count(recording: Recording) -> None:
    _, folder, received = recording
    figures = [json.loads(path.read_text()) for path in folder.glob("*.json")]

    assert len(figures) == 4 * ROUNDS
    assert [form for one in figures for form in figure_forms(one) if form in received] == []


def test_the_recovered_sum_is_the_exact_sum_of_the_sites_own_logs(recording: Recording) -> None:
    federation, folder, _ = recording
    vectors = logged_vectors(folder)
    study = federation.study
    audit = [json.loads(line)["record"] for line in (federation.state_dir / "audit.jsonl").read_text().splitlines()]
    published = [record for record in audit if record["kind"] == "published"]
    snapshot = read_snapshot(federation.state_dir)

    assert snapshot is not None
    assert [record["round"] for record in published] == [1, 2]
    state = ServerState.initial(np.zeros(DIMENSION, dtype=np.float32))
    for record in published:
        exact = np.sum(
            [vectors[site, record["round"]].view(np.int32).astype(object) for site in record["survivors"]], axis=0
        )
        total = np.array([value % 2**32 for value in exact], dtype=np.uint32)
        decoded = decode_sum(study.policy.secure_sum(DIMENSION), total, len(record["survivors"]))
        state = apply_sum(state, decoded.values, len(record["survivors"]), server_optimizer_of(study.policy))
        assert record["sum_hash"] == vector_digest(total).hex()
        assert record["next_model_hash"] == state.hash.hex()
    assert np.array_equal(snapshot.parameters, state.parameters)


def test_one_more_sample_at_a_site_changes_no_size_and_no_number_of_messages(
    recording: Recording, federation: Callable[..., Federation], tmp_path: Path
) -> None:
    _, folder, _ = recording
    other = federation(dimension=DIMENSION, policy=policy_text(rounds=ROUNDS))
    _, second, _ = run_recorded(other, tmp_path / "second", samples=1_234_568)

    assert not np.array_equal(*(np.load(path / "1-1.npy") for path in (folder, second)))
    assert message_sizes(folder) == message_sizes(second)


def test_without_masks_the_same_search_finds_every_update(
    federation: Callable[..., Federation], tmp_path: Path
) -> None:
    made = federation(dimension=DIMENSION, policy=policy_text(rounds=1))
    _, folder, received = run_recorded(made, tmp_path / "log", "--zero-masks")

    for vector in logged_vectors(folder).values():
        assert windows_found(made, vector, received) >= DIMENSION - WINDOW_ELEMENTS + 1


def message_sizes(folder: Path) -> Counter[tuple[str, int]]:
    """How often each size of message came, by method; without metadata, whose ports and timings differ anyway."""
    entries = [json.loads(line) for line in (folder / "received.jsonl").read_text().splitlines()]
    return Counter(
        (entry["method"], entry["bytes"])
        for entry in entries
        if not entry["metadata"] and entry["method"].startswith("/fedmvp.")
    )
