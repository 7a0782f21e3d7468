"""Errors that leave a process are the same where they arrive."""

import pickle

import pytest

from privacy import errors
from privacy.errors import AlreadyReleased, BudgetExceeded, LedgerWriteFailed, PrivacyError

EVERY = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, PrivacyError)]
MADE = {
    BudgetExceeded: BudgetExceeded(9.0, 8.0, "at delta 1e-05"),
    AlreadyReleased: AlreadyReleased("run-1", 3),
    LedgerWriteFailed: LedgerWriteFailed("no space left on ledger.sqlite", remedy="make room"),
}


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_an_error_arrives_as_it_left(kind: type[PrivacyError]) -> None:
    error = MADE.get(kind) or kind("what happened")
    arrived = pickle.loads(pickle.dumps(error))
    assert type(arrived) is kind
    assert str(arrived) == str(error)
    assert arrived.args == error.args
    assert vars(arrived) == vars(error)
