"""Attribute files: what is true of the classes of a data set, in a few words each, with their origin.

TOML or JSON with one schema; docs/experiments-data.md shows how to bring one's own. The package carries files for the
data sets whose classes are few enough to be described well.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fedmvp.errors import UserError
from fedmvp.study.documents import Section, nearest, parse_json, parse_toml, read_document, validate
from fedmvp.study.policy import TaskClass

ATTRIBUTES_FORMAT = "fedmvp/attributes/v1"
GUIDE = "docs/experiments-data.md"
MAX_WORDS = 12
"""Longer attributes describe a scene, not a property, and come near what a text tower reads."""

_PACKAGED = files("fedmvp.data") / "attributes"


class AttributeFile(Section):
    """A validated attribute file.

    Attributes:
        format: names this schema.
        title: which data set.
        source: who or what wrote the attributes: a person, or a language model with its name and prompt.
        date: when.
        licence: under which they may be used.
        classes: name and attributes, in an order; numbers of attributes may differ.
    """

    format: Literal["fedmvp/attributes/v1"] = Field(description="names this schema")
    title: Annotated[str, Field(min_length=1, max_length=200)]
    source: Annotated[str, Field(min_length=1, max_length=2000)]
    date: Annotated[dt.date, Field(strict=False)]
    licence: Annotated[str, Field(min_length=1, max_length=200)]
    classes: Annotated[tuple[TaskClass, ...], Field(min_length=1, strict=False)]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in the file's order."""
        return tuple(item.name for item in self.classes)

    def for_classes(self, names: Sequence[str]) -> tuple[TaskClass, ...]:
        """Return the classes of a study in its order.

        Args:
            names: class names in the classifier's order.

        Raises:
            UserError: a class that the file does not describe.
        """
        by_name = {item.name: item for item in self.classes}
        missing = [name for name in names if name not in by_name]
        if missing:
            near = nearest(missing[0], [name.lower() for name in by_name])
            hint = f"did you mean '{near}'? " if near else ""
            raise UserError(
                f"attribute file '{self.title}' lacks {len(missing)} of {len(names)} classes: "
                f"{', '.join(missing[:8])}{', ...' if len(missing) > 8 else ''}",
                remedy=f"{hint}add a [[classes]] table for each; {GUIDE} says how",
            )
        return tuple(by_name[name] for name in names)

    @model_validator(mode="after")
    def _says_everything_once(self) -> Self:
        seen: set[str] = set()
        for item in self.classes:
            if item.name.casefold() in seen:
                raise ValueError(f"class {item.name!r} is listed twice")
            seen.add(item.name.casefold())
            said: set[str] = set()
            for attribute in item.attributes:
                if plain(attribute) in said:
                    raise ValueError(f"class {item.name!r} has the attribute {attribute!r} twice")
                if len(attribute.split()) > MAX_WORDS:
                    raise ValueError(f"class {item.name!r}: {attribute!r} has more than {MAX_WORDS} words")
                if not attribute.strip() or any(brace in attribute for brace in "{}"):
                    raise ValueError(f"class {item.name!r}: {attribute!r} is empty or holds braces")
                said.add(plain(attribute))
        return self


@dataclass(frozen=True)
class AttributeReview:
    """How an attribute file fits a list of classes.

    Attributes:
        missing: classes without attributes: an error.
        unused: classes of the file that are not in the list.
        shared: attributes that several classes have, each with those classes; they tell nothing apart.
    """

    missing: tuple[str, ...]
    unused: tuple[str, ...]
    shared: tuple[tuple[str, tuple[str, ...]], ...]


def review_attributes(file: AttributeFile, names: Sequence[str]) -> AttributeReview:
    """Compare a file with the classes of a study."""
    owners: dict[str, dict[str, None]] = {}
    for item in file.classes:
        for attribute in item.attributes:
            owners.setdefault(plain(attribute), {})[item.name] = None
    return AttributeReview(
        missing=tuple(name for name in names if name not in file.class_names),
        unused=tuple(name for name in file.class_names if name not in names),
        shared=tuple((attribute, tuple(classes)) for attribute, classes in owners.items() if len(classes) > 1),
    )


def plain(attribute: str) -> str:
    """An attribute as duplicates are told by: lower case, single spaces, no article in front, no full stop."""
    words = attribute.lower().rstrip(". ").split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in {"a", "an", "the"} else words)


def load_attributes(path: Path) -> AttributeFile:
    """Read an attribute file.

    Args:
        path: a `.toml` or `.json` file.

    Raises:
        UserError: missing, not TOML or JSON, or not of the schema; every mistake with its class.
    """
    document = read_document(path, what="attribute file", remedy=f"correct the path, or write one: {GUIDE}")
    return parse_attributes(document, source=str(path), is_json=path.suffix.lower() == ".json")


def parse_attributes(document: bytes, *, source: str, is_json: bool = False) -> AttributeFile:
    """Parse an attribute file; as `load_attributes`, from bytes."""
    values: dict[str, Any] = parse_json(document, source=source) if is_json else parse_toml(document, source=source)
    try:
        return validate(AttributeFile, values, source=source, text="" if is_json else document.decode())
    except UserError as mistake:
        raise UserError(mistake.what, remedy=f"correct the file; {GUIDE} shows the schema") from None


def packaged_names() -> tuple[str, ...]:
    """Names of the attribute files of the package."""
    return tuple(sorted(item.name.removesuffix(".toml") for item in _PACKAGED.iterdir() if item.name.endswith(".toml")))


def packaged_attributes(name: str) -> AttributeFile:
    """Return one of the package's own attribute files; UserError when there is none of this name."""
    if name not in packaged_names():
        near = nearest(name, packaged_names())
        raise UserError(
            f"the package has no attribute file '{name}'",
            remedy=f"{f'did you mean {near}? ' if near else ''}there are: {', '.join(packaged_names())}",
        )
    return parse_attributes((_PACKAGED / f"{name}.toml").read_bytes(), source=f"{name}.toml")


def attributes_from(name_or_path: str) -> AttributeFile:
    """Return the package's file of this name, or read the file at this path."""
    path = Path(name_or_path)
    if path.suffix or len(path.parts) > 1:
        return load_attributes(path)
    return packaged_attributes(name_or_path)


def as_toml(file: AttributeFile) -> str:
    """Return a file's TOML, one line a class."""
    quoted = {key: json.dumps(getattr(file, key), ensure_ascii=False) for key in ("title", "source", "licence")}
    head = [f'format = "{ATTRIBUTES_FORMAT}"', *(f"{key} = {value}" for key, value in quoted.items())]
    tables = [
        f"\n[[classes]]\nname = {json.dumps(item.name, ensure_ascii=False)}\n"
        f"attributes = {json.dumps(item.attributes, ensure_ascii=False)}"
        for item in file.classes
    ]
    return "\n".join([*head[:3], f"date = {file.date.isoformat()}", *head[3:], *tables]) + "\n"
