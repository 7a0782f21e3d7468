"""A site of several processes does what one process does, and refuses as soon as it does not act as one.

Everything is compared in float64. Between one process and several, gradients are the same numbers, added in another
order, and come from products over other numbers of records: each of these rounds at 1e-16, the differences stay below
1e-12, and every mechanism that is broken on purpose differs by more than 1e-3.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from privacy.ranks import ComputingRank, Instruction, LeadingRank, Order, even_bounds
from tests.privacy.processes import Ended, run_site
from tests.privacy.site_cases import CASES, CONTROLS, break_shares, make_module, make_worker, train, trained

TOLERANCE = 1e-12
VISIBLE = 1e-3


def lead(ranks: LeadingRank, folder: Path) -> dict[str, Tensor]:
    """Train every case with the others' help."""
    ranks.agree({"data": b"the same"})
    ends = {}
    for name, case in {**CASES, **CONTROLS}.items():
        ends[name] = train(case, folder, ranks)
        ranks._order(Instruction(Order.STOP))
    return ends


def compute(ranks: ComputingRank, folder: Path) -> int:
    """Compute for every case; how many trained parameters kept something at the end."""
    ranks.agree({"data": b"the same"})
    left = 0
    for case in (*CASES.values(), *CONTROLS.values()):
        with pytest.MonkeyPatch.context() as patch:
            break_shares(case, ranks, patch)
            helper = make_worker(case, ranks)
            helper.serve()
            left += sum(p.grad is not None or getattr(p, "grad_sample", None) is not None for p in helper._parameters)
    return left


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """How each case ends in one process."""
    folder = tmp_path_factory.mktemp("alone")
    return {name: train(case, folder) for name, case in {**CASES, **CONTROLS}.items()}


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.long)])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Ended]:
    """How each case ends in several processes."""
    ended = run_site(tmp_path_factory.mktemp("site"), lead, *[compute] * (request.param - 1))
    assert [process.code for process in ended] == [0] * request.param
    assert [process.error for process in ended] == [None] * request.param, [process.trace for process in ended]
    return ended


def check_equal(one: Tensor, several: Tensor) -> None:
    """Assert that several processes did what one did."""
    if one.dtype == torch.int64:  # on the grid, where a difference of 1e-12 may move a rounding by one step
        assert int((one - several).abs().max()) <= 1, "several processes do something else than one"
        assert float((one != several).double().mean()) < 0.01, "several processes do something else than one"
    else:
        assert float((one - several).abs().max()) < TOLERANCE, "several processes do something else than one"


@pytest.mark.parametrize("name", CASES)
def test_several_processes_end_where_one_does(name: str, alone: dict[str, Tensor], site: list[Ended]) -> None:
    check_equal(alone[name], site[0].returned[name])
    assert not torch.equal(alone[name].double(), trained(make_module())) or "without privacy" in name


@pytest.mark.parametrize("name", CONTROLS)
def test_control_a_broken_way_to_share_a_batch_fails_the_same_comparison(
    name: str, alone: dict[str, Tensor], site: list[Ended]
) -> None:
    with pytest.raises(AssertionError, match="something else"):
        check_equal(alone[name], site[0].returned[name])
    assert float((alone[name] - site[0].returned[name]).abs().max()) > VISIBLE


def test_a_computing_process_leaves_no_gradient_on_its_parameters(site: list[Ended]) -> None:
    assert [process.returned for process in site[1:]] == [0] * (len(site) - 1)


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
@pytest.mark.parametrize("sizes", [[], [1], [1] * 6, [9, 1, 1, 1], [1, 1, 1, 9], [5, 5, 5]])
def test_a_batch_is_cut_into_consecutive_parts_that_hold_every_unit_once(sizes: list[int], parts: int) -> None:
    bounds = even_bounds(np.array(sizes, dtype=np.int64), parts)
    assert (bounds[0], bounds[-1], len(bounds)) == (0, len(sizes), parts + 1)
    assert (np.diff(bounds) >= 0).all()
    loads = [sum(sizes[start:stop]) for start, stop in itertools.pairwise(bounds)]
    assert max(loads) <= sum(sizes) / parts + max(sizes, default=0)
