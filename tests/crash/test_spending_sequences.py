"""No sequence of charges, crashes, restarts and concurrent callers releases past the budget or twice."""

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from privacy import AlreadyReleased, BudgetExceeded, Ledger, LedgerError, Mode, PrivacyParameters, accountant, ledger
from privacy.chain import EntryKind
from privacy.mechanism import NoiseShares
from tests.crash.spend import PARAMS

BUDGET = 2.0
_SHARES = NoiseShares(dimension=1000, shares=4, grid=2.0**20, clamp=2**40)
_SHARED = replace(PARAMS, mode=Mode.RECORD_DISTRIBUTED, sample_rate=1.0, noise_multiplier=6.0, noise_shares=_SHARES)
CHOICES = [replace(PARAMS, sample_rate=1.0, noise_multiplier=5.0), _SHARED, replace(_SHARED, noise_multiplier=9.0)]
CRASHES = [
    "privacy.storage.LedgerStore.append",
    "privacy.storage._insert",
    "privacy.storage.Marker.write",
    "privacy.storage._sync_folder",
    "privacy.ledger.ReleaseToken._mint",
]


class Died(BaseException):
    """The process is gone at this instant."""


def _die(*_: object, **__: object) -> None:
    raise Died


class Spending(RuleBasedStateMachine):
    """A site; what it released is remembered apart from its ledger."""

    open_ledger: Callable[[Path], Any] = Ledger.open

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "l.db"
        Ledger.create(self.path, dataset_id="d", delta=PARAMS.delta, epsilon_max=BUDGET).close()
        self.book = type(self).open_ledger(self.path)
        self.released: list[tuple[str, int, PrivacyParameters]] = []
        self.charged: list[tuple[str, int]] = []

    def teardown(self) -> None:
        self.book.close()
        self.folder.cleanup()

    def _reserve(self, run: str, number: int, params: PrivacyParameters) -> None:
        try:
            self.book.reserve(run, number, params, bytes(32)).consume()
        except (AlreadyReleased, BudgetExceeded, LedgerError):
            return
        self.released.append((run, number, params))

    runs = st.sampled_from(["a", "b"])
    rounds = st.integers(1, 12)

    @rule(run=runs, number=rounds, params=st.sampled_from(CHOICES))
    def release(self, run: str, number: int, params: PrivacyParameters) -> None:
        self._reserve(run, number, params)

    @rule(run=runs, first=rounds, params=st.sampled_from(CHOICES))
    def spend_all_that_is_left(self, run: str, first: int, params: PrivacyParameters) -> None:
        for number in range(first, 13):
            self._reserve(run, number, params)

    @rule(run=runs, numbers=st.lists(rounds, min_size=2, max_size=4), params=st.sampled_from(CHOICES))
    def release_in_several_threads(self, run: str, numbers: list[int], params: PrivacyParameters) -> None:
        with ThreadPoolExecutor(len(numbers)) as pool:
            for done in [pool.submit(self._reserve, run, number, params) for number in numbers]:
                done.result()

    @rule(run=runs, number=rounds, params=st.sampled_from(CHOICES), step=st.sampled_from(CRASHES))
    def die_during_a_release(self, run: str, number: int, params: PrivacyParameters, step: str) -> None:
        try:
            with mock.patch(step, _die):
                self._reserve(run, number, params)
        except Died:
            self.restart()

    @rule()
    def restart(self) -> None:
        self.book.close()
        self.book = type(self).open_ledger(self.path)

    @invariant()
    def nothing_is_released_uncharged_twice_or_past_the_budget(self) -> None:
        with Ledger.open(self.path, read_only=True) as durable:
            charged = [(e.run_id, e.round) for e in durable.entries() if e.kind is EntryKind.CHARGE]
        released = [(run, number) for run, number, _ in self.released]
        assert charged[: len(self.charged)] == self.charged, "a charge was forgotten"
        assert len(released) == len(set(released)), "released twice"
        assert set(released) <= set(charged), "released but not charged"
        spent = accountant.spent([params.mechanism for *_, params in self.released], PARAMS.delta, BUDGET)
        assert spent <= BUDGET, "released past the budget"
        self.charged = charged


def _run(machine: type[Spending], examples: int, phases: tuple[Phase, ...] = tuple(Phase)) -> None:
    limits = settings(max_examples=examples, stateful_step_count=12, deadline=None, database=None, derandomize=True)
    run_state_machine_as_test(machine, settings=settings(limits, phases=phases))


def test_no_sequence_releases_past_the_budget_twice_or_without_a_charge() -> None:
    _run(Spending, 12)


@pytest.mark.long
def test_many_more_sequences_release_nothing_past_the_budget() -> None:
    _run(Spending, 400)


class _Generous(Ledger):
    def check_affordable(self, params: PrivacyParameters) -> None:
        self._check_writable()


class _ChargesLate(Ledger):
    """Gives the token out first and writes the charge when it feels like it."""

    def _append(self, kind: EntryKind, body: dict[str, Any]) -> Any:
        entry = ledger.link(len(self._entries), kind, body, self.head)
        self._entries.append(entry)
        return entry


@pytest.mark.parametrize(
    ("broken", "message"),
    [(_Generous, "past the budget"), (_ChargesLate, "not charged")],
)
def test_control_a_ledger_that_is_generous_or_late_fails_the_same_check(broken: type[Ledger], message: str) -> None:
    machine = type("Broken", (Spending,), {"open_ledger": broken.open})
    with pytest.raises(AssertionError, match=message):
        _run(machine, 60, phases=(Phase.generate,))
