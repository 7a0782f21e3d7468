"""TOML documents into validated, frozen values, with messages a person can act on.

Every document of a study (the policy, server.toml, client.toml) is read through this module, so that a misspelt key, a
value out of range or a broken line is reported in one way: file, line, key, what is wrong, what would be right.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from fedmvp.errors import UserError

MAX_DOCUMENT_BYTES = 4 << 20
"""A policy with ten thousand classes is under two megabytes; more than this is not a study document."""

MAX_PROBLEMS_SHOWN = 8
"""A screen's worth; a document with more mistakes than this is usually the wrong document."""

Document = TypeVar("Document", bound=BaseModel)
Location = tuple[int | str, ...]


class Section(BaseModel):
    """A table of a document: unknown keys are refused, values are not coerced, and nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)


def read_document(path: Path, *, what: str, remedy: str) -> bytes:
    """Return the bytes of a study document.

    Args:
        path: the file.
        what: what the file is, for the message ("server configuration").
        remedy: what to do when it is missing.

    Raises:
        UserError: the file is missing, unreadable, or far too large.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{what} {path} does not exist", remedy=remedy) from None
    except OSError as error:
        raise UserError(
            f"{what} {path} cannot be read: {error.strerror}", remedy="check the path and its permissions"
        ) from None
    if len(content) > MAX_DOCUMENT_BYTES:
        raise UserError(
            f"{what} {path} is {len(content)} bytes; at most {MAX_DOCUMENT_BYTES} are read",
            remedy="check that the path names the right file",
        )
    return content


def parse_toml(document: bytes, *, source: str) -> dict[str, Any]:
    """Parse TOML bytes; a mistake is reported with its line and column.

    Args:
        document: the exact bytes of the file.
        source: the name shown in messages.

    Raises:
        UserError: not UTF-8 or not TOML.
    """
    try:
        return tomllib.loads(document.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = document[: error.start].count(b"\n") + 1
        raise UserError(
            f"{source} line {line}: not UTF-8 text", remedy="save the file as UTF-8 and try again"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(
            f"{source}: not valid TOML: {error}", remedy="correct that line; strings need quotes and keys need ="
        ) from None


def parse_json(document: bytes, *, source: str) -> dict[str, Any]:
    """Parse a JSON object in which no key occurs twice.

    Args:
        document: the exact bytes.
        source: the name shown in messages.

    Raises:
        UserError: not UTF-8, not JSON, not an object, or a repeated key.
    """
    try:
        value = json.loads(document.decode("utf-8"), object_pairs_hook=_without_repeats)
    except RecursionError:
        problem = "nested too deeply"
    except ValueError as error:
        problem = str(error)
    else:
        if isinstance(value, dict):
            return value
        problem = "not an object"
    raise UserError(f"{source}: not valid JSON: {problem}", remedy="the file is damaged; get it again")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two readers must never see two values of one key."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def validate(
    model: type[Document],
    values: Mapping[str, Any],
    *,
    source: str,
    text: str = "",
    origins: Mapping[tuple[str, ...], str] | None = None,
) -> Document:
    """Build ``model`` from parsed values.

    Args:
        model: the document's type.
        values: tables and keys as parsed.
        source: the name shown in messages.
        text: the document itself, so that messages can name the line.
        origins: for (table, key) that did not come from the document, where they did come from.

    Raises:
        UserError: every problem found, in one message; the remedy names the valid key nearest to an unknown one.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=True)
    problems = _problems(model, details, text, origins or {})
    lines = [problem for problem, _ in problems[:MAX_PROBLEMS_SHOWN]]
    if len(problems) > MAX_PROBLEMS_SHOWN:
        lines.append(f"and {len(problems) - MAX_PROBLEMS_SHOWN} more")
    remedies = (remedy for _, remedy in problems if remedy)
    remedy = next(remedies, "correct the value; docs/configuration.md lists every key")
    what = f"{source}: {lines[0]}" if len(lines) == 1 else f"{source}:\n  " + "\n  ".join(lines)
    raise UserError(what, remedy=remedy)


def nearest(name: str, candidates: Sequence[str]) -> str | None:
    """Return the candidate a person most likely meant, or None."""
    found = difflib.get_close_matches(name.lower(), candidates, n=1, cutoff=0.6)
    return found[0] if found else None


def keys(model: type[BaseModel]) -> Iterator[tuple[str, str, type[BaseModel]]]:
    """Yield (table, key, the table's model) of a document whose top level holds tables only."""
    for table, section in tables(model).items():
        for key in section.model_fields:
            yield table, key, section


def tables(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Return the tables of a document by name."""
    found = ((name, nested_model(field.annotation)) for name, field in model.model_fields.items())
    return {name: section for name, section in found if section is not None}


def nested_model(annotation: Any) -> type[BaseModel] | None:
    """Return the pydantic model inside an annotation such as ``tuple[TaskClass, ...]``, or None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := nested_model(inner)) is not None), None)


