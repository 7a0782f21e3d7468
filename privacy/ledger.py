"""The budget of one dataset: durable, append-only, charged before anything is released.

One ledger belongs to one dataset and lives as long as it does, across runs. :meth:`Ledger.reserve` writes the charge
and the release mark as one durable entry and only then hands out the token that permits to send; a crash at any instant
leaves the round untouched or charged, never released without a charge. There is no refund.
"""
# ruff: noqa: A002 - "round" is the protocol's own word

from __future__ import annotations

import math
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from privacy import accountant, token
from privacy.chain import GENESIS, EntryKind, LedgerEntry, Value, link, verify
from privacy.disk import refused
from privacy.errors import (
    AlreadyReleased,
    AttemptReplayed,
    BudgetExceeded,
    LedgerError,
    LedgerMissing,
    LedgerRolledBack,
    LedgerWriteFailed,
    PrivacyRefused,
)
from privacy.mechanism import ADD_OR_REMOVE_ONE, Mechanism, Mode, PrivacyParameters, check_delta, check_unit
from privacy.spending import PrivacySpent, charge_body, now, terms
from privacy.storage import LedgerStore, Marker, marker_path
from privacy.token import ReleaseToken


class Ledger:
    """An open ledger. Safe to share between threads of one process; useless in a forked child."""

    def __init__(self, store: LedgerStore, entries: tuple[LedgerEntry, ...], *, read_only: bool) -> None:
        self._store = store
        self._entries = list(entries)
        self._read_only = read_only
        self._owner = os.getpid()
        self._mutex = threading.RLock()
        self._refusal: str | None = None

    @classmethod
    def create(
        cls,
        path: Path | str,
        *,
        dataset_id: str,
        delta: float,
        epsilon_max: float,
        unit: str = "record",
        unsafe: bool = False,
    ) -> Self:
        """Create the ledger of a dataset, once in its life, and open it.

        Args:
            path: where; missing folders are made.
            dataset_id: the operator's name for the dataset.
            delta: in (0, 0.1]; should be well below one over the number of records.
            epsilon_max: the budget; infinite if and only if ``unsafe``.
            unit: ``"record"``, ``"patient"`` or ``"site"``.
            unsafe: permit releases without differential privacy on this dataset.

        Raises:
            LedgerExists: something is there already.
            ValueError: a value is out of range.
        """
        check_delta(delta)
        check_unit(unit)
        if not dataset_id:
            raise ValueError("dataset_id must not be empty")
        if not epsilon_max > 0:
            raise ValueError(f"epsilon_max must be positive, not {epsilon_max}")
        if math.isinf(epsilon_max) != unsafe:
            raise ValueError("an infinite epsilon_max and unsafe=True belong together: choose both or neither")
        body: dict[str, Value] = {
            "dataset_id": dataset_id,
            "delta": float(delta),
            "epsilon_max": float(epsilon_max),
            "neighboring_relation": ADD_OR_REMOVE_ONE,
            "unit": unit,
            "time": now(),
        }
        LedgerStore.create(Path(path), link(0, EntryKind.CREATED, body, GENESIS))
        return cls.open(path)

    @classmethod
    def open(cls, path: Path | str, *, expected_head: bytes | None = None, read_only: bool = False) -> Self:
        """Open and verify an existing ledger.

        Args:
            path: the database file.
            expected_head: a head this site recorded earlier elsewhere (32 bytes); it must occur in the chain.
            read_only: for display beside a running client; takes no lock and refuses to write.

        Raises:
            LedgerError: the ledger is missing, damaged, of another version, rolled back, or in use.
        """
        path = Path(path)
        store = LedgerStore.open(path, read_only=read_only)
        try:
            marker = Marker.read(path)  # before the chain: a writer moves the chain first, then the marker
            entries = store.read()
            verify(entries)
            _refuse_rollback(path, entries, marker, expected_head)
            last = entries[-1]
            if not read_only and (marker is None or marker.seq != last.seq):
                Marker(last.seq, last.hash).write(path)
        except OSError as error:
            store.close()
            raise refused(LedgerWriteFailed, f"the marker of {path} could not be written", error, path) from error
        except BaseException:
            store.close()
            raise
        return cls(store, entries, read_only=read_only)

    def require_head(self, head: bytes) -> None:
        """Check that the chain holds a head that was recorded elsewhere.

        Args:
            head: 32 bytes.

        Raises:
            LedgerRolledBack: it does not: an older copy, or another ledger, was put in its place.
        """
        _refuse_unknown_head(self.path, tuple(self._entries), head)

    @property
    def path(self) -> Path:
        """The database file."""
        return self._store.path

    @property
    def dataset_id(self) -> str:
        """The operator's name for the dataset."""
        return str(self._entries[0].body["dataset_id"])

    @property
    def delta(self) -> float:
        """The delta at which every epsilon of this ledger is stated."""
        return float(self._entries[0].body["delta"])

    @property
    def epsilon_max(self) -> float:
        """The budget of the dataset over all runs."""
        return float(self._entries[0].body["epsilon_max"])

    @property
    def unit(self) -> str:
        """The privacy unit."""
        return str(self._entries[0].body["unit"])

    @property
    def is_unsafe(self) -> bool:
        """Whether releases without differential privacy are permitted on this dataset."""
        return math.isinf(self.epsilon_max)

    @property
    def head(self) -> bytes:
        """Hash of the last entry, 32 bytes; what the site signs so that peers can notice a roll-back."""
        return self._entries[-1].hash

    def entries(self) -> tuple[LedgerEntry, ...]:
        """The whole chain, oldest first."""
        return tuple(self._entries)

    def spent(self) -> PrivacySpent:
        """What the dataset has spent so far, recomputed from the recorded mechanisms."""
        charges = self._charges()
        return PrivacySpent(
            epsilon=self._epsilon_with(None),
            delta=self.delta,
            neighboring_relation=ADD_OR_REMOVE_ONE,
            unit=self.unit,
            accountant=self._accountant_with(None),
            steps=sum(int(charge.body["steps"]) for charge in charges),
            rounds=len(charges),
        )

    def epsilon_after(self, params: PrivacyParameters) -> float:
        """Epsilon of the dataset if one more round with ``params`` were released; charges nothing.

        Raises:
            PrivacyRefused: the parameters do not fit this ledger.
        """
        self._check_fits(params)
        return self._epsilon_with(params)

    def terms_after(self, params: PrivacyParameters) -> str:
        """What :meth:`epsilon_after` stands on, in words: delta, unit, relation and accountant."""
        return terms(self.delta, self.unit, self._accountant_with(params))

    @property
    def rounds_charged(self) -> int:
        """How many releases the dataset has paid for, all runs together."""
        return len(self._charges())

    def check_usable(self, params: PrivacyParameters) -> None:
        """Refuse a ledger that could not charge ``params`` even with budget left.

        Raises:
            LedgerError: it is closed, read-only, broken, or another process's.
            PrivacyRefused: the parameters do not fit it.
        """
        self._check_writable()
        self._check_fits(params)

    def check_affordable(self, params: PrivacyParameters) -> None:
        """Refuse, before any training, a round that could not be released afterwards.

        Raises:
            BudgetExceeded: it would pass the budget.
            PrivacyRefused: the parameters do not fit this ledger.
        """
        self._check_writable()
        after = self.epsilon_after(params)
        if not after <= self.epsilon_max:
            raise BudgetExceeded(after, self.epsilon_max, self.terms_after(params))

    def preview(self, run_id: str, round: int, params: PrivacyParameters) -> float:
        """Epsilon of the dataset after this round, charging nothing.

        Raises:
            AlreadyReleased: the round has been charged before.
            PrivacyRefused: the parameters do not fit this ledger.
        """
        self._check_unreleased(run_id, round)
        return self.epsilon_after(params)

    def reserve(self, run_id: str, round: int, params: PrivacyParameters, policy_hash: bytes) -> ReleaseToken:
        """Charge one round and mark it released, durably; only then return the permission to send.

        Args:
            run_id: the run.
            round: from 1.
            params: what the round did; one whole ``steps_per_round`` is charged.
            policy_hash: hash of the signed study, recorded beside the charge.

        Raises:
            BudgetExceeded: nothing was charged.
            AlreadyReleased: this run and round was charged before, whatever became of it.
            PrivacyRefused: the parameters do not fit this ledger.
            LedgerWriteFailed: there is no token; the round may be charged. The ledger must be opened again.
        """
        _check_run_and_round(run_id, round)
        with self._mutex:
            self._check_unreleased(run_id, round)
            self.check_affordable(params)
            after = self.epsilon_after(params)
            name = self._accountant_with(params)
            entry = self._append(
                EntryKind.CHARGE,
                charge_body(run_id, round, params, policy_hash=policy_hash, after=after, accountant=name),
            )
            return ReleaseToken._mint(  # noqa: SLF001 - the one place a token is made
                token._MINT,  # noqa: SLF001
                run_id=run_id,
                round=round,
                policy_hash=policy_hash,
                epsilon_after=after,
                entry_hash=entry.hash,
            )

    def last_round(self, run_id: str) -> int:
        """The highest round of ``run_id`` that was charged, 0 if none."""
        return max((entry.round for entry in self._charges() if entry.run_id == run_id), default=0)

    def mark_attempt(self, run_id: str, round: int, attempt: int) -> None:
        """Record durably that this site takes part in an attempt, so that no older one is ever joined again.

        Raises:
            AttemptReplayed: (round, attempt) is not above the last one marked.
            LedgerWriteFailed: it could not be stored.
        """
        _check_run_and_round(run_id, round)
        if attempt < 1:
            raise ValueError(f"attempts count from 1, not {attempt}")
        with self._mutex:
            last = self.last_attempt(run_id)
            if (round, attempt) <= last:
                raise AttemptReplayed(
                    f"run {run_id!r} round {round} attempt {attempt} is not after round {last[0]} attempt {last[1]}"
                )
            self._append(EntryKind.ATTEMPT, {"run_id": run_id, "round": round, "attempt": attempt, "time": now()})

    def last_attempt(self, run_id: str) -> tuple[int, int]:
        """The last (round, attempt) marked for ``run_id``, (0, 0) if none."""
        marks = (entry for entry in self._entries if entry.kind is EntryKind.ATTEMPT and entry.run_id == run_id)
        return max(((mark.round, int(mark.body["attempt"])) for mark in marks), default=(0, 0))

    def close(self) -> None:
        """Release the file and the lock; harmless when repeated."""
        with self._mutex:
            self._refusal = "the ledger is closed"
            if self._owner == os.getpid():
                self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Ledger({self.path.name!r}, dataset_id={self.dataset_id!r}, entries={len(self._entries)})"

    def _charges(self) -> list[LedgerEntry]:
        return [entry for entry in self._entries if entry.kind is EntryKind.CHARGE]

    def _epsilon_with(self, params: PrivacyParameters | None) -> float:
        charges = self._charges()
        if any(charge.is_unsafe for charge in charges) or (params is not None and params.mode is Mode.UNSAFE_NO_DP):
            return math.inf
        return accountant.spent(self._mechanisms(params), self.delta, self.epsilon_max)

    def _mechanisms(self, params: PrivacyParameters | None) -> list[Mechanism]:
        """What the private charges so far cost, and one more round of ``params``."""
        mechanisms = [charge.mechanism for charge in self._charges() if not charge.is_unsafe]
        if params is not None and params.mode is not Mode.UNSAFE_NO_DP:
            mechanisms.append(params.mechanism)
        return mechanisms

    def _accountant_with(self, params: PrivacyParameters | None) -> str:
        return accountant.name(self._mechanisms(params), self.delta, self.epsilon_max)

    def _check_fits(self, params: PrivacyParameters) -> None:
        if params.mode is Mode.UNSAFE_NO_DP and not self.is_unsafe:
            raise PrivacyRefused(
                f"the ledger of dataset {self.dataset_id!r} does not permit UNSAFE-no-dp; choose that when creating it"
            )
        if params.delta != self.delta or params.unit != self.unit:
            raise PrivacyRefused(
                f"the study states epsilon at delta {params.delta:g} per {params.unit}, the ledger of dataset "
                f"{self.dataset_id!r} at delta {self.delta:g} per {self.unit}"
            )

    def _check_unreleased(self, run_id: str, round: int) -> None:
        if any(entry.run_id == run_id and entry.round == round for entry in self._charges()):
            raise AlreadyReleased(run_id, round)

    def _check_writable(self) -> None:
        if self._refusal is not None:
            raise LedgerError(f"{self.path}: {self._refusal}")
        if self._read_only:
            raise LedgerError(f"{self.path} was opened for reading only")
        if self._owner != os.getpid():
            raise LedgerError(f"{self.path} belongs to the process that opened it, not to a fork of it")

    def _append(self, kind: EntryKind, body: dict[str, Value]) -> LedgerEntry:
        self._check_writable()
        entry = link(len(self._entries), kind, body, self.head)
        try:
            self._store.append(entry)
        except BaseException:
            self._refusal = "an earlier write failed, so what is stored is unknown; close and open it again"
            raise
        self._entries.append(entry)
        return entry


def _refuse_rollback(
    path: Path, entries: tuple[LedgerEntry, ...], marker: Marker | None, expected_head: bytes | None
) -> None:
    if marker is None and len(entries) > 1:  # with one entry its creation was interrupted before the marker
        raise LedgerMissing(
            f"{marker_path(path)} is gone: without it an older copy of the ledger cannot be told from the last"
        )
    if marker is not None and (marker.seq >= len(entries) or entries[marker.seq].hash != marker.head):
        raise LedgerRolledBack(f"{path} is older than, or another ledger than, its marker records: a copy was put back")
    if expected_head is not None:
        _refuse_unknown_head(path, entries, expected_head)


def _refuse_unknown_head(path: Path, entries: tuple[LedgerEntry, ...], head: bytes) -> None:
    if all(entry.hash != head for entry in entries):
        raise LedgerRolledBack(f"{path} does not contain the head this site recorded earlier: a copy was put back")


def _check_run_and_round(run_id: str, round: int) -> None:
    if not run_id:
        raise ValueError("run_id must not be empty")
    if isinstance(round, bool) or not isinstance(round, int) or round < 1:
        raise ValueError(f"rounds count from 1, not {round!r}")


__all__ = ["Ledger", "LedgerEntry", "PrivacySpent"]
