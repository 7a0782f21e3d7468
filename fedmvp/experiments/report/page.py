"""A report as one HTML file that asks nothing of any other: pictures are inside it, and nothing runs in it."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby

from fedmvp.experiments.report.alerts import Alert
from fedmvp.experiments.report.section import Part, Section
from fedmvp.experiments.report.stylesheet import STYLE
from fedmvp.experiments.report.tables import OVERVIEW, Item, Table

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Told to the browser, so that a mistake here cannot load or run anything either."""

_NAMES = {"klass": "class", "aria_label": "aria-label"}
KINDS = {"error": "ERROR", "warning": "Warning", "note": "Note"}


class Html(str):
    """Text that is HTML already; all other text is escaped where it is put in."""

    __slots__ = ()


def page(sections: Sequence[Section], pictures: Mapping[tuple[str, str], tuple[bytes, bytes]]) -> str:
    """Return the page.

    Args:
        sections: one a study, at least one.
        pictures: by section and picture name, a PNG for light and one for dark.
    """
    several = len(sections) > 1
    title = "Private federated prompt tuning: results" if several else sections[0].title
    body = [
        element("h1", title) if several else Html(),
        _index(sections) if several else Html(),
        *(_section(section, pictures, "h2" if several else "h1") for section in sections),
    ]
    head = Html().join(
        [
            Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
            Html(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
            element("title", title),
            Html(f"<style>{STYLE}</style>"),
        ]
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{"".join(body)}</body></html>\n'


def element(tag: str, *content: str, **attributes: str | int) -> Html:
    """Return an element; content that is not HTML already is escaped. Attributes as in `_NAMES`."""
    names = "".join(
        f' {_NAMES.get(name, name)}="{html.escape(str(value))}"' for name, value in attributes.items() if value != ""
    )
    inner = "".join(part if isinstance(part, Html) else html.escape(part) for part in content)
    return Html(f"<{tag}{names}>{inner}</{tag}>")


def _all(parts: Iterable[Html]) -> Html:
    return Html("".join(parts))


def _index(sections: Sequence[Section]) -> Html:
    """The studies and what came of them, linked."""
    notes = ("In percent.", *(section.overview_note for section in sections))
    table = Table("Studies", OVERVIEW, tuple(section.overview for section in sections), notes, text_columns=2)
    return element("nav", _table(table, links=[f"#{section.name}" for section in sections]))


def _section(section: Section, pictures: Mapping[tuple[str, str], tuple[bytes, bytes]], heading: str) -> Html:
    facts = _all(item for name, text in section.facts for item in (element("dt", name), element("dd", text)))
    return element(
        "section",
        element(heading, section.title, id=section.name),
        element("p", section.sentence, klass="lead"),
        *(_alert(alert) for alert in section.alerts if alert.kind != "note"),
        element("ul", *(element("li", sentence) for sentence in section.short), klass="short") if section.short else "",
        element("dl", facts),
        *(_alert(alert) for alert in section.alerts if alert.kind == "note"),
        *(_part(part, section, pictures) for part in section.parts),
    )


def _alert(alert: Alert) -> Html:
    return element(
        "div",
        element("p", element("span", KINDS[alert.kind], klass="kind"), alert.text),
        element("ul", *(element("li", item) for item in alert.items)) if alert.items else "",
        klass=f"alert {alert.kind}",
        role="alert" if alert.kind == "error" else "",
    )


def _part(part: Part, section: Section, pictures: Mapping[tuple[str, str], tuple[bytes, bytes]]) -> Html:
    figures = [
        element(
            "figure",
            element("div", _image(pictures[section.name, picture.name], picture.title), klass="scroll"),
            element("figcaption", element("b", f"{picture.title}. "), picture.caption),
        )
        for picture in part.pictures
    ]
    return element(
        "div",
        element("h3", part.title),
        *(element("p", sentence) for sentence in part.words),
        *figures,
        *(_table(table) for table in part.tables),
    )


def _image(versions: tuple[bytes, bytes], title: str) -> Html:
    light, dark = ("data:image/png;base64," + base64.b64encode(version).decode() for version in versions)
    return element(
        "picture",
        Html(f'<source media="screen and (prefers-color-scheme: dark)" srcset="{dark}">'),
        Html(f'<img src="{light}" alt="{html.escape(title)}; its numbers are in the tables">'),
    )


def _table(table: Table, links: Sequence[str] = ()) -> Html:
    starts = {place for place, (column, before) in enumerate(zip(table.columns[1:], table.columns, strict=False), 1)
              if column.group and column.group != before.group}  # fmt: skip
    grouped = any(column.group for column in table.columns)

    def look(place: int, own: str = "") -> str:
        return " ".join(
            filter(None, ("text" if place < table.text_columns else "", "first" if place in starts else "", own))
        )

    above, below, place = [], [], 0
    for group, run in groupby(table.columns, key=lambda column: column.group or id(column)):
        columns = list(run)
        if not grouped or not isinstance(group, str):
            above.append(element("th", columns[0].name, rowspan=2 if grouped else "", scope="col", klass=look(place)))
        else:
            above.append(element("th", group, colspan=len(columns), scope="colgroup", klass=look(place, "group")))
            below += [
                element("th", column.name, scope="col", klass=look(place + n)) for n, column in enumerate(columns)
            ]
        place += len(columns)
    head = element("thead", element("tr", *above), element("tr", *below) if grouped else "")
    body = element(
        "tbody",
        *(element("tr", *_items(row, look, *links[place : place + 1])) for place, row in enumerate(table.rows)),
    )
    return _all(
        [
            element("p", table.title, klass="caption"),
            element("div", element("table", head, body, aria_label=table.title), klass="scroll", tabindex="0"),
            *([element("p", " ".join(table.notes), klass="notes")] if table.notes else []),
        ]
    )


def _items(row: Sequence[Item], look: Callable[..., str], link: str = "") -> list[Html]:
    found, place = [], 0
    for item in row:
        if place == 0:
            name = element("a", item.text, href=link) if link else item.text
            found.append(element("th", name, scope="row", klass="text"))
        elif item.span > 1:
            found.append(element("td", item.text, colspan=item.span, klass=look(place, "span")))
        else:
            found.append(element("td", item.text, klass=look(place, item.look)))
        place += item.span
    return found
