"""The scatter plot: round ticks, a range that holds every point, no two points on one spot, and colors that stay."""

import math
import re

import pytest

from app.jobs.scatter import BOTTOM, LEFT, RIGHT, TOP, Axis, ScatterPoint, color_of, range_of, render_scatter, spread
from erasure.config.registry import list_modules


@pytest.mark.parametrize(
    ("shares", "expected"),
    [([1.0, 0.99], (0.9, 1.0)), ([0.85, 1.0], (0.8, 1.0)), ([0.91], (0.8, 1.0)), ([0.0, 1.0], (0.0, 1.0)), ([], (0.0, 1.0))],
)
def test_the_range_is_round_and_holds_every_share(shares: list[float], expected: tuple[float, float]) -> None:
    assert range_of(shares) == pytest.approx(expected)


@pytest.mark.parametrize("low", [k / 10 for k in range(10)])
def test_an_axis_has_a_few_round_ticks_from_end_to_end(low: float) -> None:
    axis = Axis(low, 1.0, LEFT, RIGHT)
    ticks = axis.ticks
    assert 3 <= len(ticks) <= 7 and ticks[-1] == (RIGHT, "100")
    assert all(LEFT <= place <= RIGHT for place, _ in ticks)
    assert axis.place(low) == LEFT and axis.place(-5.0) == LEFT


def test_points_on_one_spot_are_moved_apart_and_others_stay() -> None:
    places = [(100.0, 100.0)] * 5 + [(300.0, 200.0)]
    moved = spread(places)
    assert moved[5] == (300.0, 200.0)
    distances = [math.dist(a, b) for i, a in enumerate(moved[:5]) for b in moved[:i]]
    assert min(distances) > 6
    assert all(math.dist(place, (100.0, 100.0)) < 20 for place in moved[:5])


def test_equal_points_are_all_drawn_inside_and_keep_their_rows() -> None:
    points = [ScatterPoint("uce", f"<audit {i}>", 1.0, 0.9, 1.0, 1.0) for i in range(4)]
    html = render_scatter(points, [7, 3, 5, 1])
    assert re.findall(r'data-row="(\d+)"', html) == ["7", "3", "5", "1"]
    centers = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="6"', html)
    assert len(set(centers)) == 4
    assert all(float(x) <= RIGHT + 6 and TOP - 6 <= float(y) <= BOTTOM for x, y in centers)
    assert "<audit" not in html and "moved apart" in html


def test_a_method_keeps_its_color() -> None:
    methods = list_modules("erasure.methods")
    assert len({color_of(method) for method in [*methods, "esd + uce"]}) == len(methods) + 1
    assert color_of("esd + uce") == color_of("made elsewhere")
