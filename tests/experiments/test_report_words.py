"""What a report says of a study, and how its figures say it."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedmvp.errors import UserError
from fedmvp.experiments.report import drawing, wording
from fedmvp.experiments.report.output import drawn
from fedmvp.experiments.report.picture import privacy_utility_picture
from fedmvp.experiments.report.reading import as_study
from fedmvp.experiments.report.section import Section, section_of
from fedmvp.experiments.report.style import DARK, LIGHT, Label, Theme, looks, spread
from fedmvp.experiments.report.summary import PLAIN, Entry, comparisons
from fedmvp.experiments.report.wording import NOT_COVERED, NOT_SAID, settings_lines
from fedmvp.experiments.results import Results
from tests.experiments.synthetic import FACTS, SMALL, Synthetic, titled


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


def test_many_sites_are_a_mark_each_and_the_worst_is_named() -> None:
    sites = [{"name": f"clinic-{number:02d}", "images": 100 + number} for number in range(12)]
    groups = {site["name"]: 0.01 * (number * 7 % 12) - 0.2 for number, site in enumerate(sites)}
    personal = replace(SMALL, groups=groups, seeds=(0,), modes=("record-local",), epsilons=(8.0,), rounds=0)
    found = section(titled(personal.results(), sites=sites))
    assert "12 with 100 to 111 images" in texts(found)
    (part,) = [part for part in found.parts if part.title == "By site"]
    (picture,), (table,) = part.pictures, part.tables
    assert "a mark for each of 12" in picture.caption
    assert table.rows[1][2].text == "43.0 (clinic-00)"  # zero-shot 63 less 20
    figure = as_text(picture.draw(LIGHT))
    assert "clinic-00" in figure
    assert "zero-shot-attributes" in figure


def as_text(figure: Any) -> set[str]:
    """The words of a figure."""
    return {found.get_text() for axes in figure.axes for found in axes.findobj(lambda item: hasattr(item, "get_text"))}


def test_a_study_without_noise_has_no_curve_over_epsilon() -> None:
    found = section(replace(SMALL, modes=()).results())
    assert [picture.name for part in found.parts for picture in part.pictures] == [
        "groups", "convergence", "size", "bytes",
    ]  # fmt: skip
    assert "No private cell is finished." in found.parts[1].words
    for part in found.parts:
        for picture in part.pictures:
            assert drawn(picture, DARK).startswith(b"\x89PNG")


def test_what_falls_below_the_axes_is_named_with_its_value() -> None:
    assert Label(20.44, "fedmvp-full", "#000000").within(45.0).text == "fedmvp-full ↓ 20.4"
    assert Label(45.0, "fedmvp-full", "#000000").within(45.0).text == "fedmvp-full"


def test_words_for_facts_and_numbers() -> None:
    assert wording.names([f"c{number}" for number in range(20)]) == "c0, c1, c2, c3, c4, c5, … (20 in all)"
    assert (
        wording.names({"record-local": "PLD", "others": ["RDP", "filter"]})
        == "record-local: PLD; others: RDP and filter"
    )
    assert wording.setting_sentence({"classes": 40, "setting": "base to new"}, "4 sites") == (
        "Base to new: trained at 4 sites; 40 classes."
    )
    assert wording.setting_sentence({"classes": list("abcdefghij")}, "1 site") == "Trained at 1 site; 10 classes."
    assert wording.tower_sentence({"tower": "RN50"}) == "RN50; the data that it saw: not stated."
    assert [wording.size(number) for number in (12, 1500, 2.5e6, 3e9)] == ["12 B", "1.5 kB", "2.5 MB", "3 GB"]
    assert [wording.count(number) for number in (12, 36864, 9845760)] == ["12", "36.9 k", "9.85 M"]
    silo, both = ["silo-distributed"], ["record-local", "silo-distributed"]
    assert "privacy: record (in silo-distributed: site);" in wording.terms_sentence(FACTS, both)
    assert wording.short_terms(FACTS, silo) == "δ = 1e-05, site, add-or-remove-one"
    assert wording.short_terms({**FACTS, "unit": "site"}, both) == "δ = 1e-05, site, add-or-remove-one"
    assert wording.full_terms({}, both[:1]).count("not stated") == 4
    assert settings_lines({"settings_from": {"promptfl": "public images", "fedmvp": "private ones"}}) == [
        ("promptfl: public images", ""),
        ("fedmvp: private ones", NOT_COVERED),
    ]


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
        assert len({look.colour for look in found.values()}) == len({look.marker for look in found.values()}) == 15
        assert looks(theme, entries[2:])[entries[2]].colour == found[entries[2]].colour


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_colours_of_methods_are_told_apart(theme: Theme) -> None:
    """Distance in CIE L*a*b*, where 2 is just seen (CIE 1976)."""
    seen = {name: _lab(colour) for name, colour in theme.methods.items()}
    for (first, a), (second, b) in combinations(seen.items(), 2):
        assert np.linalg.norm(a - b) > 18, (first, second)


def _lab(colour: str) -> Any:
    channels = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ linear / np.array([0.95047, 1.0, 1.08883]))  # dark greys aside, the standard's curve
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_a_method_that_collapses_does_not_flatten_the_others() -> None:
    (comparison,) = comparisons(SMALL.results())
    scores = [comparison.score(entry, PLAIN) for entry in comparison.trained]
    fallen = replace(comparison.score(Entry("promptfl"), PLAIN), values=(0.02, 0.02, 0.02))  # type: ignore[type-var]
    low, high = drawing.limits(comparison, [*(score for score in scores if score), fallen])
    assert 40 < low < 60
    assert high > 82
