from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from fedmvp.errors import UserError
from fedmvp.study.policy import parse_policy
from fedmvp.study.prompts import read_prompts, write_prompts
from fedmvp.study.templates import policy_template

POLICY = parse_policy(policy_template("run-1").encode())


def test_prompts_carry_their_policy_round_and_stamp(tmp_path):
    values = np.arange(7, dtype=np.float32)
    write_prompts(tmp_path / "p.safetensors", values, POLICY, round_number=12)
    read = read_prompts(tmp_path / "p.safetensors")
    assert read.policy.document == POLICY.document
    assert (read.round, read.stamp) == (12, "record-local")
    np.testing.assert_array_equal(read.parameters, values)


def test_prompts_whose_stamp_was_changed_are_refused(tmp_path):
    metadata = {"policy": POLICY.document.decode().replace("record-local", "UNSAFE-no-dp", 1), "round": "1"}
    metadata["policy"] = metadata["policy"].replace("epsilon_max = 8.0", "epsilon_max = inf")
    save_file({"parameters": np.zeros(3, np.float32)}, tmp_path / "p", {**metadata, "stamp": "record-local"})
    with pytest.raises(UserError, match="is stamped 'record-local'"):
        read_prompts(tmp_path / "p")


@pytest.mark.parametrize("missing", ["policy", "round", "stamp"])
def test_a_file_without_its_metadata_is_refused(tmp_path, missing):
    metadata = {"policy": POLICY.document.decode(), "round": "1", "stamp": "record-local"}
    del metadata[missing]
    save_file({"parameters": np.zeros(3, np.float32)}, tmp_path / "p", metadata)
    with pytest.raises(UserError, match="not a prompts file"):
        read_prompts(tmp_path / "p")


def test_a_file_that_is_something_else_is_refused(tmp_path):
    (tmp_path / "p").write_bytes(b"hello")
    with pytest.raises(UserError, match="not a prompts file"):
        read_prompts(tmp_path / "p")
    with pytest.raises(UserError, match="does not exist"):
        read_prompts(tmp_path / "q")
