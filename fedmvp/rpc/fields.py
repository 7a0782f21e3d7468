"""Checks of single fields at the edge; each returns the value or raises WireError with the field's name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from fedmvp.rpc import limits
from fedmvp.rpc.errors import WireError
from fedmvp.rpc.v1 import secure_sum_pb2 as pb

T = TypeVar("T")


class Identified(Protocol):
    """A request that names its round and attempt."""

    @property
    def id(self) -> pb.RoundId:
        """Return the round and the attempt."""


def text(value: str, field: str) -> str:
    """`value`, printable and short: it will be logged."""
    if len(value) > limits.NAME_CHARACTERS or not value.isprintable():
        message = f"{field} is too long or not printable"
        raise WireError(message)
    return value


def bounded(values: Sequence[T], limit: int, field: str) -> Sequence[T]:
    """`values`, of which there are at most `limit`."""
    if len(values) > limit:
        message = f"{field} has {len(values)} entries; at most {limit} are read"
        raise WireError(message)
    return values


def round_id(message: Identified) -> tuple[int, int]:
    """(round, attempt), both 1 and up."""
    value = message.id
    if value.round < 1 or value.attempt < 1:
        problem = "round and attempt start at 1"
        raise WireError(problem)
    return value.round, value.attempt
