"""The benchmark of the secure sum runs on tiny rows; nothing here looks at how long anything took."""

import dataclasses
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks import secure_sum
from benchmarks.crowd import DROP_PHASES, crowd_row, dropouts
from benchmarks.floor import masking_row, round_keystream_bytes
from benchmarks.rounds import Consortium, Link, assert_exact, normal_update, run_round
from benchmarks.server_memory import memory_row
from secure_agg.graph import sparse_parameters

ROOT = Path(__file__).resolve().parents[2]
PROMISED = {"floats", "clients", "ours_s", "peer_s", "floor_s", "bytes_per_float"}
ANSWER = '{"seconds": 2.0, "processor_seconds": 1.5, "bytes_per_float": 8.0}'


def run_json(capsys, *arguments):
    secure_sum.main(["--rows", "40x3", "--runs", "2", "--json", *arguments])
    printed = capsys.readouterr()
    return json.loads(printed.out), printed.err


@pytest.fixture
def peer(tmp_path):
    """Make an environment whose interpreter is a shell script instead of Flower."""

    def make(script):
        python = tmp_path / "bin" / "python"
        python.parent.mkdir()
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
        return str(tmp_path)

    return make


def test_the_command_runs_from_a_checkout_and_prints_a_table():
    command = [sys.executable, "benchmarks/secure_sum.py", "--rows", "40x3,30x4", "--runs", "1"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    lines = printed.stdout.splitlines()
    assert "bytes a float" in lines[3]
    assert [line.split()[:3] for line in lines[4:]] == [["40", "3", "3"], ["30", "4", "3"]]


def test_without_a_peer_the_json_has_what_it_promises_and_says_so_loudly(capsys):
    output, said = run_json(capsys)
    assert [set(row) >= PROMISED for row in output["rows"]] == [True]
    assert output["rows"][0]["peer_s"] is None
    assert output["rows"][0]["ours_s"] > output["rows"][0]["floor_s"] > 0
    assert output["settings"]["runs"] == 2
    assert "NO PEER" in said


def test_an_environment_without_the_peer_is_loud_and_null(capsys, tmp_path):
    output, said = run_json(capsys, "--peer-venv", str(tmp_path))
    assert output["rows"][0]["peer_s"] is None
    assert "NO PEER" in said


def test_a_peer_that_does_not_start_is_quoted(capsys, peer):
    output, said = run_json(capsys, "--peer-venv", peer("echo 'No module named flwr' >&2; exit 1"))
    assert output["rows"][0]["peer_s"] is None
    assert "No module named flwr" in said


def test_a_peer_that_answers_is_compared_run_by_run(capsys, peer):
    path = peer(f"echo '{{\"ready\": \"peer 1\"}}'; while read line; do echo '{ANSWER}'; done")
    row = run_json(capsys, "--peer-venv", path)[0]["rows"][0]
    assert (row["peer"], row["peer_s"], row["peer_runs"]) == ("peer 1", 2.0, 2)
    assert row["ratio"] == 2.0 / row["ours_s"]


def test_a_peer_over_its_limit_is_stopped_and_null(capsys, peer):
    path = peer('echo \'{"ready": "peer 1"}\'; read line; exec sleep 60')
    row = run_json(capsys, "--peer-venv", path, "--peer-limit-s", "0.2")[0]["rows"][0]
    assert row["peer_s"] is None
    assert row["peer_over_s"] == 0.2


def test_a_vector_longer_than_a_piece_arrives_as_it_was_sent_and_so_does_the_next_one():
    link = Link()
    for size, value in ((600_000, 7), (5, 9), (700_001, 11)):
        sent = np.full(size, value, dtype=np.uint32)
        sent[-1] = 1
        arrived = link.carry({"vector": sent, "sender": 3})
        assert arrived["sender"] == 3
        np.testing.assert_array_equal(arrived["vector"], sent)
        assert not np.shares_memory(arrived["vector"], sent)


@pytest.mark.parametrize("wire", [False, True])
def test_a_round_asserts_the_exact_sum(wire):
    consortium = Consortium.enrol(3, 10)
    updates = {site: normal_update(site, 10) for site in consortium.cohort}
    outcome = run_round(consortium, updates, wire=wire)
    assert outcome.bytes_sent > 40
    wrong = dataclasses.replace(outcome.result.message, total=outcome.result.total + np.uint32(1))
    with pytest.raises(SystemExit, match="sum is wrong"):
        assert_exact(consortium, wrong, updates.__getitem__)


def test_a_crowd_with_a_dropout_in_a_worker_process_ends_in_the_exact_sum():
    said = []
    row = crowd_row(20, 10, [0], said.append)
    assert (row["clients"], row["dropped"], row["graph"]) == (20, 1, "complete")
    assert row["checks"] > 20
    assert said


@pytest.mark.parametrize("clients", [300, 1_000])
def test_five_percent_drop_as_many_in_every_phase_and_the_graph_bears_it(clients):
    dropped = dropouts(clients, sparse=True)
    assert len(dropped) == clients * 5 // 100
    assert set(dropped.values()) == set(DROP_PHASES)
    counts = Counter(dropped.values())
    assert max(counts.values()) - min(counts.values()) <= 1
    assert counts["nonce"] <= sparse_parameters(clients, clients * 5 // 100, len(dropped)).max_withheld
    assert all(1 <= site <= clients for site in dropped)


def test_the_parts_run():
    assert memory_row(3, lambda _text: None, floats=1_000)["clients"] == 3
    row = masking_row(1_000, 2, 1, runs=1)
    assert min(row["ratio"], row["ratio_to_gcm"]) > 0
    assert round_keystream_bytes(5, 4, 100) == 30 * 100
    assert secure_sum.bytes_row(16, 2.05, floats=1_000, clients=3)["bytes_per_float"] > 2
