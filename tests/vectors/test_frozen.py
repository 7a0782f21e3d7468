"""Our own answers, written down once: an accidental change of any format fails here."""

import json

import pytest

from tests.vectors.freeze import FROZEN, describe

ANSWERS = json.loads(FROZEN.read_text())
ROUNDS = ("complete-4", "weighted-4", "sparse-101")


def paths(value, path=()):
    """Every leaf of nested dictionaries."""
    if isinstance(value, dict):
        return {leaf: item for key in value for leaf, item in paths(value[key], (*path, key)).items()}
    return {path: value}


@pytest.fixture(scope="module")
def described():
    return json.loads(json.dumps(describe()))


@pytest.mark.parametrize("name", [name for name in ANSWERS if name not in ROUNDS])
def test_a_single_value_is_the_frozen_one(described, name):
    assert described[name] == ANSWERS[name]


@pytest.mark.parametrize(("name", "part"), [(name, part) for name in ROUNDS for part in ANSWERS[name]])
def test_a_value_of_a_round_is_the_frozen_one(described, name, part):
    assert paths(described[name][part]) == paths(ANSWERS[name][part])


def test_nothing_frozen_was_left_out(described):
    assert paths(described).keys() == paths(ANSWERS).keys()


def test_a_hundred_values_are_frozen_and_no_two_rounds_share_a_hash():
    frozen = paths(ANSWERS)
    hashes = [value for path, value in frozen.items() if path[-1] in {"context_hash", "shares_transcript"}]
    assert len(frozen) > 100
    assert len(set(hashes)) == len(hashes) == 2 * len(ROUNDS)