def _problems(
    model: type[BaseModel], details: Sequence[ErrorDetails], text: str, origins: Mapping[tuple[str, ...], str]
) -> list[tuple[str, str | None]]:
    """Every error as (sentence, remedy or None): unknown keys first, and not twice when one was only misspelt."""
    unknown = [detail["loc"] for detail in details if detail["type"] == "extra_forbidden"]
    meant = {location: _meant(model, location) for location in unknown}
    found: list[tuple[str, str | None]] = [
        (f"unknown key {_place(location)}{_line_suffix(location, text)}", _suggestion(model, location, meant[location]))
        for location in unknown
    ]
    for detail in details:
        location, kind = detail["loc"], detail["type"]
        if kind == "extra_forbidden" or (kind == "missing" and location in meant.values()):
            continue
        place = _place(location)
        if kind == "missing":
            found.append((f"missing key {place}", f"add {place}; docs/configuration.md says what it means"))
        else:
            origin = origins.get(tuple(str(step) for step in location[:2]))
            suffix = f" (from {origin})" if origin is not None else _line_suffix(location, text)
            found.append((_sentence(detail, place + suffix), None))
    return found


def _sentence(detail: ErrorDetails, place: str) -> str:
    message = detail["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    given = detail.get("input")
    shown = f" (got {given!r})" if isinstance(given, bool | int | float | str) and len(repr(given)) <= 80 else ""
    return f"{place}: {message}{shown}" if place else message


def _meant(model: type[BaseModel], location: Location) -> Location | None:
    """The valid key nearest to an unknown one in the same table."""
    near = nearest(str(location[-1]), _valid_keys(model, location))
    return (*location[:-1], near) if near is not None else None


def _valid_keys(model: type[BaseModel], location: Location) -> list[str]:
    owner: type[BaseModel] | None = model
    for step in location[:-1]:
        if isinstance(step, str) and owner is not None:
            field = owner.model_fields.get(step)
            owner = nested_model(field.annotation) if field is not None else None
    return list(owner.model_fields) if owner is not None else []


def _suggestion(model: type[BaseModel], location: Location, meant: Location | None) -> str:
    if meant is not None:
        return f"did you mean {_place(meant)}?"
    elsewhere = [f"[{table}] {key}" for table, key, _ in keys(model) if key == location[-1]]
    if elsewhere:
        return f"that key belongs to {elsewhere[0]}"
    return "remove it; the keys allowed there are " + ", ".join(_valid_keys(model, location))


def _place(location: Location) -> str:
    """('privacy', 'delta') as '[privacy] delta'; ('task', 'classes', 2, 'name') as '[task] classes[2].name'."""
    if not location:
        return ""
    head, *rest = location
    if not rest:
        return f"[{head}]"
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in rest)
    return f"[{head}] {path.removeprefix('.')}"


def _line_suffix(location: Location, text: str) -> str:
    """Where in the text the location's table and key stand; a hint, so nothing when it is not plain."""
    if not text or not location:
        return ""
    table, key = str(location[0]), str(location[1]) if len(location) > 1 else None
    inside = False
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[+\s*([^\]]+?)\s*\]+\s*(#.*)?$", line)
        if header is not None:
            inside = header.group(1).split(".")[0].strip("\"' ") == table
            if inside and key is None:
                return f" (line {number})"
        elif inside and key is not None and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
            return f" (line {number})"
    return ""
