"""A method entry of a study to a method with its hyper-parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeVar, get_type_hints

from fedmvp.errors import UserError
from fedmvp.experiments.study import MethodEntry
from fedmvp.methods.fedmvp import FedMvp
from fedmvp.methods.method import Method
from fedmvp.methods.table import method_of

Frozen = TypeVar("Frozen")


def method_with_options(entry: MethodEntry, size: Mapping[str, int] | None = None) -> Method:
    """Return the method of an entry.

    Args:
        entry: names the method and its options.
        size: further options, of one module size.

    Raises:
        UserError: no such method or option, or a value of another kind.
    """
    method = method_of(entry.method or entry.name)
    options = {**entry.options, **(size or {})}
    if not options:
        return method
    if isinstance(method, FedMvp):
        return dataclasses.replace(method, config=_changed(method.config, options, entry.name))
    return _changed(method, options, entry.name)


def _changed(value: Frozen, options: Mapping[str, Any], entry: str) -> Frozen:
    if not dataclasses.is_dataclass(value):
        raise UserError(f"method '{entry}' has no options", remedy="remove its options and sizes")
    known = {field.name: field for field in dataclasses.fields(value)}
    hints = get_type_hints(type(value))
    given: dict[str, Any] = {}
    for name, option in options.items():
        if name not in known:
            raise UserError(
                f"method '{entry}' has no option '{name}'", remedy=f"its options: {', '.join(known) or 'none'}"
            )
        given[name] = _converted(option, hints[name], f"method '{entry}', option '{name}'")
    try:
        return dataclasses.replace(value, **given)  # type: ignore[type-var]
    except ValueError as error:
        raise UserError(f"method '{entry}': {error}", remedy="correct its options") from None


def _converted(option: Any, kind: Any, place: str) -> Any:
    if isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(option)
        except ValueError:
            raise UserError(
                f"{place}: {option!r} is none of {', '.join(str(item.value) for item in kind)}",
                remedy="choose one of these",
            ) from None
    if kind is float and type(option) is int:
        return float(option)
    if isinstance(kind, type) and type(option) is not kind:
        raise UserError(f"{place}: {option!r} is no {kind.__name__}", remedy=f"give a {kind.__name__}")
    return option
