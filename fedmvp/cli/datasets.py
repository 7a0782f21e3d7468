"""``fedmvp-experiment presets`` and ``data``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fedmvp.cli.presentation import print_json, print_table
from fedmvp.cli.program import say
from fedmvp.data.choice import DataSource
from fedmvp.data.inspection import require_readable, require_sound
from fedmvp.data.opening import MAX_FILES_SHOWN, Survey, survey_preset
from fedmvp.data.presets import load_preset, preset_names

MAX_DECODE_LINES = 10


def print_presets(style: str) -> None:
    """Print the presets; `style` is "text" or "json"."""
    known = [load_preset(name) for name in preset_names()]
    columns = ("name", "task", "classes", "images", "domains", "attributes", "template")
    rows = [
        (
            preset.name,
            preset.task,
            preset.n_classes,
            sum(domain.images for domain in preset.domains) or sum(preset.expected.values()) or None,
            ", ".join(domain.name for domain in preset.domains) or None,
            preset.attributes or None,
            preset.template,
        )
        for preset in known
    ]
    if style == "json":
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        print_table("data sets known by name", columns, rows)


def print_data(source: DataSource, *, decode: bool, style: str) -> None:
    """Print what a data set holds and check all of it.

    Args:
        source: the data.
        decode: whether every image is decoded.
        style: "text" or "json".

    Raises:
        UserError: the first thing that would stop a study.
    """
    if source.preset is not None and source.layout is None:
        survey = survey_preset(load_preset(source.preset), source.path)
        columns = ("part", "expected", "found", "missing")
        rows = [(part.name, part.expected, part.found, len(part.missing)) for part in survey.parts]
        _show(f"{source.preset} in {source.path}", columns, rows, survey, style)
    collection = source.open()
    if source.preset is None:
        counts = Counter((record.domain, record.split) for record in collection.records)
        rows_here = [(domain, split, count) for (domain, split), count in counts.items()]
        _show(str(source.path), ("domain", "split", "images"), rows_here, None, style)
    require_sound(collection)
    if decode:
        require_readable(collection, progress=_progress)
    say(f"{len(collection)} images of {len(collection.classes)} classes can be used")


def _show(
    title: str, columns: Sequence[str], rows: Sequence[tuple[object, ...]], survey: Survey | None, style: str
) -> None:
    unexpected = survey.unexpected if survey is not None else ()
    if style == "json":
        parts = [dict(zip(columns, row, strict=True)) for row in rows]
        print_json({"data": title, "parts": parts, "unexpected": [str(path) for path in unexpected]})
        return
    print_table(title, columns, rows)
    if unexpected:
        shown = ", ".join(str(path) for path in unexpected[:MAX_FILES_SHOWN])
        say(f"{len(unexpected)} images that the data set does not list are not used: {shown}")


def _progress(done: int, total: int) -> None:
    if done % max(1, total // MAX_DECODE_LINES) == 0:
        say(f"decoded {done} of {total} images")
