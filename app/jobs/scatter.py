"""Erased against retained as an SVG: the part of the plane where the points are, and the whole plane beside it. No torch here."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from app.html_templates import render_html
from app.method_words import title_of_method

# a method keeps its color when others come; 3:1 on white and on the dark page
COLORS = {
    "advunlearn": "#2f6feb",
    "duo": "#c2410c",
    "esd": "#1f8a55",
    "fia": "#a855c7",
    "negative_prompt": "#d6336c",
    "npo": "#0e8a9e",
    "projected": "#a16207",
    "salun": "#0d9488",
    "sfd": "#7c66e3",
    "sfd_matching": "#4d7c0f",
    "sld": "#be5c8c",
    "ssd": "#5b7bb0",
    "uce": "#e11d48",
    "doco": "#8d6e63",
}
OTHER_COLOR = "#6b7280"  # of several methods together, and of unknown ones
LEFT, RIGHT, TOP, BOTTOM = 46, 586, 16, 300  # of the plot, in the units of its viewBox
SPREAD = 9  # units between points that lie on top of each other
MIN_RANGE = 0.1


@dataclass(frozen=True)
class ScatterPoint:
    """A point to draw; shares are from 0 to 1."""

    method: str
    label: str  # of its tooltip, for screen readers too
    x: float
    low: float
    high: float
    y: float


@dataclass(frozen=True)
class Axis:
    """The shares that an axis shows, and where."""

    low: float
    high: float
    start: float
    end: float

    def place(self, share: float) -> float:
        return self.start + (self.end - self.start) * (min(max(share, self.low), self.high) - self.low) / (self.high - self.low)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Places and labels of round shares."""
        step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.25) if (self.high - self.low) / step <= 6)
        first = math.ceil(self.low / step - 1e-9)
        return [(self.place(k * step), f"{100 * k * step:g}") for k in range(first, int(self.high / step + 1e-9) + 1)]


def color_of(method: str) -> str:
    """Return the color of a method; of several together or an unknown one, gray."""
    return COLORS.get(method, OTHER_COLOR)


def render_scatter(points: Sequence[ScatterPoint], rows: Sequence[int]) -> str:
    """Render points as HTML; `rows` says which row of a table each belongs to. Every point has a label and can take keyboard focus."""
    x_axis = Axis(*range_of([value for point in points for value in (point.x, point.low)]), LEFT, RIGHT)
    y_axis = Axis(*range_of([point.y for point in points]), BOTTOM, TOP)
    places = spread([(x_axis.place(point.x), y_axis.place(point.y)) for point in points])
    drawn = [
        {
            "row": row,
            "label": point.label,
            "color": color_of(point.method),
            "cx": round(cx, 1),
            "cy": round(cy, 1),
            "low": round(x_axis.place(point.low), 1),
            "high": round(x_axis.place(point.high), 1),
        }
        for point, row, (cx, cy) in zip(points, rows, places, strict=True)
    ]
    whole = [{"x": round(60 * point.x, 1), "y": round(60 - 60 * point.y, 1), "color": color_of(point.method)} for point in points]
    methods = sorted({point.method for point in points})
    return render_html(
        "scatter",
        points=drawn,
        whole=whole,
        x_axis=x_axis,
        y_axis=y_axis,
        legend=[(title_of_method(method), color_of(method)) for method in methods],
        moved=places != [(x_axis.place(point.x), y_axis.place(point.y)) for point in points],
    )


def range_of(shares: Sequence[float]) -> tuple[float, float]:
    """Return the round range that holds all shares and ends at 1."""
    low = min(shares, default=0.0)
    return max(0.0, math.floor(10 * min(low - 0.02, 1 - MIN_RANGE) + 1e-9) / 10), 1.0


def spread(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return places such that those at the same spot lie in a circle around it, where all can be seen and clicked."""
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, (x, y) in enumerate(places):
        groups[round(x / 4), round(y / 4)].append(i)
    moved = list(places)
    for members in groups.values():
        radius = SPREAD * len(members) / (2 * math.pi) + 4
        for k, i in enumerate(members if len(members) > 1 else ()):
            angle = 2 * math.pi * k / len(members)
            x, y = places[i]
            moved[i] = (min(x + radius * math.cos(angle), RIGHT + 6), max(y + radius * math.sin(angle), TOP - 6))
    return moved
