"""Every refusal of this package, by family.

A :class:`LedgerError` means that the record of what was spent cannot be trusted or written; nothing may be trained or
released until an operator has looked. A :class:`PrivacyRefused` means that the record is sound and says no. A
:class:`RanksError` means that the processes of one site do not act as one; the batch at hand is given up.
"""
# ruff: noqa: N818 - the names say what happened; the families end in Error

from __future__ import annotations

from typing import Any


class PrivacyError(Exception):
    """Base of everything this package raises on purpose; the same after a journey between processes."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Exceptions are made anew from their message alone, which not every one here takes."""
        return _made_anew, (type(self), self.args, self.__dict__)


def _made_anew(kind: type[PrivacyError], message: tuple[Any, ...], state: dict[str, Any]) -> PrivacyError:
    error = kind.__new__(kind, *message)
    error.__dict__.update(state)
    return error


class PrivacyRefused(PrivacyError):
    """The ledger is sound and the request is not allowed."""


class BudgetExceeded(PrivacyRefused):
    """The next release would pass the budget of the dataset.

    Args:
        epsilon_after: epsilon the dataset would have spent after the release.
        epsilon_max: the limit that it would pass.
        terms: what both stand on; see :func:`privacy.spending.terms`.
    """

    def __init__(self, epsilon_after: float, epsilon_max: float, terms: str) -> None:
        super().__init__(
            f"the next release would bring this dataset to epsilon {epsilon_after:.4f}, over its budget of "
            f"{epsilon_max:.4f}, {terms}; nothing was charged and nothing may be sent"
        )
        self.epsilon_after = epsilon_after
        self.epsilon_max = epsilon_max


class AlreadyReleased(PrivacyRefused):
    """This dataset has already released something for this run and round, and does so only once."""

    def __init__(self, run_id: str, round: int) -> None:  # noqa: A002 - the protocol's word
        super().__init__(f"run {run_id!r} round {round} was already charged and released; join the next round")
        self.run_id = run_id
        self.round = round


class AttemptReplayed(PrivacyRefused):
    """The round attempt is not newer than the last one this dataset took part in."""


class TokenSpent(PrivacyRefused):
    """A release token was used a second time, or outside the process that reserved it."""


class NotDecomposable(PrivacyRefused):
    """The loss of one record depends on the others, or a per-sample gradient is wrong: clipping would bound nothing."""


class LedgerError(PrivacyError):
    """The ledger cannot be trusted, reached or written.

    Args:
        what: what happened, and to which file.
        remedy: what to do about it; shown after it.
    """

    def __init__(self, what: str, *, remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}" if self.remedy else self.what


class LedgerMissing(LedgerError):
    """There is no ledger where one is expected."""


class LedgerExists(LedgerError):
    """A ledger, or the mark of one, is already there; it is never overwritten."""


class LedgerCorrupt(LedgerError):
    """The file is no ledger, or its hash chain does not hold."""


class LedgerRolledBack(LedgerCorrupt):
    """The chain holds but is older than what this site has already recorded: a copy was put back."""


class LedgerVersionUnknown(LedgerError):
    """The ledger was written in a format this program does not know."""


class LedgerLocked(LedgerError):
    """Another process holds the ledger."""


class LedgerUnreachable(LedgerError):
    """The disk does not let the ledger be found, locked or read; what is in it is unknown."""


class LedgerWriteFailed(LedgerError):
    """A charge could not be made durable (disk full, read-only, I/O error); no token was given out."""


class RanksError(PrivacyError):
    """The processes of one site do not act as one: no batch of theirs may be used, and none was."""


class RankLost(RanksError):
    """A process of this site died, failed or does not answer."""


class RanksDisagree(RanksError):
    """Two processes of this site hold other data, another study or other software."""
