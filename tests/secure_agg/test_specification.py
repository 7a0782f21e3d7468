"""The specification and the code name the same labels, phases, numbers and limits."""

import re
from pathlib import Path

import pytest

import secure_agg
from secure_agg import graph, reconstruction
from secure_agg.graph import sparse_parameters
from secure_agg.messages import AbortCode
from secure_agg.transitions import Step
from tests.simulation.federation import make_policy

CODE = "\n".join(path.read_text() for path in Path(secure_agg.__file__).parent.glob("*.py"))
PAGE = (Path(__file__).parent.parent.parent / "docs" / "secure-aggregation.md").read_text()


def rows(header):
    """The numbers in the table below a header line."""
    table = PAGE.partition(header)[2].partition("\n\n")[0].splitlines()[2:]
    return [[int(cell.replace(",", "")) for cell in line.split("|") if cell.strip()] for line in table]


def test_every_label_of_the_code_is_specified():
    in_code = set(re.findall(r'"fedmvp/([a-z0-9-]+)/v1"', CODE))
    assert len(in_code) > 15
    assert in_code <= set(re.findall(r"\*\*([a-z-]+)\*\*", PAGE))


def test_the_table_of_thresholds_is_what_the_code_gives():
    table = rows("| n | c | t | may drop | honest inputs in any sum |")
    assert len(table) > 5
    for n, colluders, threshold, may_drop, honest in table:
        assert make_policy(n, colluders=colluders, min_cohort=n).threshold(n) == threshold
        assert (may_drop, honest) == (n - threshold, threshold - colluders)


def test_the_table_of_sparse_graphs_is_what_the_code_gives():
    table = rows("| n | c | lost | k | s | | n | c | lost | k | s |")
    halves = [row[start : start + 5] for row in table for start in (0, 5)]
    assert len(halves) > 10
    for n, colluders, lost, degree, share_threshold in halves:
        found = sparse_parameters(n, colluders, lost)
        assert (found.degree, found.share_threshold) == (degree, share_threshold)


@pytest.mark.parametrize("step", [step for step in Step if step not in (Step.ANNOUNCE, Step.PUBLISH)])
def test_every_phase_is_named(step):
    assert re.search(rf"^\| \d\w? {step}\b", PAGE, re.MULTILINE)


@pytest.mark.parametrize("code", AbortCode)
def test_every_reason_to_leave_is_named(code):
    assert f"`{code}`" in PAGE


def test_the_limits_are_those_in_the_code():
    assert f"at most {reconstruction.MAX_ATTEMPTS:,} for one owner" in PAGE
    assert f"Up to {graph.COMPLETE_GRAPH_LIMIT_SITES} sites: everybody with everybody" in PAGE
    assert f"σ = {graph.SECURITY_BITS} +" in PAGE
    assert f"2^−({graph.CORRECTNESS_BITS} +" in PAGE
    assert f"ω = min(δ, {graph.MAX_WITHHELD_NONCES})" in PAGE
    assert f"at most {graph.MAX_ATTEMPTS} attempts at a round" in PAGE
