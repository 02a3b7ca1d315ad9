"""Printed numbers: estimates rounded to the nearest, bounds outward, without floating-point noise."""

import pytest

from eval.report.numbers import format_percent, format_percent_span, format_points, format_points_span, format_span, round_down, round_up


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [(3.21, 3.2, 3.3), (-10.249, -10.3, -10.2), (100 * (0.1 + 0.2), 30, 30), (100 * 0.29, 29, 29), (100 * 0.07, 7, 7), (-0.04, -0.1, 0)],
)
def test_bounds_are_rounded_outward_and_whole_tenths_stay(value: float, low: float, high: float) -> None:
    assert (round_down(value), round_up(value)) == (low, high)


def test_every_whole_tenth_stays() -> None:
    for tenths in range(-1000, 1001):
        share = tenths / 1000
        assert f"{round_down(100 * share):.1f}" == f"{round_up(100 * share):.1f}" or share == 0
        assert format_percent_span(share, share).split(" to ") == [format_percent(share)] * 2
        assert format_points_span(share, share).split(" to ") == [format_points(share)] * 2


def test_formats_of_numbers() -> None:
    assert (format_percent(0.66666), format_percent(-0.0004), format_percent(1.0)) == ("66.7", "0.0", "100.0")
    assert (format_points(0.0321), format_points(-0.0321), format_points(-0.0004), format_points(0.0)) == ("+3.2", "-3.2", "0.0", "0.0")
    assert format_percent_span(-0.1021, 0.0321) == "-10.3 to 3.3"
    assert format_points_span(-0.1021, 0.0321) == "-10.3 to +3.3"
    assert format_points_span(-0.0321, -0.0004) == "-3.3 to 0.0"
    assert format_span(0.12341, 0.12341, 3) == "0.123 to 0.124" and format_span(86.67, 91.11, 0) == "86 to 92"
