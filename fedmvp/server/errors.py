"""What ends a site's call without being a defect of ours."""

from __future__ import annotations


class AttemptOverError(Exception):
    """The attempt a message belongs to has ended or has gone on without its sender; the text is fit for the sender."""
