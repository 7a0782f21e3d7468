"""What a call to the coordinator can end with, by what the runner does next."""

from __future__ import annotations


class CoordinatorAwayError(Exception):
    """The coordinator cannot be reached or the connection broke: connect again after a while."""


class RoundLostError(Exception):
    """This attempt is over for this site; ask for the next round."""
