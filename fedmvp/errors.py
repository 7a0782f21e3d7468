"""The one error a user sees, and the exit codes the commands document.

Every mistake a user can make (a wrong path, an unknown key, an expired certificate, a spent budget) is raised as
:class:`UserError`; the command line prints it as one message with its remedy and exits with its code. Anything else
that reaches the command line is a defect of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes by family; documented in docs/configuration.md and stable between releases."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    CONFIG = 3
    IDENTITY = 4
    BUDGET = 5
    LEDGER = 6
    PROTOCOL = 7
    NETWORK = 8
    AUDIT = 9
    COMPUTE = 10


class UserError(Exception):
    """A mistake that the person at the keyboard can put right.

    Args:
        what: what happened and where (file, field, site), one sentence.
        remedy: what to do or type next, one sentence.
        exit_code: the family of the mistake.
    """

    def __init__(self, what: str, *, remedy: str, exit_code: ExitCode = ExitCode.CONFIG) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[Callable[..., UserError], tuple[str, str, ExitCode]]:
        """Cross from a worker process to the one that prints it."""
        return _rebuilt, (self.what, self.remedy, self.exit_code)


def _rebuilt(what: str, remedy: str, exit_code: ExitCode) -> UserError:
    return UserError(what, remedy=remedy, exit_code=exit_code)
