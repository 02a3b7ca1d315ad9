"""Printed numbers: estimates to the nearest, bounds outward, without the noise of floats."""

import pytest

from eval.report.numbers import down, percent, percent_span, points, points_span, span, up


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [(3.21, 3.2, 3.3), (-10.249, -10.3, -10.2), (100 * (0.1 + 0.2), 30, 30), (100 * 0.29, 29, 29), (100 * 0.07, 7, 7), (-0.04, -0.1, 0)],
)
def test_bounds_go_outward_and_whole_tenths_stay(value: float, low: float, high: float) -> None:
    assert (down(value), up(value)) == (low, high)


def test_every_tenth_stays_what_it_is() -> None:
    for tenths in range(-1000, 1001):
        share = tenths / 1000
        assert f"{down(100 * share):.1f}" == f"{up(100 * share):.1f}" or share == 0
        assert percent_span(share, share).split(" to ") == [percent(share)] * 2
        assert points_span(share, share).split(" to ") == [points(share)] * 2


def test_words_of_numbers() -> None:
    assert (percent(0.66666), percent(-0.0004), percent(1.0)) == ("66.7", "0.0", "100.0")
    assert (points(0.0321), points(-0.0321), points(-0.0004), points(0.0)) == ("+3.2", "-3.2", "0.0", "0.0")
    assert percent_span(-0.1021, 0.0321) == "-10.3 to 3.3"
    assert points_span(-0.1021, 0.0321) == "-10.3 to +3.3"
    assert points_span(-0.0321, -0.0004) == "-3.3 to 0.0"
    assert span(0.12341, 0.12341, 3) == "0.123 to 0.124" and span(86.67, 91.11, 0) == "86 to 92"
