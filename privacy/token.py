"""The single-use permission to send one masked vector, given out only after its charge is on disk."""
# ruff: noqa: A002 - "round" is the protocol's own word

from __future__ import annotations

import os
import threading
from typing import NoReturn, Self

from privacy.errors import TokenSpent

_MINT = object()  # known to this package only; a token cannot be built without it


class ReleaseToken:
    """Proof that one release of one run and round was charged and made durable.

    Only :meth:`privacy.ledger.Ledger.reserve` makes one. It works once, in the process that reserved it, and can be
    neither copied nor pickled.
    """

    __slots__ = ("_lock", "_owner", "_spent", "entry_hash", "epsilon_after", "policy_hash", "round", "run_id")

    run_id: str
    round: int
    policy_hash: bytes
    epsilon_after: float
    entry_hash: bytes

    def __init__(self) -> None:
        raise TypeError("a ReleaseToken comes from Ledger.reserve, which charges first")

    @classmethod
    def _mint(
        cls, mint: object, *, run_id: str, round: int, policy_hash: bytes, epsilon_after: float, entry_hash: bytes
    ) -> Self:
        if mint is not _MINT:
            raise TypeError("a ReleaseToken comes from Ledger.reserve, which charges first")
        token = object.__new__(cls)
        for name, value in (
            ("run_id", run_id),
            ("round", round),
            ("policy_hash", policy_hash),
            ("epsilon_after", epsilon_after),
            ("entry_hash", entry_hash),
            ("_owner", os.getpid()),
            ("_spent", False),
            ("_lock", threading.Lock()),
        ):
            object.__setattr__(token, name, value)
        return token

    def consume(self) -> None:
        """Use the token up; call it immediately before the first byte leaves.

        Raises:
            TokenSpent: it was used before, or belongs to another process (a fork).
        """
        with self._lock:
            if self._spent:
                raise TokenSpent(f"the release of run {self.run_id!r} round {self.round} was already used")
            if self._owner != os.getpid():
                raise TokenSpent("a release token belongs to the process that reserved it")
            object.__setattr__(self, "_spent", True)

    @property
    def is_spent(self) -> bool:
        """Whether :meth:`consume` has been called."""
        return self._spent

    _lock: threading.Lock
    _owner: int
    _spent: bool

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a ReleaseToken cannot be changed")

    def __copy__(self) -> NoReturn:
        raise TypeError("a ReleaseToken cannot be copied")

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise TypeError("a ReleaseToken cannot be copied")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a ReleaseToken cannot be pickled")

    def __repr__(self) -> str:
        state = "spent" if self._spent else "unused"
        return f"ReleaseToken(run_id={self.run_id!r}, round={self.round}, {state})"
