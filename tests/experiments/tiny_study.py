"""A study small enough for tests: coloured squares in four styles, three of which are sites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fedmvp.experiments.results import Row, read_results
from fedmvp.experiments.run import StudyRun
from fedmvp.experiments.study import Study
from fedmvp.study.documents import validate

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 50, 230), "yellow": (230, 220, 20)}
STYLES = ("plain", "dark", "noisy", "framed")

ATTRIBUTES = """\
format = "fedmvp/attributes/v1"
title = "colours"
source = "written for tests"
date = 2026-01-01
licence = "Apache-2.0"
"""


UNREPEATABLE = {"seconds", "bytes-up", "bytes-down"}
"""Metrics that depend on the machine and the wire."""


def lasting(results: Path) -> list[Row]:
    """All rows of a results file but those that depend on the machine and the wire."""
    return [row for row in read_results(results).rows if row[1].metric not in UNREPEATABLE]


def write_images(folder: Path, *, per_class: int = 8) -> None:
    """Write <folder>/<style>/<colour>/<number>.png and the attribute file beside."""
    random = np.random.default_rng(0)
    for style in STYLES:
        for name, colour in COLOURS.items():
            target = folder / "squares" / style / name
            target.mkdir(parents=True)
            for number in range(per_class):
                pixels = np.tile(np.array(colour, dtype=np.float64), (16, 16, 1))
                if style == "dark":
                    pixels *= 0.4
                if style == "framed":
                    pixels[:3] = pixels[-3:] = 255
                pixels += random.normal(0, 40 if style == "noisy" else 8, pixels.shape)
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(target / f"{number}.png")
    classes = "".join(
        f'\n[[classes]]\nname = "{name}"\nattributes = ["{name} colour", "a {name} square"]\n' for name in COLOURS
    )
    (folder / "colours.toml").write_text(ATTRIBUTES + classes)


def study_values(folder: Path, **changes: Any) -> dict[str, Any]:
    """The study as tables; `changes` are merged into tables, or replace lists."""
    values: dict[str, Any] = {
        "study": {"name": "squares", "title": "coloured squares", "seeds": [0]},
        "data": {
            "folder": "squares",
            "layout": "domain-folders",
            "classes": list(COLOURS),
            "attributes": str(folder / "colours.toml"),
            "template": "a picture of a {name} with {attribute}",
            "plain_template": "a picture of a {name}",
        },
        "setting": {"kind": "domains", "sources": ["plain", "dark", "noisy"], "targets": ["framed"]},
        "sites": {"rule": "domain", "minimum": 10},
        "tower": {"name": "fedmvp-tiny"},
        "training": {"rounds": 2, "local_steps": 1, "learning_rate": 0.5, "sample_rate": 0.5},
        "methods": [
            {"name": "zero-shot-attributes"},
            {
                "name": "prompts",
                "method": "fedmvp-narrow",
                "options": {"n_prompts": 2, "n_heads": 2, "bottleneck_width": 2},
            },
        ],
        "privacy": {"modes": ["non-private", "record-local"], "epsilons": [8.0], "delta": 1e-3},
        "settings_from": {"kind": "defaults", "note": "for tests"},
    }
    for name, change in changes.items():
        values[name] = {**values.get(name, {}), **change} if isinstance(change, dict) else change
    return values


def make_study(folder: Path, **changes: Any) -> Study:
    """The study as the product reads it."""
    return validate(Study, study_values(folder, **changes), source="STUDY.toml")


def make_run(folder: Path, **changes: Any) -> StudyRun:
    """Images, study and run folder below an empty folder."""
    write_images(folder)
    return StudyRun(make_study(folder, **changes), folder, folder / "run")
