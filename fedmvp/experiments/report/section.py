"""What a report says of one study, before it is a page or Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fedmvp.experiments.report import wording
from fedmvp.experiments.report.alerts import Alert, alerts_of
from fedmvp.experiments.report.answers import in_short
from fedmvp.experiments.report.costs import largest_sum_error, run_cost
from fedmvp.experiments.report.figures import convergence_figure, privacy_figure
from fedmvp.experiments.report.group_figures import MAX_PANELS, group_figure, group_terms
from fedmvp.experiments.report.point_figures import bytes_figure, shown_terms, size_figure
from fedmvp.experiments.report.questions import FLOOR, chosen, floor
from fedmvp.experiments.report.reading import Study
from fedmvp.experiments.report.style import Theme
from fedmvp.experiments.report.summary import Comparison
from fedmvp.experiments.report.tables import (
    Item,
    Table,
    cost_table,
    difference_table,
    group_table,
    kept_table,
    overview_note,
    overview_row,
    score_table,
    site_table,
)


@dataclass(frozen=True)
class Picture:
    """A figure that can be drawn.

    Attributes:
        name: for its file.
        title: a heading.
        caption: what is seen, in a sentence or two.
        draw: makes it in the colours of a theme.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Theme], Any]


@dataclass(frozen=True)
class Part:
    """Figures and tables under one heading."""

    title: str
    words: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True)
class Section:
    """A study as a report shows it.

    Attributes:
        name: for links and files.
        title: of the study.
        sentence: its setting.
        facts: names and sentences.
        alerts: what comes first.
        short: what it shows, in sentences.
        parts: the rest.
        overview: a row for the index: what stands for FedMVP and its scores.
        overview_note: what the epsilons of that row are.
    """

    name: str
    title: str
    sentence: str
    facts: tuple[tuple[str, str], ...]
    alerts: tuple[Alert, ...]
    short: tuple[str, ...]
    parts: tuple[Part, ...] = field(repr=False)
    overview: tuple[Item, ...] = ()
    overview_note: str = ""


def section_of(study: Study) -> Section:
    """Say what a study shows."""
    facts = study.results.facts
    counts = [comparison.n_sites for comparison in study.comparisons]
    words = wording.names([str(count) for count in counts]) + (" site" if counts == [1] else " sites")
    modes = list(dict.fromkeys(mode for comparison in study.comparisons for mode in comparison.modes))
    return Section(
        name=study.name,
        title=study.title,
        sentence=wording.setting_sentence(facts, words),
        facts=(
            ("Tower", wording.tower_sentence(facts)),
            ("Privacy", wording.terms_sentence(facts, modes)),
            ("Seeds", _seed_words(study.comparisons)),
            *(("Sites", text) for text in [_site_words(facts.get("sites"))] if text),
        ),
        alerts=tuple(alerts_of(study)),
        short=tuple(sentence for comparison in study.comparisons for sentence in in_short(comparison)),
        parts=(*(part for comparison in study.comparisons for part in _parts(comparison)), _closing(study)),
        overview=overview_row(study),
        overview_note=overview_note(study),
    )


def _parts(comparison: Comparison) -> list[Part]:
    place = f", {comparison.n_sites} sites" if comparison.several else ""
    parts = [
        Part(
            f"Utility and privacy{place}",
            pictures=tuple(_privacy_pictures(comparison)),
            tables=(score_table(comparison),),
        ),
        Part(
            f"What privacy leaves, and who is ahead{place}",
            words=_no_answers(comparison),
            tables=tuple(
                table for table in (kept_table(comparison), difference_table(comparison)) if table is not None
            ),
        ),
        *_group_parts(comparison, place),
        Part(
            f"Rounds, sizes, bytes{place}",
            pictures=tuple(_other_pictures(comparison)),
            tables=(cost_table(comparison),),
        ),
    ]
    return [part for part in parts if part.words or part.pictures or part.tables]


def _no_answers(comparison: Comparison) -> tuple[str, ...]:
    reasons = []
    if floor(comparison) is None:
        reasons.append(f"{FLOOR} is not among the finished cells: there is no gain over it to speak of.")
    if chosen(comparison) is None:
        reasons.append("No entry of FedMVP was finished without privacy: none stands for it, and none is compared.")
    if not comparison.private:
        reasons.append("No private cell is finished.")
    return tuple(reasons)


