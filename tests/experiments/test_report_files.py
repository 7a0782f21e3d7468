"""What a report refuses, and what it writes."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fedmvp.errors import ExitCode, UserError
from fedmvp.experiments.report import drawing
from fedmvp.experiments.report.markdown import escaped
from fedmvp.experiments.report.output import write_report
from fedmvp.experiments.report.page import element
from fedmvp.experiments.report.picture import privacy_utility_picture
from fedmvp.experiments.report.reading import as_study, read_studies
from fedmvp.experiments.report.section import Section, section_of
from fedmvp.experiments.report.style import DARK, LIGHT, looks, spread
from fedmvp.experiments.report.summary import PLAIN, Entry, comparisons
from fedmvp.experiments.report.wording import NOT_COVERED, NOT_SAID, settings_lines
from fedmvp.experiments.results import Cell, Measurement, Results, write_results
from tests.cli.conftest import Run, run
from tests.experiments.synthetic import FACTS, MODES, Synthetic

__all__ = ["run"]  # a fixture

PROGRAM = "fedmvp-experiment"
SMALL = Synthetic(epsilons=(8.0, 1.0), rounds=4, seeds=(0, 1, 2), groups={"base": 0.0, "new": -0.1})


def titled(results: Results, **facts: Any) -> Results:
    return replace(results, facts={**results.facts, **facts})


def saved(folder: Path, results: Results, name: str = "results.parquet") -> Path:
    write_results(folder / name, results.facts, results.rows)
    return folder / name


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


@pytest.mark.parametrize(
    ("stated", "warned"),
    [
        ("a public proxy: inverted CIFAR-10", ""),
        ("public images alone, no private image was used", ""),
        ("private data, uncharged", NOT_COVERED),
        ("public images and the sites' private ones", NOT_COVERED),
        ("a public grid, chosen by its results, uncharged", NOT_COVERED),
        ("the defaults", NOT_SAID),
        (None, NOT_SAID),
    ],
)
def test_settings_are_taken_for_uncharged_unless_they_say_that_they_are_public(stated: str | None, warned: str) -> None:
    ((_, warning),) = settings_lines({"settings_from": stated})
    assert warning == warned


def test_every_table_says_what_its_epsilon_means(report: Written) -> None:
    terms = ("1e-05", "record", "add-or-remove-one", "PLD")
    blocks = re.findall(r"\*\*[^\n]*\*\*\n\n(?:\|[^\n]*\n)+(\n[^|#*\n]+)?", report.tables)
    assert len(blocks) > 8
    assert all(all(escaped(part) in note for part in terms) for note in blocks)


def section(results: Results) -> Section:
    return section_of(as_study(results))


def texts(found: Section) -> str:
    return " ".join([found.sentence, *(text for _, text in found.facts), *(alert.text for alert in found.alerts)])


def test_the_head_says_setting_tower_and_terms() -> None:
    said = texts(section(SMALL.results()))
    for part in (
        "Domains: trained on art_painting, cartoon and photo at 3 sites; measured on sketch; 7 classes",
        "fedmvp-tiny; the data that it saw: CIFAR-10 and Fashion-MNIST",
        "neighbouring relation: add-or-remove-one; δ = 1e-05; accountant: PLD (dp_accounting)",
        "Record-local rests on the site alone",
        "The tower saw drawings of all seven classes.",
        "3 (0, 1 and 2)",
    ):
        assert part in said


def test_facts_that_are_not_stated_are_said_to_be_not_stated() -> None:
    said = texts(section(titled(replace(SMALL.results(), facts={}), name="bare")))
    assert said.count("not stated") >= 6
    assert "None" not in said


def test_private_cells_that_do_not_say_what_they_spent_are_an_error() -> None:
    results = SMALL.results()
    silent = replace(results, rows=tuple(row for row in results.rows if row[1].metric != "epsilon"))
    (alert,) = [alert for alert in section(silent).alerts if alert.kind == "error"]
    assert alert.text.startswith("36 private cells do not say")


def test_the_largest_sum_error_of_all_cells_is_told() -> None:
    results = SMALL.results()
    raised = replace(results.rows[-1][1], value=3e-5, group="", round=3)
    found = section(replace(results, rows=(*results.rows, (results.rows[-1][0], raised))))
    assert "differ by at most 3e-05" in found.parts[-1].words[0]


def test_a_folder_of_a_study_is_read_and_what_cannot_be_is_refused(tmp_path: Path) -> None:
    results = SMALL.results()
    path = saved(tmp_path / "run", results)
    assert read_studies([tmp_path / "run"]) == read_studies([path])
    copied = saved(tmp_path / "again", results)
    for paths, words in (
        ([tmp_path / "no.parquet"], "does not exist"),
        ([tmp_path], "does not exist"),
        ([path, copied], "are both of the study 'pacs-sketch'"),
    ):
        with pytest.raises(UserError, match=words):
            read_studies(paths)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (Results(FACTS, ()), "has no rows"),
        (replace(SMALL.results(), facts={}), "does not name its study"),
        (Results(FACTS, SMALL.results().rows[:1]), "none of the cells is finished"),
        (Results(FACTS, SMALL.results().rows[:2] * 2), "two values of parameters"),
        (Results(FACTS, ((SMALL.results().cells[0], Measurement("score", float("nan"))),)), "is nan, not a number"),
        (Results(FACTS, ((SMALL.results().cells[0], Measurement("score", float("inf"))),)), "is inf, not a number"),
    ],
)
def test_results_that_hold_nothing_to_report_are_refused(broken: Results, words: str) -> None:
    with pytest.raises(UserError, match=words):
        as_study(broken)


def test_the_command_writes_page_pictures_and_tables(run: Run, tmp_path: Path) -> None:
    trained = {("promptfl", ""): (0.8, 2048)}
    results = Synthetic(trained=trained, modes=MODES[:1], epsilons=(8.0,), seeds=(0,), rounds=0).results()
    path = saved(tmp_path, results)
    result = run(PROGRAM, "report", path, "--out", tmp_path / "out", "--markdown")
    assert (result.code, result.out) == (0, (tmp_path / "out" / "tables.md").read_text("utf-8"))
    assert (tmp_path / "out" / "report.html").is_file()
    assert f"wrote {tmp_path / 'out' / 'report.html'}" in result.err
    assert "No entry of FedMVP was finished without privacy" in result.out


def test_the_command_fails_after_writing_where_too_much_was_spent(run: Run, tmp_path: Path) -> None:
    trained = {("promptfl", ""): (0.8, 2048)}
    results = Synthetic(trained=trained, modes=MODES[:1], epsilons=(8.0,), seeds=(0,), rounds=0).results()
    rows = [(cell, replace(found, value=9.0) if found.metric == "epsilon" else found) for cell, found in results.rows]
    path = saved(tmp_path, titled(replace(results, rows=tuple(rows)), planned=["one-more"]))
    result = run(PROGRAM, "report", path, "--out", tmp_path / "out")
    assert (result.code, result.out) == (ExitCode.BUDGET, "")
    assert "promptfl-record-local-eps8-3sites-seed0 spent ε 9, above its target 8 (δ = 1e-05, record" in result.err
    assert "1 cells are not finished" in result.err
    assert (tmp_path / "out" / "report.html").is_file()


def test_the_commands_mistakes_have_one_message(run: Run, tmp_path: Path) -> None:
    result = run(PROGRAM, "report", tmp_path / "none", "--out", tmp_path / "out")
    assert (result.code, result.err.count("error:"), result.err.count("remedy:")) == (ExitCode.CONFIG, 1, 1)
    assert run(PROGRAM, "report", "--out", tmp_path / "out").code == ExitCode.USAGE


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="matplotlib") as caught:
        write_report([as_study(SMALL.results())], tmp_path)
    assert caught.value.remedy == 'pip install "fedmvp[experiments]"'
    assert list(tmp_path.iterdir()) == []


def test_one_picture_of_several_studies(tmp_path: Path) -> None:
    local = Synthetic(modes=("record-local",), epsilons=(8.0,), seeds=(0,), rounds=0).results()
    studies = [SMALL.results(), titled(local, name="other", title="A $title$ of <its> own")]
    privacy_utility_picture(studies, tmp_path / "both.svg")
    privacy_utility_picture(studies, tmp_path / "again.svg")
    privacy_utility_picture(studies[:1], tmp_path / "one.png")
    assert (tmp_path / "both.svg").read_bytes() == (tmp_path / "again.svg").read_bytes()
    assert "<svg" in (tmp_path / "both.svg").read_text("utf-8")
    with Image.open(io.BytesIO((tmp_path / "one.png").read_bytes())) as image:
        assert image.size[0] > 400
    with pytest.raises(UserError, match=r"neither \.png nor \.svg"):
        privacy_utility_picture(studies, tmp_path / "both.pdf")


def test_words_at_the_ends_of_lines_are_moved_apart_and_no_farther_than_needed() -> None:
    assert spread([0.1, 0.5, 0.9], 0.1) == [0.1, 0.5, 0.9]
    assert spread([0.50, 0.50], 0.1) == pytest.approx([0.45, 0.55])
    crowd = spread([0.0, 0.01, 0.02, 0.5, 0.52, 0.9], 0.05)
    assert all(later - earlier >= 0.05 - 1e-12 for earlier, later in pairwise(crowd))
    assert crowd[-1] == 0.9


def test_no_two_methods_of_a_figure_share_a_mark_or_a_colour() -> None:
    entries = [Entry(name) for name in (*LIGHT.methods, "own-a", "own-b", "own-c", "own-d")]
    for theme in (LIGHT, DARK):
        found = looks(theme, entries)
        assert len({look.colour for look in found.values()}) == len({look.marker for look in found.values()}) == 12
        assert looks(theme, entries[2:])[entries[2]].colour == found[entries[2]].colour


def test_a_method_that_collapses_does_not_flatten_the_others() -> None:
    (comparison,) = comparisons(SMALL.results())
    scores = [comparison.score(entry, PLAIN) for entry in comparison.trained]
    fallen = replace(comparison.score(Entry("promptfl"), PLAIN), values=(0.02, 0.02, 0.02))  # type: ignore[type-var]
    low, high = drawing.limits(comparison, [*(score for score in scores if score), fallen])
    assert 40 < low < 60
    assert high > 82
