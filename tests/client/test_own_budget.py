"""What a site may spend is never learned from the server: no answer that a site asks for could carry it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor

import fedmvp.client
from fedmvp.rpc.v1.aggregation_pb2 import DESCRIPTOR

BUDGET = {"epsilon", "delta", "steps", "budget", "epsilon_max", "noise_multiplier", "sample_rate"}
SERVICE = DESCRIPTOR.services_by_name["Aggregation"]


def calls_in(source: str) -> set[str]:
    """The calls of the service that a program names."""
    names = {node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    return names & set(SERVICE.methods_by_name)


def fields_of(message: Descriptor, seen: frozenset[str] = frozenset()) -> Iterator[str]:
    """The names of all fields of a message and of the messages in it."""
    for field in message.fields:
        yield field.name
        if field.message_type is not None and field.message_type.full_name not in seen:
            yield from fields_of(field.message_type, seen | {message.full_name})


def check_answers(calls: set[str]) -> None:
    """Assert that no answer to these calls has a field in which the server could state a budget or a mechanism."""
    for call in sorted(calls):
        told = BUDGET & set(fields_of(SERVICE.methods_by_name[call].output_type))
        assert not told, f"{call} is answered with {', '.join(sorted(told))}"


def test_no_answer_that_a_site_asks_for_could_state_a_budget() -> None:
    sources = [file.read_text() for file in Path(fedmvp.client.__file__).parent.glob("*.py")]
    calls = set().union(*map(calls_in, sources))
    assert {"Join", "AwaitRound", "SubmitMaskedInput", "SubmitReceipt"} <= calls
    assert calls == set(SERVICE.methods_by_name) - {"GetStatus"}
    check_answers(calls)


def test_control_a_site_that_asked_for_the_status_fails_the_same_check() -> None:
    with pytest.raises(AssertionError, match="GetStatus is answered with delta, epsilon"):
        check_answers(calls_in("stub.GetStatus(request)"))
