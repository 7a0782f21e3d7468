"""The page, its pictures and its tables, as a whole."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fedmvp.experiments.report.markdown import escaped
from fedmvp.experiments.report.output import write_report
from fedmvp.experiments.report.page import element
from fedmvp.experiments.report.reading import as_study
from fedmvp.experiments.report.wording import NOT_COVERED
from fedmvp.experiments.results import Cell, Measurement, Results
from tests.experiments.synthetic import SMALL, titled


@dataclass(frozen=True)
class Written:
    folder: Path
    page: str
    tables: str


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A page of two studies, one of them with everything that can be wrong with one."""
    folder = tmp_path_factory.mktemp("report")
    results = replace(SMALL, modes=("record-local",), rounds=0, groups={}).results()
    rows = [
        (cell, replace(found, value=8.5, group="art") if wrong(cell, found) else found)
        for cell, found in results.rows
        if cell.name != "linear-probe-record-local-eps1-3sites-seed2"
    ]
    wrongs: Mapping[str, Any] = {
        "name": "all/that is *wrong*",
        "title": "<script>alert(1)</script> & $x$ | _y_",
        "planned": [cell.name for cell in results.cells],
        "settings_from": ["private data, uncharged", "a public proxy"],
        "notes": ["See <b>this</b>."],
    }
    studies = [as_study(SMALL.results()), as_study(titled(Results(results.facts, tuple(rows)), **wrongs))]
    write_report(studies, folder)
    return Written(folder, (folder / "report.html").read_text("utf-8"), (folder / "tables.md").read_text("utf-8"))


def wrong(cell: Cell, found: Measurement) -> bool:
    place = cell.method, cell.mode, cell.epsilon, cell.seed
    return (place, found.metric, found.group) == (("promptfl", "record-local", 8.0, 1), "epsilon", "art")


class Reader(HTMLParser):
    """What a page is made of."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in {"src", "srcset", "href", "data", "action"}]
        self.handlers += [name for name, _ in attrs if name.startswith("on") or name == "style"]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def reaches_out(page: str) -> list[str]:
    """What a browser would load, run or follow outside the page."""
    read = Reader(page)
    return [
        *(link for link in read.links if not link.startswith(("data:image/png;base64,", "#"))),
        *(tag for tag in read.tags if tag in {"script", "link", "iframe", "object", "embed", "form", "base"}),
        *read.handlers,
        *re.findall(r"url\(|@import|https?://", page),
    ]


def test_the_page_asks_nothing_of_anywhere_and_runs_nothing(report: Written) -> None:
    assert reaches_out(report.page) == []
    assert "default-src 'none'" in report.page


@pytest.mark.parametrize(
    "planted",
    [
        '<img src="https://example.org/x.png">',
        '<img srcset="//example.org/x.png 2x">',
        "<script>1</script>",
        "<style>@import 'x'</style>",
        '<a href="other.html">',
        '<p onclick="x()">',
    ],
)
def test_control_what_reaches_out_is_found_by_the_same_check(report: Written, planted: str) -> None:
    assert reaches_out(report.page.replace("</body>", planted + "</body>"))


def test_titles_stay_text(report: Written) -> None:
    read = Reader(report.page)
    assert "<script>alert(1)</script> & $x$ | _y_" in read.text
    assert "Note" in read.text
    assert "See <b>this</b>." in read.text
    assert r"\<script\>alert(1)\</script\> \& \$x\$ \| \_y\_" in report.tables
    assert element("p", "<b>", klass='"') == '<p class="&quot;">&lt;b&gt;</p>'


def test_the_page_is_well_formed_and_every_row_is_as_wide_as_its_table(report: Written) -> None:
    for table in re.findall(r"<table.*?</table>", report.page, re.DOTALL):
        widths = set()
        for line in re.findall(r"<tr>.*?</tr>", table.split("<tbody>")[1]):
            cells = re.findall(r"<t[dh]([^>]*)>", line)
            widths.add(sum(int((re.findall(r'colspan="(\d+)"', cell) or ["1"])[0]) for cell in cells))
        assert len(widths) == 1
    opened = Reader(report.page).tags
    for tag in ("section", "table", "tr", "td", "th", "div", "figure", "picture"):
        assert opened.count(tag) == report.page.count(f"</{tag}>")


def test_nothing_is_nan_or_none(report: Written) -> None:
    words = {
        word.lower() for text in (*Reader(report.page).text[1:], report.tables) for word in re.findall(r"\w+", text)
    }
    assert not words & {"nan", "inf", "overseeds"}
    assert "None" not in report.tables


def test_every_figure_is_a_picture_beside_the_page_and_in_it_for_light_and_dark(report: Written) -> None:
    expected = {f"pacs-sketch-{name}.png" for name in ("privacy-utility", "convergence", "size", "bytes", "groups")}
    expected |= {f"all-that-is-wrong-{name}.png" for name in ("privacy-utility", "size")}
    assert {path.name for path in report.folder.glob("*.png")} == expected
    assert report.page.count("<picture>") == len(expected)
    assert report.page.count('prefers-color-scheme: dark)" srcset=') == len(expected)
    for name in expected:
        with Image.open(report.folder / name) as image:
            assert min(image.size) > 300
            colours = image.convert("RGB").getcolors(1 << 24)
            assert colours is not None
            assert len(colours) > 50
            assert max(colours)[1] == (255, 255, 255)


def test_missing_cells_are_named_on_top(report: Written) -> None:
    section = report.page.split('id="all-that-is-wrong"')[1]
    place = section.index("linear-probe-record-local-eps1-3sites-seed2")
    assert place < section.index("<h3>") < section.index("<table")
    assert "1 of 33 cells" in section
    assert "(n = 2)" in section


def test_a_spent_epsilon_above_its_target_is_shown_on_top_in_its_table_and_in_the_index(report: Written) -> None:
    index, section = report.page.split("<section>")[0], report.page.split('id="all-that-is-wrong"')[1]
    assert index.count("ERROR") == 1
    assert section.index("promptfl-record-local-eps8-3sites-seed1: spent 8.5, target 8") < section.index("<h3>")
    assert re.search(r'<td class="[a-z ]*\balarm">8\.5 &gt; 8: ABOVE TARGET</td>', section)
    assert "**8.5 \\> 8: ABOVE TARGET**" in report.tables
    assert "ABOVE TARGET" not in report.page.split('id="all-that-is-wrong"')[0]


def test_a_choice_by_private_data_is_a_warning(report: Written) -> None:
    section = report.page.split('id="all-that-is-wrong"')[1]
    assert f"private data, uncharged. {NOT_COVERED}" in section
    assert NOT_COVERED not in report.page.split('id="all-that-is-wrong"')[0]


def test_every_table_says_what_its_epsilon_means(report: Written) -> None:
    terms = ("1e-05", "record", "add-or-remove-one", "PLD")
    blocks = re.findall(r"\*\*[^\n]*\*\*\n\n(?:\|[^\n]*\n)+(\n[^|#*\n]+)?", report.tables)
    assert len(blocks) > 8
    assert all(all(escaped(part) in note for part in terms) for note in blocks)
