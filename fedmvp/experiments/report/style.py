"""How figures look: colours for light and dark, marks that differ without colour, labels that cover no other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from fedmvp.experiments.report.summary import Entry
from fedmvp.extras import optional_module

DOTS_PER_INCH = 150
LABEL_POINTS = 8.0
_LINE_SPACING = 1.35
_POINT_LABEL = 7.0
_SPOTS = [
    (dx, dy, ha)
    for reach in (1.0, 2.0, 3.2)
    for dx, dy, ha in (
        (7 * reach, 0.0, 0.0),
        (-7 * reach, 0.0, 1.0),
        (0.0, 10 * reach, 0.5),
        (0.0, -10 * reach, 0.5),
        (5 * reach, 8 * reach, 0.0),
        (5 * reach, -8 * reach, 0.0),
        (-5 * reach, 8 * reach, 1.0),
        (-5 * reach, -8 * reach, 1.0),
    )
]
"""Where a word may stand to its mark, the best first: points right, points up, part of its width to the left."""

_NEAR = len(_SPOTS) // 3
"""Of these the spots that need no line to the mark."""

_FARTHER = 0.01
"""What a worse spot costs, as a part of the word's own area."""

_LEADER = {"arrowstyle": "-", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0}


@dataclass(frozen=True)
class Theme:
    """Colours of a figure.

    Attributes:
        ink: text.
        muted: axes and what is a reference.
        grid: lines behind.
        paper: behind all.
        methods: by name of the method.
        spare: for methods that have none.
    """

    ink: str
    muted: str
    grid: str
    paper: str
    methods: dict[str, str]
    spare: tuple[str, ...]


LIGHT = Theme(
    "#1c2430",
    "#5b6675",
    "#e4e8ee",
    "#ffffff",
    {
        "fedmvp": "#1a4fd6",
        "fedmvp-narrow": "#0060b0",
        "fedmvp-probe": "#6a1fc2",
        "fedmvp-full": "#3aa3e3",
        "fedmvp-lora": "#3b2f8f",
        "promptfl": "#d55e00",
        "fedvpt": "#b98200",
        "fedclip": "#008f69",
        "fedtpg": "#c2559b",
        "linear-probe": "#1c1c1c",
        "task-residual": "#8c564b",
    },
    ("#6b7f2a", "#a00000", "#7f7f7f", "#2f5d62"),
)
DARK = Theme(
    "#e6eaf0",
    "#9aa6b5",
    "#2b3340",
    "#141a22",
    {
        "fedmvp": "#3fd0e0",
        "fedmvp-narrow": "#4da3ff",
        "fedmvp-probe": "#e27bff",
        "fedmvp-full": "#a5dcff",
        "fedmvp-lora": "#9d92ff",
        "promptfl": "#ff8b4a",
        "fedvpt": "#f0c24b",
        "fedclip": "#35cfa0",
        "fedtpg": "#f19fd0",
        "linear-probe": "#f4f4f4",
        "task-residual": "#d4a59a",
    },
    ("#b9cf6a", "#ff7f7f", "#b8b8b8", "#c0b090"),
)
"""Both after Okabe and Ito (2008), whose colours are told apart with every common kind of colour vision, darkened and
lightened for their papers."""

_MARKERS = {
    "fedmvp": "8",
    "fedmvp-narrow": "o",
    "fedmvp-probe": "h",
    "fedmvp-full": "s",
    "fedmvp-lora": "D",
    "promptfl": "^",
    "fedvpt": "v",
    "fedclip": "P",
    "fedtpg": "X",
    "linear-probe": "*",
    "task-residual": "p",
}
_SPARE_MARKERS = ("<", ">", "d", "H")


@dataclass(frozen=True)
class Look:
    """Colour and mark of a line."""

    colour: str
    marker: str
    strong: bool

    @property
    def width(self) -> float:
        """Of a line, in points."""
        return 2.4 if self.strong else 1.5

    @property
    def size(self) -> float:
        """Of a mark, in points; a star looks smaller than it is."""
        return (6.5 if self.strong else 5.5) + (2.5 if self.marker == "*" else 0.0)


@dataclass(frozen=True)
class Label:
    """A word at a line or a mark, in units of the data; half is that of an interval."""

    height: float
    text: str
    colour: str
    strong: bool = False
    place: float = 0.0
    half: float = 0.0

    def within(self, low: float) -> Label:
        """The label where axes begin at a height: what is below is named at the edge, with its value."""
        if self.height >= low:
            return self
        return replace(self, height=low, text=f"{self.text} ↓ {self.height:.1f}")


def looks(theme: Theme, entries: Sequence[Entry]) -> dict[Entry, Look]:
    """A look for each entry: that of its method, the same in all figures of a study."""
    unknown = [method for method in dict.fromkeys(entry.method for entry in entries) if method not in theme.methods]
    spare = {method: place for place, method in enumerate(unknown)}
    found = {}
    for entry in entries:
        place = spare.get(entry.method, 0)
        found[entry] = Look(
            theme.methods.get(entry.method, theme.spare[place % len(theme.spare)]),
            _MARKERS.get(entry.method, _SPARE_MARKERS[place % len(_SPARE_MARKERS)]),
            entry.method.startswith("fedmvp"),
        )
    return found


