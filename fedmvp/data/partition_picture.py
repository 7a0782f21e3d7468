"""A partition as a picture: one bar a site, one colour a class. matplotlib comes with the extra `experiments`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmvp.data.partition import Partition
from fedmvp.data.records import ImageCollection
from fedmvp.extras import optional_module

COLOURS = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#7f7f7f", "#8c564b", "#17becf",
)  # fmt: skip
"""Told apart with every common kind of colour vision; more classes get a scale instead of a legend."""

_WIDTH_INCHES = 8.0
_BAR_INCHES = 0.32
_MARGIN_INCHES = 1.4
_MAX_HEIGHT_INCHES = 40.0
_DOTS_PER_INCH = 150


def label_counts(partition: Partition, collection: ImageCollection) -> NDArray[np.int64]:
    """Return the images of each class at each site; (n_sites, n_classes). An image counts once for each label."""
    matrix = collection.label_matrix()
    return np.array([matrix[list(share.indices)].sum(axis=0, dtype=np.int64) for share in partition.shares])


def draw_partition(partition: Partition, collection: ImageCollection, path: Path) -> None:
    """Write a picture of who holds how much of what.

    Args:
        partition: of the collection.
        collection: what was dealt.
        path: the file; its suffix chooses the format, such as .png or .svg.

    Raises:
        UserError: matplotlib is not installed.
    """
    figures = optional_module("matplotlib.figure", extra="experiments", purpose="a picture of a partition")
    counts = label_counts(partition, collection)
    height = min(_MARGIN_INCHES + _BAR_INCHES * len(counts), _MAX_HEIGHT_INCHES)
    figure = figures.Figure(figsize=(_WIDTH_INCHES, height), dpi=_DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    colours = _colours(len(collection.classes))
    places = np.arange(len(counts))
    starts = np.zeros(len(counts), dtype=np.int64)
    edge = 0.4 if len(collection.classes) <= len(COLOURS) else 0.0
    for label, name in enumerate(collection.classes):
        widths = counts[:, label]
        axes.barh(
            places,
            widths,
            left=starts,
            height=0.78,
            color=colours[label],
            edgecolor="white",
            linewidth=edge,
            label=name,
        )
        starts += widths
    axes.set_yticks(places, [share.name for share in partition.shares])
    axes.invert_yaxis()
    axes.set_xlabel("labels" if collection.multi_label else "images")
    axes.set_title(f"{collection.source.name}: {partition.rule}", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    _explain(figure, axes, collection.classes)
    figure.savefig(path)


def _colours(n_classes: int) -> list[Any]:
    if n_classes <= len(COLOURS):
        return list(COLOURS[:n_classes])
    maps = optional_module("matplotlib", extra="experiments", purpose="a picture of a partition").colormaps
    return list(maps["turbo"](np.linspace(0.03, 0.97, n_classes)))


def _explain(figure: Any, axes: Any, classes: tuple[str, ...]) -> None:
    """A legend for a few classes, a scale from the first to the last for many."""
    if len(classes) <= len(COLOURS):
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=8)
        return
    cm = optional_module("matplotlib.cm", extra="experiments", purpose="a picture of a partition")
    colours = optional_module("matplotlib.colors", extra="experiments", purpose="a picture of a partition")
    scale = cm.ScalarMappable(colours.Normalize(1, len(classes)), "turbo")
    bar = figure.colorbar(scale, ax=axes, ticks=[1, len(classes)])
    bar.ax.invert_yaxis()
    bar.ax.set_yticklabels([f"{classes[0]} (1)", f"{classes[-1]} ({len(classes)})"], fontsize=8)
    bar.set_label("class, in the classifier's order", fontsize=8)
