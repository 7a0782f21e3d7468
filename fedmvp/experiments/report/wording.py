"""How numbers and facts of a study are put into words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fedmvp.evaluation.intervals import OverSeeds

MAX_NAMES_LISTED = 8
"""Of more names a list says how many."""

MISSING = "–"
SILO = "silo-distributed"

_PRIVATE = re.compile(r"\b(private|uncharged)\b", re.IGNORECASE)
_HARMLESS = re.compile(r"\b(no |non-)private\b", re.IGNORECASE)
_PUBLIC = re.compile(r"\bpublic(ly)?\b", re.IGNORECASE)

NOT_COVERED = "The epsilons of this report do not cover this choice."
NOT_SAID = "Not said to come from public data alone: take it that the epsilons do not cover this choice."


def percent(value: float) -> str:
    """A share in percent, without the sign."""
    return f"{100 * value:.1f}"


def with_interval(value: OverSeeds | None, *, signed: bool = False) -> str:
    """Mean and half width in percent; the mean alone for one seed."""
    if value is None:
        return MISSING
    mean = f"{100 * value.mean:+.1f}" if signed else percent(value.mean)
    mean = mean.replace("-", "−").replace("−0.0", "0.0").replace("+0.0", "0.0")
    return mean if value.half_width is None else f"{mean} ± {percent(value.half_width)}"


def size(n_bytes: float) -> str:
    """Bytes with a decimal prefix."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n_bytes >= limit:
            return f"{n_bytes / limit:.3g} {unit}"
    return f"{n_bytes:.0f} B"


def count(number: float) -> str:
    """A number of parameters, short."""
    for limit, unit in ((1e9, "billion"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g} {unit}"
    return f"{number:.0f}"


def first_upper(text: str) -> str:
    """A sentence's start."""
    return text[:1].upper() + text[1:]


def seconds(value: float) -> str:
    """A time."""
    return f"{value:.1f} s" if value < 100 else f"{value:,.0f} s"


def small(value: float) -> str:
    """A number that may be tiny."""
    return f"{value:.3g}"


def names(value: Any) -> str:
    """A fact that is a name, a number or a list of names."""
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {names(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        items = [names(item) for item in value]
        if len(items) > MAX_NAMES_LISTED:
            return f"{', '.join(items[: MAX_NAMES_LISTED - 2])}, … ({len(items)} in all)"
        return ", ".join(items[:-1]) + (" and " if len(items) > 1 else "") + "".join(items[-1:])
    return str(value)


def lines(value: Any) -> list[str]:
    """A fact that is one sentence, several, or several by name."""
    if not value:
        return []
    if isinstance(value, Mapping):
        return [f"{key}: {names(item)}" for key, item in value.items()]
    return [value] if isinstance(value, str) else [names(item) for item in value]


def setting_sentence(facts: Mapping[str, Any], n_sites: str) -> str:
    """What was trained where and measured on what."""
    classes = facts.get("classes")
    if isinstance(classes, Sequence) and not isinstance(classes, str):
        classes = (
            f"{len(classes)} classes"
            if len(classes) > MAX_NAMES_LISTED
            else f"{len(classes)} classes ({names(classes)})"
        )
    elif isinstance(classes, int):
        classes = f"{classes} classes"
    data = facts.get("data")
    if isinstance(data, Mapping):
        images = data.get("images")
        data = names(data.get("name")) + (f" ({images:,} images)" if isinstance(images, int) else "")
    sources, targets = names(facts.get("sources")), names(facts.get("targets"))
    parts = [
        f"trained on {sources} at {n_sites}" if sources else f"trained at {n_sites}",
        f"measured on {targets}" if targets else "",
        names(classes),
        f"data: {names(data)}" if data else "",
    ]
    setting = names(facts.get("setting"))
    return first_upper((f"{setting}: " if setting else "") + "; ".join(part for part in parts if part) + ".")


def delta_words(facts: Mapping[str, Any]) -> str:
    """δ, as every statement of an ε carries it."""
    delta = facts.get("delta")
    return f"{delta:.3g}" if isinstance(delta, int | float) else names(delta) or "not stated"


def unit_words(facts: Mapping[str, Any], modes: Sequence[str]) -> str:
    """What is protected: what the study says, and in silo-distributed always a whole site."""
    stated = names(facts.get("unit")) or "unit not stated"
    if SILO not in modes or stated == "site":
        return stated
    return "site" if set(modes) == {SILO} else f"{stated} (in {SILO}: site)"


def short_terms(facts: Mapping[str, Any], modes: Sequence[str]) -> str:
    """What belongs to an ε of these modes, in a few words."""
    relation = names(facts.get("neighboring_relation")) or "relation not stated"
    return f"δ = {delta_words(facts)}, {unit_words(facts, modes)}, {relation}"


def full_terms(facts: Mapping[str, Any], modes: Sequence[str]) -> str:
    """What belongs to an ε of these modes, all of it."""
    return f"{short_terms(facts, modes)}; accountant {names(facts.get('accountant')) or 'not stated'}"


def terms_sentence(facts: Mapping[str, Any], modes: Sequence[str]) -> str:
    """Once a study: what every ε of it means."""
    parts = [
        f"unit of privacy: {unit_words(facts, modes)}",
        f"neighbouring relation: {names(facts.get('neighboring_relation')) or 'not stated'}",
        f"δ = {delta_words(facts)}",
        f"accountant: {names(facts.get('accountant')) or 'not stated'}",
    ]
    rests = [
        "record-local rests on the site alone" if "record-local" in modes else "",
        "distributed noise also on the secure sum and on how many sites collude"
        if set(modes) - {"record-local"}
        else "",
    ]
    basis = "; ".join(part for part in rests if part)
    return f"{first_upper('; '.join(parts))}." + (f" {first_upper(basis)}." if basis else "")


def tower_sentence(facts: Mapping[str, Any]) -> str:
    """The frozen tower and the data that it saw."""
    tower = facts.get("tower")
    if not isinstance(tower, Mapping):
        return f"{names(tower) or 'not stated'}; the data that it saw: not stated."
    return (
        f"{names(tower.get('name')) or 'not stated'}; the data that it saw: {names(tower.get('data')) or 'not stated'}."
    )


def settings_lines(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where hyper-parameters come from: each line with its warning, "" where it is public data alone.

    A line is taken for uncharged private data unless its words say otherwise.
    """
    found = []
    for line in lines(facts.get("settings_from")) or ["not stated"]:
        if _PRIVATE.search(_HARMLESS.sub("", line)):
            found.append((line, NOT_COVERED))
        else:
            found.append((line, "" if _PUBLIC.search(line) else NOT_SAID))
    return found
