"""The tables of a report in Markdown, to be pasted."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fedmvp.experiments.report.page import KINDS
from fedmvp.experiments.report.section import Section
from fedmvp.experiments.report.tables import Item, Table

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~$&])")


def markdown(sections: Sequence[Section]) -> str:
    """Return everything of a report but its pictures."""
    return "\n".join(line for section in sections for line in _section(section))


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _section(section: Section) -> list[str]:
    lines = [f"## {escaped(section.title)}", "", escaped(section.sentence), ""]
    lines += [f"- **{name}**: {escaped(text)}" for name, text in section.facts]
    lines.append("")
    for alert in section.alerts:
        lines += [
            f"> **{KINDS[alert.kind]}**: {escaped(alert.text)}",
            *(f"> - {escaped(item)}" for item in alert.items),
            "",
        ]
    lines += [*(f"- {escaped(sentence)}" for sentence in section.short), ""]
    for part in section.parts:
        if part.words or part.tables:
            lines += [f"### {escaped(part.title)}", ""]
        lines += [line for sentence in part.words for line in (escaped(sentence), "")]
        lines += [line for table in part.tables for line in table_lines(table)]
    return lines


def table_lines(table: Table) -> list[str]:
    """A table; a heading above several columns is repeated in each, and so is what spans them."""
    heads = [" ".join(filter(None, (column.group, column.name))) for column in table.columns]
    rule = ["---" if place < table.text_columns else "---:" for place in range(len(heads))]
    rows = [[text for item in row for text in [_item(item)] * item.span] for row in table.rows]
    return [
        f"**{escaped(table.title)}**",
        "",
        _line([escaped(head) for head in heads]),
        _line(rule),
        *(_line(row) for row in rows),
        "",
        *([escaped(" ".join(table.notes)), ""] if table.notes else []),
    ]


def _item(item: Item) -> str:
    text = escaped(item.text)
    return f"**{text}**" if item.look in {"strong", "alarm"} and text else text


def _line(items: Sequence[str]) -> str:
    return f"| {' | '.join(items)} |"