def _privacy_pictures(comparison: Comparison) -> list[Picture]:
    if not comparison.private:
        return []
    caption = (
        "Lines are means over seeds, bands and bars the 95 % intervals; zero-shot is level, as it costs no privacy. "
        "Of a method with several sizes the one that is best without noise. What falls far below zero-shot leaves "
        "the axes."
    )
    return [Picture(_file(comparison, "privacy-utility"), "Utility by ε", caption, partial(privacy_figure, comparison))]


def _other_pictures(comparison: Comparison) -> list[Picture]:
    pictures = []
    if any(len(comparison.rounds(entry, terms)) > 1 for entry in comparison.trained for terms in comparison.columns):
        caption = (
            "The score after each round, with its interval over seeds. What is far below zero-shot is outside the axes."
        )
        pictures.append(
            Picture(_file(comparison, "convergence"), "Convergence", caption, partial(convergence_figure, comparison))
        )
    sizes = {comparison.parameters(entry) for entry in comparison.trained} - {None, 0}
    if len(sizes) > 1:
        caption = "Every entry at its number of trained parameters; a line joins the sizes of one method."
        pictures.append(
            Picture(_file(comparison, "size"), "Utility by size", caption, partial(size_figure, comparison))
        )
    costs = (
        run_cost(comparison, entry, terms.mode) for entry in comparison.trained for terms in shown_terms(comparison)
    )
    if any(cost is not None and cost.up for cost in costs):
        caption = (
            "What a site sends until the run ends, masked vectors and all else, against the score reached with it."
        )
        pictures.append(
            Picture(_file(comparison, "bytes"), "Utility by bytes sent", caption, partial(bytes_figure, comparison))
        )
    return pictures


def _group_parts(comparison: Comparison, place: str) -> list[Part]:
    """Nothing where there is one group: then the score is that group's."""
    terms = group_terms(comparison)
    words = " and ".join(terms.label for terms in terms)
    parts = []
    for name, title, groups in zip(("groups", "sites"), ("By group", "By site"), comparison.groups(), strict=True):
        if len(groups) < 2:
            continue
        table = site_table(comparison, groups, terms) if name == "sites" else None
        if len(groups) <= MAX_PANELS:
            caption = f"{wording.first_upper(words)}; error bars are 95 % intervals over seeds."
            table = table or group_table(comparison, groups, f"{title}, in percent", terms)
        else:
            caption = (
                f"{wording.first_upper(words)}; a mark for each of {len(groups)}, means as bars, the worst by name."
            )
        picture = Picture(_file(comparison, name), title, caption, partial(group_figure, comparison, groups))
        parts.append(Part(title + place, pictures=(picture,), tables=(table,) if table else ()))
    return parts


def _closing(study: Study) -> Part:
    errors = [error for comparison in study.comparisons if (error := largest_sum_error(comparison)) is not None]
    exact = (
        f"Secure sum: over all cells, rounds and coordinates the decoded sum and the plain one differ by at most "
        f"{wording.small(max(errors))}."
        if errors
        else "Secure sum: no cell compared the decoded sum with the plain one."
    )
    return Part(
        "How to read this",
        (
            exact,
            "Intervals are over seeds: partition, start, sampling and noise differ, while test images are the same or "
            "come from one pool. They say how another run would come out, not how other images would. With three seeds "
            "they are wide, and none is corrected for the number of comparisons.",
            "Every number is of this tower and these data. Another tower, above all one that saw other images, may "
            "order the methods differently.",
        ),
    )


def _seed_words(found: Sequence[Comparison]) -> str:
    seeds = sorted({seed for comparison in found for seed in comparison.seeds})
    return f"{len(seeds)} ({wording.names([str(seed) for seed in seeds])})"


def _site_words(sites: object) -> str:
    """Sites with their images, or how many where they are many."""
    if not isinstance(sites, Sequence) or isinstance(sites, str):
        return ""
    named = {str(site.get("name")): site.get("images") for site in sites if isinstance(site, Mapping)}
    counts = [images for images in named.values() if isinstance(images, int)]
    if not counts or len(counts) != len(sites):
        return wording.names(list(named))
    if len(counts) > wording.MAX_NAMES_LISTED:
        return f"{len(counts)} with {min(counts):,} to {max(counts):,} images"
    return wording.names([f"{name} ({images:,} images)" for name, images in named.items()])


def _file(comparison: Comparison, what: str) -> str:
    return f"{comparison.n_sites}-sites-{what}" if comparison.several else what
