"""What a coordinator goes on from, and what it refuses to go on from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import safetensors

from fedmvp.errors import UserError
from fedmvp.server.audit import ATTEMPTS_SKIPPED
from fedmvp.server.run_state import RunState
from fedmvp.server.snapshot import FILE_NAME, read_snapshot
from fedmvp.study.policy import parse_policy
from secure_agg.context import check_agreement
from secure_agg.encoding import vector_digest
from secure_agg.errors import RemoteProtocolError
from secure_agg.result import AggregationResult
from secure_agg.ring import encode
from secure_agg.roster import Roster, RosterEntry
from tests.e2e.federation import policy_text
from tests.simulation.federation import make_roster

POLICY = parse_policy(policy_text().encode())
ROSTER = Roster(1, tuple(RosterEntry(n, f"s{n}", f"o{n}", bytes([n] * 32), bytes([n] * 32)) for n in (1, 2, 3)))
START = np.zeros(4, dtype=np.float32)


def open_state(folder: Path, policy_document: str | None = None, start: np.ndarray = START) -> RunState:
    policy = parse_policy(policy_document.encode()) if policy_document else POLICY
    return RunState(folder, policy, ROSTER, start)


@pytest.fixture
def after_one_round(tmp_path: Path) -> Iterator[RunState]:
    """A run with one published round."""
    with closing(open_state(tmp_path)) as state:
        context = state.context((1, 2, 3))
        state.audit.announced(context)
        state.audit.release_opened(context)
        total = encode(state.secure_sum, np.array([3.0, 0.0, -3.0, 1.5]))
        result = AggregationResult(total, (1, 2, 3), (), (), (), (), bytes(32))
        state.publish(context, result, vector_digest(total))
        yield state


def test_a_restarted_coordinator_has_the_model_of_the_last_round_and_the_next_number(
    after_one_round: RunState, tmp_path: Path
) -> None:
    with closing(open_state(tmp_path)) as again:
        assert again.resumed
        assert np.allclose(again.parameters, [1.0, 0.0, -1.0, 0.5], atol=1e-6)
        assert (again.model_round, again.rounds_completed) == (1, 1)
        assert again.next_attempt == (2, 1 + ATTEMPTS_SKIPPED)
        assert again.model_hash == after_one_round.model_hash


def test_the_model_on_the_servers_disk_is_stamped_with_the_mode_it_was_trained_in(
    after_one_round: RunState, tmp_path: Path
) -> None:
    snapshot = read_snapshot(tmp_path)
    assert snapshot is not None
    assert snapshot.stamp == POLICY.privacy.mode == "UNSAFE-no-dp"
    with safetensors.safe_open(tmp_path / FILE_NAME, framework="numpy") as file:  # for programs that know safetensors
        assert file.metadata()["stamp"] == "UNSAFE-no-dp"


def test_a_lost_snapshot_is_not_taken_for_a_new_run(after_one_round: RunState, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).unlink()

    with pytest.raises(UserError, match="no snapshot"):
        open_state(tmp_path)


def test_a_folder_of_another_policy_is_refused(after_one_round: RunState, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="under another policy"):
        open_state(tmp_path, policy_text(rounds=3))


def test_a_folder_of_another_model_is_refused(after_one_round: RunState, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="parameters"):
        open_state(tmp_path, start=np.zeros(5, dtype=np.float32))


def test_a_run_is_finished_when_every_number_is_used_up(after_one_round: RunState) -> None:
    context = after_one_round.context((1, 2, 3))
    assert not after_one_round.is_finished
    after_one_round.audit.announced(context)
    after_one_round.audit.release_opened(context)

    assert after_one_round.is_finished


def test_on_a_sparse_graph_a_restart_leaves_the_round_number_out_because_no_site_would_join_so_late_an_attempt(
    tmp_path: Path,
) -> None:
    roster = make_roster(101)
    policy = parse_policy(policy_text().replace("max_cohort = 8", "max_cohort = 101").encode())
    with closing(RunState(tmp_path, policy, roster, START)) as first:
        assert first.next_attempt == (1, 1)
        check_agreement(first.context(roster.active_ids), first.secure_sum, roster)
    with closing(RunState(tmp_path, policy, roster, START)) as state:
        assert state.next_attempt == (1, 1 + ATTEMPTS_SKIPPED)
        with pytest.raises(RemoteProtocolError, match="attempts at a round"):
            check_agreement(state.context(roster.active_ids), state.secure_sum, roster)
        assert not state.skip_worn_out_round(100)
        assert state.skip_worn_out_round(101)
        assert state.next_attempt == (2, 1)
        assert not state.skip_worn_out_round(101)
        check_agreement(state.context(roster.active_ids), state.secure_sum, roster)
    with closing(RunState(tmp_path, policy, roster, START)) as again:
        assert again.next_attempt == (2, 1 + ATTEMPTS_SKIPPED)
