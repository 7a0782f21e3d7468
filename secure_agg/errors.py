"""What can go wrong in a secure sum, and whose mistake it is.

A :class:`LocalProtocolError` is our own caller's mistake and leaves a session untouched. A
:class:`RemoteProtocolError` is the other side's: a client session that raises one is dead, a server session that raises
one has refused one message. :class:`AggregationAborted` ends a round that can no longer produce a sum. Nothing here
carries a secret or a data value.
"""

from __future__ import annotations


class SecureAggregationError(Exception):
    """Base of everything this package raises on purpose.

    Args:
        details: what went wrong and why, without data.
        remedy: what to do about it; shown after the reason.
    """

    def __init__(self, *details: object, remedy: str = "") -> None:
        super().__init__(*details)
        self.remedy = remedy

    def __str__(self) -> str:
        reason = super().__str__()
        return f"{reason}; {self.remedy}" if self.remedy else reason


class LocalProtocolError(SecureAggregationError):
    """The caller used a session out of order or handed it a value it cannot take; nothing has changed."""


class RemoteProtocolError(SecureAggregationError):
    """Somebody else's message failed a check.

    Args:
        peer: the site that is to blame, or None for the server.
        step: the protocol step at which the check failed.
        reason: the check that failed, in a few words without data.
    """

    def __init__(self, peer: int | None, step: str, reason: str) -> None:
        super().__init__(peer, step, reason)
        self.peer = peer
        self.step = str(step)
        self.reason = reason

    def __str__(self) -> str:
        who = "the server" if self.peer is None else f"site {self.peer}"
        return f"{self.step}: {self.reason} (from {who})"


class AggregationAborted(SecureAggregationError):  # noqa: N818 - an outcome that a round is designed to have
    """The round ends without a sum.

    Args:
        step: the protocol step at which it became impossible.
        reason: why, in a few words without data.
    """

    def __init__(self, step: str, reason: str) -> None:
        super().__init__(step, reason)
        self.step = str(step)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.step}: {self.reason}"


class PolicyError(SecureAggregationError, ValueError):
    """A secure-sum policy contradicts itself or cannot serve a cohort of this size."""


class RosterError(SecureAggregationError, ValueError):
    """A roster contradicts itself or does not know a site."""

    def __init__(self, *details: object, remedy: str = "have the roster corrected and signed again") -> None:
        super().__init__(*details, remedy=remedy)


class ShareError(SecureAggregationError, ValueError):
    """Secret shares are malformed, too few, or do not recombine to a 32-byte secret."""


class SignatureError(SecureAggregationError):
    """A signature does not verify over the statement it came with."""


class KeyAgreementError(SecureAggregationError):
    """A public key is malformed or of low order, so that no shared secret exists."""
