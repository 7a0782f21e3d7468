"""Processes of one site that die, fall silent, fail or disagree: the batch is given up, and the site with it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from privacy import ranks as ranks_module
from privacy.errors import PrivacyRefused, RankLost, RanksDisagree
from privacy.gradient_sums import GradientSums
from privacy.optimizer import NoisyOptimizer
from privacy.ranks import ComputingRank, LeadingRank, Ranks
from privacy.worker import _no_noise
from tests.privacy.modules import cross_entropy
from tests.privacy.processes import join_site, run_site
from tests.privacy.site_cases import CASES, make_module, make_worker, train

CASE = CASES["a gradient for the ring"]


def refused(body: Callable[..., Any], ranks: Ranks, folder: Path) -> BaseException:
    """What a body raises, and that nothing can be shared after it."""
    error = failure(body, ranks, folder)
    if isinstance(ranks, LeadingRank):
        again = failure(train_once, ranks, folder)
        assert isinstance(again, RankLost | RanksDisagree), "a site that lost a process went on"
    return error


def failure(body: Callable[..., Any], ranks: Any, folder: Path) -> BaseException:
    try:
        returned = body(ranks, folder)
    except BaseException as error:  # noqa: BLE001 - handed to the test
        return error
    raise AssertionError(f"nothing was refused; {returned!r} was computed")


def train_once(ranks: LeadingRank, folder: Path) -> Tensor:
    """One gradient for the ring: what would be released."""
    if "data" not in ranks._agreed:
        ranks.agree({"data": b"the same"})
    return train(CASE, folder, ranks)


def compute_once(ranks: ComputingRank, folder: Path, change: Callable[[], None] = lambda: None) -> None:
    ranks.agree({"data": b"the same"})
    helper = make_worker(CASE, ranks)
    compute = helper._compute
    helper._compute = lambda *given: (change(), compute(*given))[1]  # type: ignore[method-assign,func-returns-value]
    helper.serve()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fall_silent() -> None:
    time.sleep(6)


def run_out_of_memory() -> None:
    raise MemoryError("no room")


@pytest.mark.parametrize(
    ("fault", "patience", "message", "theirs"),
    [
        (die, 30.0, "has died or does not answer, while the shares", None),
        (fall_silent, 3.0, "has died or does not answer, while the shares", RankLost),
        (run_out_of_memory, 30.0, "process 1 of this site failed on its share", MemoryError),
    ],
)
def test_a_process_that_is_lost_ends_the_batch_before_anything_could_be_released(
    tmp_path: Path, fault: Callable[[], None], patience: float, message: str, theirs: type[BaseException] | None
) -> None:
    leader, other = run_site(
        tmp_path / "site", partial(refused, train_once), partial(compute_once, change=fault), timeout_seconds=patience
    )
    assert leader.error is None, leader.trace
    assert isinstance(leader.returned, RankLost)
    assert message in str(leader.returned)
    assert theirs is None or isinstance(other.error, theirs), other.trace


def test_when_the_leading_process_dies_the_others_end_too(tmp_path: Path) -> None:
    _, other = run_site(tmp_path / "site", die_before_the_batch, compute_once)
    assert isinstance(other.error, RankLost)


def die_before_the_batch(ranks: LeadingRank, folder: Path) -> None:
    ranks.agree({"data": b"the same"})
    ranks.agree(make_engine_facts())
    die()


def test_a_batch_that_the_leading_process_left_unfinished_is_the_last_one(tmp_path: Path) -> None:
    leader, other = run_site(tmp_path / "site", leave_a_batch, compute_once, timeout_seconds=3.0)
    assert isinstance(leader.returned[0], MemoryError)
    assert isinstance(leader.returned[1], RankLost)
    assert "left unfinished" in str(leader.returned[1])
    assert isinstance(other.error, RankLost)


def leave_a_batch(ranks: LeadingRank, folder: Path) -> tuple[BaseException, BaseException]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NoisyOptimizer, "accumulate", lambda *given: run_out_of_memory())
        first = failure(train_once, ranks, folder)
    return first, failure(again, ranks, folder)


def again(ranks: LeadingRank, folder: Path) -> None:
    ranks.share(list(make_module().parameters()), np.arange(2), np.ones(2, dtype=np.int64))


def facts(ranks: Ranks, folder: Path, *, given: dict[str, bytes]) -> None:
    ranks.agree(given)


def stating(**given: bytes) -> Callable[..., Any]:
    return partial(facts, given=given)


def other_study(ranks: ComputingRank, folder: Path) -> None:
    ranks.agree({"data": b"the same"})
    make_worker(replace(CASE, sample_rate=0.5), ranks)


@pytest.mark.parametrize(
    ("leader", "other", "about"),
    [
        (stating(data=b"1", policy=b"p"), stating(data=b"2", policy=b"p"), "data"),
        (stating(data=b"1", policy=b"p"), stating(data=b"1"), "policy"),
        (stating(), stating(data=b"1", a_long_name=b"1"), "a_long_name, data"),
        (train_once, other_study, "privacy parameters"),
    ],
)
def test_processes_that_disagree_all_refuse_and_say_about_what(
    tmp_path: Path, leader: Callable[..., Any], other: Callable[..., Any], about: str
) -> None:
    ended = run_site(tmp_path / "site", leader, other)
    assert [str(process.error) for process in ended] == [
        f"process 1 of this site disagrees with process 0 about: {about}"
    ] * 2
    assert all(isinstance(process.error, RanksDisagree) for process in ended)


def share_at_once(ranks: LeadingRank, folder: Path) -> None:
    ranks.agree({"policy": b"p"})
    again(ranks, folder)


def test_no_batch_is_shared_before_the_data_were_compared(tmp_path: Path) -> None:
    leader, _ = run_site(tmp_path / "site", share_at_once, stating(policy=b"p"))
    assert isinstance(leader.error, RanksDisagree)
    assert "never compared their data" in str(leader.error)


def test_a_process_that_never_appears_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks_module, "JOIN_SECONDS", 1.0)
    with pytest.raises(RankLost, match="while the processes met"):
        join_site(0, 2, tmp_path)


def prepare_and_order_again(ranks: LeadingRank, folder: Path) -> None:
    ranks.agree({"data": b"the same"})
    ranks.agree(make_engine_facts())
    ranks.prepare()
    ranks.stop()


def make_engine_facts() -> dict[str, bytes]:
    return GradientSums(make_module(), cross_entropy, CASE.params).facts()


def test_a_computing_process_does_nothing_but_compute_sums(tmp_path: Path) -> None:
    _, other = run_site(tmp_path / "site", prepare_and_order_again, compute_once)
    assert isinstance(other.error, PrivacyRefused)
    assert "told to prepare" in str(other.error)
    with pytest.raises(PrivacyRefused, match="draws no noise"):
        _no_noise(3, 1.0)
