"""Answers on stdout: a table for people or JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from fedmvp.cli.program import stdout


def print_json(value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Print one JSON document; an infinite number becomes the text "inf", which JSON does not have."""
    stdout().file.write(json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n")


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a heading and a table; numbers are right-aligned."""
    console = stdout()
    console.print(Text(title, style="bold"), soft_wrap=True)
    console.print(table_of(columns, rows))


def table_of(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table in the style of all commands."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    return table


def print_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """Print names and values in two columns."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(Text(name, style="bold"), Text(value))
    stdout().print(table)


def _cell(value: object) -> Text:
    if isinstance(value, float):
        return Text(f"{value:.4g}", justify="right")
    if isinstance(value, int):
        return Text(str(value), justify="right")
    return Text("-" if value is None else str(value))


def plain(value: Any) -> Any:
    """A value as JSON can hold it: numbers that are not finite as text, mappings and sequences as plain ones."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
