from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from fedmvp.errors import UserError
from fedmvp.study.policy import parse_policy
from fedmvp.study.prompts import CLAIM, read_prompts, run_claim, write_prompts
from fedmvp.study.templates import policy_template
from privacy.accountant import composition

POLICY = parse_policy(policy_template("run-1").encode())
VALUES = {"parameters": np.zeros(3, np.float32)}


def stored(path):
    with safe_open(path, framework="numpy") as file:
        return file.metadata()


def unsafe_policy():
    text = POLICY.document.decode().replace('mode = "record-local" ', 'mode = "UNSAFE-no-dp" ')
    return parse_policy(text.replace("epsilon_max = 8.0", "epsilon_max = inf").encode())


def test_prompts_carry_the_claim_of_their_rounds(tmp_path):
    write_prompts(tmp_path / "p", VALUES["parameters"], POLICY, round_number=12)
    claim = read_prompts(tmp_path / "p").claim
    parameters = POLICY.privacy_parameters(3)
    assert claim.epsilon_spent == composition([parameters.mechanism] * 12, 1e-5)
    assert claim.epsilon_planned == composition([parameters.mechanism] * 20, 1e-5)
    card = json.loads(stored(tmp_path / "p")[CLAIM])
    assert (card["stamp"], card["unit"], card["scope"]) == ("record-local", "record", "run")


def test_prompts_trained_without_privacy_are_stamped_in_their_claim(tmp_path):
    write_prompts(tmp_path / "p", VALUES["parameters"], unsafe_policy(), round_number=1)
    card = json.loads(stored(tmp_path / "p")[CLAIM])
    assert (card["stamp"], card["epsilon_spent"], card["covered"]) == ("UNSAFE-no-dp", "inf", "nothing")
    assert read_prompts(tmp_path / "p").claim.line.startswith("claim: none, UNSAFE-no-dp")


@pytest.mark.parametrize(
    ("claimed", "message"),
    [
        ("hello", "cannot be read"),
        ('{"format": "privacy-claim-v1"}', "cannot be read"),
        (run_claim(unsafe_policy(), round_number=1, dimension=3).to_text(), "another mechanism than its policy"),
    ],
    ids=["no JSON", "no claim", "another mechanism"],
)
def test_prompts_whose_claim_was_changed_are_refused(tmp_path, claimed, message):
    write_prompts(tmp_path / "p", VALUES["parameters"], POLICY, round_number=1)
    assert read_prompts(tmp_path / "p").claim.mode == "record-local"
    save_file(VALUES, tmp_path / "p", {**stored(tmp_path / "p"), CLAIM: claimed})
    with pytest.raises(UserError, match=message):
        read_prompts(tmp_path / "p")


def test_prompts_carry_their_policy_round_and_stamp(tmp_path):
    values = np.arange(7, dtype=np.float32)
    write_prompts(tmp_path / "p.safetensors", values, POLICY, round_number=12)
    read = read_prompts(tmp_path / "p.safetensors")
    assert read.policy.document == POLICY.document
    assert (read.round, read.stamp) == (12, "record-local")
    np.testing.assert_array_equal(read.parameters, values)


def test_prompts_whose_stamp_was_changed_are_refused(tmp_path):
    metadata = {
        "policy": POLICY.document.decode().replace('mode = "record-local"', 'mode = "UNSAFE-no-dp"'),
        "round": "1",
    }
    metadata["policy"] = metadata["policy"].replace("epsilon_max = 8.0", "epsilon_max = inf")
    save_file(VALUES, tmp_path / "p", {**metadata, CLAIM: "{}", "stamp": "record-local"})
    with pytest.raises(UserError, match="is stamped 'record-local'"):
        read_prompts(tmp_path / "p")


@pytest.mark.parametrize("missing", ["policy", "round", "stamp", CLAIM])
def test_a_file_without_its_metadata_is_refused(tmp_path, missing):
    metadata = {"policy": POLICY.document.decode(), "round": "1", "stamp": "record-local", CLAIM: "{}"}
    del metadata[missing]
    save_file(VALUES, tmp_path / "p", metadata)
    with pytest.raises(UserError, match="not a prompts file"):
        read_prompts(tmp_path / "p")


def test_a_file_that_is_something_else_is_refused(tmp_path):
    (tmp_path / "p").write_bytes(b"hello")
    with pytest.raises(UserError, match="not a prompts file"):
        read_prompts(tmp_path / "p")
    with pytest.raises(UserError, match="does not exist"):
        read_prompts(tmp_path / "q")
