"""``fedmvp-experiment attributes``: whether an attribute file serves a list of classes and a text tower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedmvp.cli.presentation import print_json, print_table
from fedmvp.cli.program import say
from fedmvp.data.attribute_file import AttributeFile, attributes_from, review_attributes
from fedmvp.data.choice import class_names
from fedmvp.data.presets import load_preset, preset_names
from fedmvp.errors import ExitCode

COMMON_TEMPLATE = "a photo of a {name}, which has {attribute}"
MAX_WORDS_SHOWN = 12


@dataclass(frozen=True)
class AttributeFinding:
    """Something about an attribute file: a problem stops a study, a warning does not."""

    verdict: str
    subject: str
    detail: str


def check_attributes(file: str, *, classes: str | None, backbone: str, template: str | None, style: str) -> ExitCode:
    """Print what a file holds and what is wrong with it.

    Args:
        file: a path, or the name of one of the package's files.
        classes: what it must cover, as :func:`fedmvp.data.choice.class_names`; None asks for its own classes.
        backbone: whose text tower reads the sentences.
        template: sentence with {name} and {attribute}; None takes the preset's, or a common one.
        style: "text" or "json".

    Returns:
        CONFIG where a study would be stopped.

    Raises:
        UserError: the file or an option cannot be read.
    """
    read = attributes_from(file)
    names = read.class_names if classes is None else class_names(classes)
    known = next((name for name in (classes, file) if name in preset_names()), None)
    used = template or (load_preset(known).template if known is not None else COMMON_TEMPLATE)
    findings = [*_coverage(read, names), *_lengths(read, names, used, backbone)]
    _show(read, names, findings, style)
    return ExitCode.CONFIG if any(item.verdict == "problem" for item in findings) else ExitCode.OK


def _coverage(read: AttributeFile, names: Sequence[str]) -> list[AttributeFinding]:
    review = review_attributes(read, names)
    missing = [AttributeFinding("problem", f"class '{name}'", "has no attributes") for name in review.missing]
    shared = [
        AttributeFinding("warning", f"'{attribute}'", f"is said of {', '.join(owners)}: it does not tell them apart")
        for attribute, owners in review.shared
    ]
    unused = [AttributeFinding("warning", f"class '{name}'", "is not asked for") for name in review.unused]
    return [*missing, *shared, *unused]


def _lengths(read: AttributeFile, names: Sequence[str], template: str, backbone: str) -> list[AttributeFinding]:
    """Sentences that a text tower would have to cut, and words that an embedded one never saw."""
    from fedmvp.model.supported import EMBEDDED_NAMES  # noqa: PLC0415 - loads torch
    from fedmvp.model.tokens import token_counter  # noqa: PLC0415

    count, room = token_counter(backbone)
    asked = [item for item in read.classes if item.name in names]
    sentences = [template.format(name=item.name, attribute=each) for item in asked for each in item.attributes]
    found = [
        AttributeFinding("problem", f"'{sentence}'", f"has {length} tokens; {backbone} reads {room}")
        for sentence in sentences
        if (length := count(sentence)) > room
    ]
    if backbone in EMBEDDED_NAMES:
        from fedmvp.model.loading import BackboneSpec, load_backbone  # noqa: PLC0415

        unknown = load_backbone(BackboneSpec(backbone, "embedded")).unknown_words(sentences)
        if unknown:
            shown = ", ".join(unknown[:MAX_WORDS_SHOWN]) + (", ..." if len(unknown) > MAX_WORDS_SHOWN else "")
            found.append(AttributeFinding("warning", f"{len(unknown)} word pieces", f"{backbone} never saw: {shown}"))
    return found


def _show(read: AttributeFile, names: Sequence[str], findings: Sequence[AttributeFinding], style: str) -> None:
    counts = {item.name: len(item.attributes) for item in read.classes}
    if style == "json":
        print_json(
            {
                "title": read.title,
                "source": read.source,
                "date": read.date.isoformat(),
                "licence": read.licence,
                "classes": {name: counts.get(name, 0) for name in names},
                "findings": [vars(item) for item in findings],
            }
        )
        return
    title = f"{read.title}: {read.source}, {read.date.isoformat()}, {read.licence}"
    print_table(title, ("class", "attributes"), [(name, counts.get(name, 0)) for name in names])
    for item in findings:
        say(f"{item.verdict}: {item.subject} {item.detail}")
    if not any(item.verdict == "problem" for item in findings):
        say(f"{sum(counts.get(name, 0) for name in names)} attributes of {len(names)} classes can be used")
