"""The documents, held to the tree beside them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.docs import documents
from tests.docs.documents import ROOT, markdown_files

MARKDOWN = [str(path.relative_to(ROOT)) for path in markdown_files()]
FIGURE = ROOT / "docs" / "architecture.svg"


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", MARKDOWN)
def test_every_relative_link_resolves(name: str) -> None:
    assert documents.broken_links(read(name), (ROOT / name).parent) == []


@pytest.mark.parametrize("name", [*MARKDOWN, "docs/architecture.svg"])
def test_no_document_names_a_machine_a_package_index_or_a_ticket(name: str) -> None:
    assert [match[0] for match in documents.FORBIDDEN.finditer(read(name))] == []


@pytest.mark.parametrize("name", MARKDOWN)
def test_every_module_function_and_path_that_is_named_exists(name: str) -> None:
    assert documents.unknown_names(read(name)) == []


@pytest.mark.parametrize("name", MARKDOWN)
def test_every_test_that_is_named_exists(name: str) -> None:
    assert documents.unknown_tests(read(name), set(documents.test_names())) == []


@pytest.mark.parametrize("name", MARKDOWN)
def test_every_make_verb_that_is_named_exists(name: str) -> None:
    assert documents.verbs_used(read(name)) - documents.make_targets(read("Makefile")) == set()


def test_contributing_names_every_make_verb() -> None:
    assert documents.make_targets(read("Makefile")) <= documents.verbs_used(read("CONTRIBUTING.md"))


def test_the_architecture_page_names_enough_modules_to_be_worth_checking() -> None:
    assert sum(bool(re.match(r"(fedmvp|secure_agg|privacy)\.", span)) for span in named("docs/architecture.md")) > 20


def named(name: str) -> list[str]:
    return documents.code_spans(read(name))


def test_the_figure_shows_every_layer_of_the_import_contract_in_its_order() -> None:
    contracts = tomllib.loads(read("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    places = figure_places()
    heights = [{places[name] for name in layer.split(" | ")} for layer in layers]
    assert all(len(height) == 1 for height in heights)
    assert [height.pop() for height in heights] == sorted(places[layer.split(" | ")[0]] for layer in layers)


def figure_places() -> dict[str, float]:
    """The vertical place of each text of the figure."""
    texts = ElementTree.parse(FIGURE).getroot().iter("{http://www.w3.org/2000/svg}text")
    return {str(text.text): float(text.attrib["y"]) for text in reversed(list(texts))}


def test_the_figure_names_modules_that_exist() -> None:
    mentioned = re.findall(
        r"\b(?:server|client|model|training|secure_agg|privacy)\.[a-z_]+\b", " ".join(figure_places())
    )
    assert len(mentioned) > 10
    for module in mentioned:
        path = Path(*module.split("."))
        assert any((root / path).with_suffix(".py").is_file() for root in (ROOT, ROOT / "fedmvp")), module


def test_the_figure_has_a_title_and_colours_for_both_schemes() -> None:
    svg = FIGURE.read_text(encoding="utf-8")
    assert "<title" in svg
    assert "prefers-color-scheme: dark" in svg
    assert "![" in read("docs/architecture.md").split("\n## ")[0]


def test_every_decision_record_is_in_the_index_and_has_its_three_parts() -> None:
    folder = ROOT / "docs" / "adr"
    index = (folder / "README.md").read_text(encoding="utf-8")
    records = sorted(folder.glob("[0-9]*.md"))
    assert [path.name[:4] for path in records] == [f"{number:04d}" for number in range(1, len(records) + 1)]
    for path in records:
        assert path.name in index
        text = path.read_text(encoding="utf-8")
        assert all(f"\n## {part}\n" in text for part in ("Context", "Decision", "Consequences")), path.name


@pytest.mark.parametrize(
    "mistake",
    [
        "[gone](nowhere.md)",
        "[no such heading](CONTRIBUTING.md#dance)",
        "see `fedmvp.server.telepathy`",
        "see `privacy.ledger.Ledger.refund`",
        "see `docs/nowhere.md`",
        "run `make coffee`",
        "    make PYTHON=python3 coffee   # brew",
        "```\nmake coffee\n```",
        "read /" + "tmp/report.html",
        "as in issue " + "#7",
        "by `test_that_nobody_wrote`",
    ],
)
def test_a_planted_mistake_is_found(mistake: str) -> None:
    assert mistakes_in(mistake)


@pytest.mark.parametrize(
    "text",
    [
        "[page](CONTRIBUTING.md#recipes) and [site](https://example.org/x)",
        "`fedmvp.server.coordinator`, `privacy.ledger.Ledger.reserve(run_id)`, `docs/architecture.md`",
        "run `make PYTHON=python3.12 test`, or make tea",
        "```\n[not a link](nowhere.md)\n```",
        "a folder https://example.org/home/page and state/tmp/file",
    ],
)
def test_what_is_right_is_left_alone(text: str) -> None:
    assert mistakes_in(text) == []


def mistakes_in(text: str) -> list[str]:
    return [
        *documents.broken_links(text, ROOT),
        *documents.unknown_names(text),
        *documents.unknown_tests(text, set(documents.test_names())),
        *(documents.verbs_used(text) - documents.make_targets(read("Makefile"))),
        *(match[0] for match in documents.FORBIDDEN.finditer(text)),
    ]