@contextmanager
def themed(theme: Theme) -> Iterator[None]:
    """Draw and save within this; nothing of it stays behind."""
    mpl = optional_module("matplotlib", extra="experiments", purpose="a report")
    with mpl.rc_context(
        {
            "figure.facecolor": theme.paper,
            "axes.facecolor": theme.paper,
            "savefig.facecolor": theme.paper,
            "text.color": theme.ink,
            "axes.labelcolor": theme.ink,
            "axes.titlecolor": theme.ink,
            "axes.edgecolor": theme.muted,
            "xtick.color": theme.muted,
            "ytick.color": theme.muted,
            "xtick.labelcolor": theme.ink,
            "ytick.labelcolor": theme.ink,
            "grid.color": theme.grid,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlelocation": "left",
            "axes.titlesize": 10,
            "axes.titleweight": "bold",
            "axes.labelsize": 9,
            "font.family": "DejaVu Sans",
            "font.size": 9,
            "xtick.labelsize": 8.5,
            "ytick.labelsize": 8.5,
            "text.parse_math": False,
            "svg.hashsalt": "fedmvp",
        }
    ):
        yield


def new_figure(width: float, height: float) -> Any:
    """An empty figure, of inches, that belongs to no window."""
    figures = optional_module("matplotlib.figure", extra="experiments", purpose="a report")
    return figures.Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")


def label_ends(axes: Any, labels: Sequence[Label], height_inches: float) -> None:
    """Write words right of the axes, each as near to the height of its line as the others allow.

    Args:
        axes: with their final limits.
        labels: the words; their places are not used.
        height_inches: of the axes, roughly.
    """
    low, high = axes.get_ylim()
    gap = LABEL_POINTS * _LINE_SPACING / 72 / height_inches
    ordered = sorted((label.within(low) for label in labels), key=lambda label: label.height)
    places = spread([(label.height - low) / (high - low) for label in ordered], gap)
    for label, place in zip(ordered, places, strict=True):
        axes.annotate(
            label.text,
            xy=(1.0, (label.height - low) / (high - low)),
            xytext=(1.07, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            fontsize=LABEL_POINTS,
            fontweight="bold" if label.strong else "normal",
            color=label.colour,
            annotation_clip=False,
            arrowprops={**_LEADER, "color": label.colour, "relpos": (0.0, 0.5)},
        )


def label_points(figure: Any, axes: Any, labels: Sequence[Label]) -> None:
    """Write words beside marks, where they cover neither marks nor one another if there is such a place.

    Args:
        figure: the axes' own, complete but for these words.
        axes: with their final limits.
        labels: the words, at places and heights of the data.
    """
    figure.draw_without_rendering()
    point = figure.dpi / 72
    low = axes.get_ylim()[0]
    marks = [tuple(axes.transData.transform((label.place, max(label.height, low)))) for label in labels]
    taken = [_Box(x - 5 * point, y - 5 * point, x + 5 * point, y + 5 * point) for x, y in marks]
    taken += [_bar(axes, label, point) for label in labels if label.half]
    frame = axes.get_window_extent()
    inside = _Box(frame.x0, frame.y0, frame.x1, frame.y1)
    for label, (x, y) in zip(labels, marks, strict=True):
        shown = label.within(low)
        width, height = 0.62 * _POINT_LABEL * len(shown.text) * point, 1.15 * _POINT_LABEL * point
        boxes = [
            _Box(
                x + dx * point - width * ha,
                y + dy * point - height / 2,
                x + dx * point + width * (1 - ha),
                y + dy * point + height / 2,
            )
            for dx, dy, ha in _SPOTS
        ]
        worth = [_cost(box, taken, inside) + _FARTHER * number * width * height for number, box in enumerate(boxes)]
        best = worth.index(min(worth))
        taken.append(boxes[best])
        dx, dy, ha = _SPOTS[best]
        note = axes.annotate(
            shown.text,
            (label.place, shown.height),
            xytext=(dx, dy),
            textcoords="offset points",
            ha={0.0: "left", 0.5: "center", 1.0: "right"}[ha],
            va="center",
            fontsize=_POINT_LABEL,
            fontweight="bold" if label.strong else "normal",
            color=label.colour,
            zorder=6,
            arrowprops=None if best < _NEAR else {**_LEADER, "color": label.colour, "relpos": (ha, 0.5)},
        )
        note.set_in_layout(False)


def _bar(axes: Any, label: Label, point: float) -> _Box:
    x, bottom = axes.transData.transform((label.place, label.height - label.half))
    _, top = axes.transData.transform((label.place, label.height + label.half))
    return _Box(x - point, bottom, x + point, top)


class _Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    def shared(self, other: _Box) -> float:
        """The area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, width) * max(0.0, height)


def _cost(box: _Box, taken: Sequence[_Box], inside: _Box) -> float:
    area = (box.right - box.left) * (box.top - box.bottom)
    return sum(box.shared(other) for other in taken) + 2 * (area - box.shared(inside))


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move ascending heights apart to at least the gap, as little as that takes, around the middle of each crowd."""
    crowds: list[tuple[float, list[float]]] = []
    for height in heights:
        members = [height]
        while True:
            middle = sum(members) / len(members)
            bottom = middle - gap * (len(members) - 1) / 2
            if not crowds or crowds[-1][0] + gap * len(crowds[-1][1]) <= bottom:
                break
            members = crowds.pop()[1] + members
        crowds.append((bottom, members))
    return [bottom + gap * place for bottom, members in crowds for place in range(len(members))]
