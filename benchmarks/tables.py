"""Tables of the benchmarks."""

from __future__ import annotations

from typing import Any


def show(title: str, rows: list[dict[str, Any]], columns: list[tuple[str, str, str]]) -> str:
    """Lay out rows under a title; a column is its head, its key and its format."""
    cells = [[head for head, _, _ in columns]]
    cells += [["-" if row[key] is None else format(row[key], form) for _, key, form in columns] for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(columns))]
    return "\n".join([title, *("  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in cells)])
