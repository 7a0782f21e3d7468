"""What is raised when bytes from a peer do not parse."""

from __future__ import annotations


class WireError(ValueError):
    """A message from a peer that breaks the rules of docs/wire.md; the text names a field, never content."""
