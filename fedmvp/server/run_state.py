"""The coordinator's durable state: the model after the last published round and the next number that may be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmvp.errors import ExitCode, UserError
from fedmvp.rpc.vectors import model_hash
from fedmvp.server.audit import AuditLog
from fedmvp.server.snapshot import Snapshot, read_snapshot
from fedmvp.study.policy import StudyPolicy
from fedmvp.training.aggregate import ServerState, apply_sum
from fedmvp.training.from_policy import server_optimizer_of
from secure_agg.context import RoundContext
from secure_agg.graph import MAX_ATTEMPTS
from secure_agg.policy import SecureSumPolicy
from secure_agg.result import AggregationResult
from secure_agg.ring import decode_sum
from secure_agg.roster import Roster


class RunState:
    """Opens or resumes a run in a folder.

    Args:
        state_dir: snapshot and audit log.
        policy: the signed study.
        roster: who may take part.
        initial_parameters: where a new run starts (d,).

    Raises:
        UserError: the folder is damaged or holds another run.
    """

    def __init__(
        self, state_dir: Path, policy: StudyPolicy, roster: Roster, initial_parameters: NDArray[np.float32]
    ) -> None:
        self._state_dir = state_dir
        self._policy = policy
        self._roster = roster
        self._optimizer = server_optimizer_of(policy)
        snapshot = read_snapshot(state_dir)
        self.resumed = snapshot is not None
        if snapshot is not None:
            self._refuse_other(snapshot, initial_parameters)
        self.audit = AuditLog(state_dir)
        if snapshot is None:
            self._refuse_lost_model()
            self._state = ServerState.initial(initial_parameters)
            self.model_round, self.rounds_completed = 0, 0
            self._write_snapshot()
        else:
            self._state = ServerState.from_tensors(dict(snapshot.tensors))
            self.model_round, self.rounds_completed = snapshot.round, snapshot.rounds_completed
        self.secure_sum: SecureSumPolicy = policy.secure_sum(self.parameters.size)
        self.model_hash = model_hash(self._state.tensors)
        self.audit.started(
            run_id=policy.study.run_id,
            policy_hash=policy.hash,
            roster_hash=roster.hash,
            model_hash=self.model_hash,
            model_round=self.model_round,
        )

    @property
    def state(self) -> ServerState:
        """The state that the next round announces."""
        return self._state

    @property
    def parameters(self) -> NDArray[np.float32]:
        """The trained parameters (d,)."""
        return self._state.parameters

    @property
    def next_attempt(self) -> tuple[int, int]:
        """(round, attempt) to announce next."""
        return self.audit.next_attempt

    @property
    def is_finished(self) -> bool:
        """Whether every round number of the study is used up."""
        return self.next_attempt[0] > self._policy.study.rounds

    def context(self, cohort: tuple[int, ...]) -> RoundContext:
        """The context of the next attempt with this cohort."""
        round_number, attempt = self.next_attempt
        return RoundContext.under(
            self.secure_sum,
            self._roster,
            run_id=self._policy.study.run_id,
            round=round_number,
            attempt=attempt,
            policy_hash=self._policy.hash,
            model_hash=self.model_hash,
            cohort=cohort,
        )

    def skip_worn_out_round(self, n: int) -> bool:
        """Give up a round number whose attempts are used up for a cohort of n; whether that was so.

        On a sparse graph a site joins a few attempts at a round and no more, and a restart skips many.
        """
        round_number, attempt = self.next_attempt
        if attempt <= MAX_ATTEMPTS or not self.secure_sum.graph(n).sparse:
            return False
        self.audit.given_up(round_number)
        return True

    def publish(self, context: RoundContext, result: AggregationResult, sum_hash: bytes) -> bytes:
        """Apply a sum and make log and snapshot durable; return the hash of the next state (32 bytes).

        Raises:
            AggregationAborted: the sum is out of range.
        """
        decoded = decode_sum(self.secure_sum, result.total, len(result.survivors))
        following = apply_sum(self._state, decoded.values, len(result.survivors), self._optimizer)
        next_hash = model_hash(following.tensors)
        self.audit.published(context, result, sum_hash=sum_hash, next_hash=next_hash)
        self._state, self.model_hash = following, next_hash
        self.model_round = context.round
        self.rounds_completed += 1
        self._write_snapshot()
        return next_hash

    def finish(self) -> None:
        """Note the end of the run."""
        self.audit.finished(rounds_completed=self.rounds_completed, model_hash=self.model_hash)

    def close(self) -> None:
        """Close the log."""
        self.audit.close()

    def _write_snapshot(self) -> None:
        Snapshot(
            run_id=self._policy.study.run_id,
            policy_hash=self._policy.hash,
            round=self.model_round,
            rounds_completed=self.rounds_completed,
            tensors=self._state.tensors,
            stamp=self._policy.privacy.mode,
        ).write(self._state_dir)

    def _refuse_lost_model(self) -> None:
        if self.audit.last_published:
            self.audit.close()
            raise UserError(
                f"{self._state_dir} has an audit log up to round {self.audit.last_published} and no snapshot",
                remedy="restore the whole folder from a backup: a run cannot go on from a model that is lost",
                exit_code=ExitCode.CONFIG,
            )

    def _refuse_other(self, snapshot: Snapshot, initial_parameters: NDArray[np.float32]) -> None:
        if snapshot.run_id != self._policy.study.run_id or snapshot.policy_hash != self._policy.hash:
            raise UserError(
                f"{self._state_dir} holds run {snapshot.run_id!r} under another policy",
                remedy="name another state_dir for this study in server.toml; keep the old folder",
                exit_code=ExitCode.CONFIG,
            )
        if snapshot.parameters.shape != initial_parameters.shape:
            raise UserError(
                f"the state in {self._state_dir} has {snapshot.parameters.size} parameters; this policy's model has "
                f"{initial_parameters.size}",
                remedy="use the folder of this study, or a new one",
                exit_code=ExitCode.CONFIG,
            )
