"""The threat model names a test for every claim; a name without a test would be a claim without one."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
PAGE = (TESTS.parent / "docs" / "threat-model.md").read_text()
NAMED = sorted(set(re.findall(r"`(test_[a-z0-9_]+)", PAGE)))
DEFINED = {name for path in TESTS.rglob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)}


@pytest.mark.parametrize("name", NAMED)
def test_a_test_that_the_threat_model_names_exists(name):
    assert name in DEFINED


def test_every_file_that_the_threat_model_names_exists():
    named = set(re.findall(r"`((?:hostile|simulation|secure_agg)/test_\w+\.py)", PAGE))
    assert named
    assert all((TESTS / path).is_file() for path in named)


def test_the_threat_model_names_many_tests():
    assert len(NAMED) > 90
