"""Names of things and sentences about them: WordNet's lemmas and definitions as timm ships them, and our own words.

They are what the text tower learns to read. Nothing here is taken from a data set that a study measures.
"""

from __future__ import annotations

import functools
import re
from importlib.util import find_spec
from pathlib import Path

from tools.pretrain.corpus import read_concepts


def _table(name: str) -> dict[str, str]:
    return dict(line.split("\t", 1) for line in _read(name).splitlines() if "\t" in line)


def _read(name: str) -> str:
    spec = find_spec("timm")  # not imported: only its tables are wanted
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("timm is not installed")
    return (Path(spec.submodule_search_locations[0]) / "data" / "_info" / name).read_text(encoding="utf-8")


@functools.cache
def imagenet_names() -> tuple[str, ...]:
    """The first name of each of ImageNet's 1,000 classes, in the order of a classifier's outputs."""
    synsets = _read("imagenet_synsets.txt").split()
    lemmas = _table("imagenet_synset_to_lemma.txt")
    return tuple(lemmas[synset] for synset in synsets)


@functools.cache
def lemmas() -> tuple[tuple[str, ...], ...]:
    """The names of each of 21,844 things (synonyms together)."""
    return tuple(tuple(names.split(", ")) for names in _table("imagenet_synset_to_lemma.txt").values())


@functools.cache
def definitions() -> tuple[str, ...]:
    """The parts of the definitions of those things, as short phrases."""
    phrases: dict[str, None] = {}
    for definition in _table("imagenet_synset_to_definition.txt").values():
        for piece in re.split(r"[;()]|, | that | which | with | having ", definition):
            words = piece.split()
            if 1 < len(words) <= 12:
                phrases[" ".join(words)] = None
    return tuple(phrases)


def known_words() -> frozenset[str]:
    """Every single word that occurs in a lemma."""
    return frozenset(word.lower() for names in lemmas() for name in names for word in re.split(r"[ \-]", name))


def own_sentences() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and attributes of ``concepts.toml``."""
    names, attributes = [], []
    for group in read_concepts().values():
        for name, words in group.items():
            names += [name, *words["synonyms"]]
            attributes += words["attributes"]
    return tuple(names), tuple(attributes)
