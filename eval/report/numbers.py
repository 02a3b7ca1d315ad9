"""How numbers are printed: estimates to the nearest, bounds of intervals outward, so that no interval looks too narrow. No torch."""

from math import ceil, floor


def format_percent(share: float) -> str:
    """Format an estimate in percent, to the nearest tenth."""
    return f"{round(100 * share, 7):z.1f}"


def format_points(share: float) -> str:
    """Format a difference in points, to the nearest tenth, with its sign."""
    return format_signed(round(round(100 * share, 7), 1), 1)


def round_down(value: float, digits: int = 1) -> float:
    """Round the lower bound of an interval down to so many decimals; 30.000000000000004 is 30."""
    return floor(_in_last_digits(value, digits)) / 10.0**digits


def round_up(value: float, digits: int = 1) -> float:
    """Round the upper bound of an interval up to so many decimals."""
    return ceil(_in_last_digits(value, digits)) / 10.0**digits


def format_span(low: float, high: float, digits: int = 1) -> str:
    """Format both bounds of values as they are."""
    return f"{round_down(low, digits):z.{digits}f} to {round_up(high, digits):z.{digits}f}"


def format_percent_span(low: float, high: float) -> str:
    """Format both bounds of a share, in percent."""
    return format_span(100 * low, 100 * high)


def format_points_span(low: float, high: float) -> str:
    """Format both bounds of a difference of shares, in points with their signs."""
    return f"{format_signed(round_down(100 * low), 1)} to {format_signed(round_up(100 * high), 1)}"


def format_signed(value: float, digits: int) -> str:
    """Format a number with its sign unless it is 0."""
    return f"{value:+.{digits}f}" if value else f"{0:.{digits}f}"


def _in_last_digits(value: float, digits: int) -> float:
    """Convert to units of the last digit, without floating-point noise."""
    return round(value * 10.0**digits, 7)
