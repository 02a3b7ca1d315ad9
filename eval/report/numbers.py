"""How numbers are printed, everywhere: estimates to the nearest, bounds of intervals outward, so that none promises too much. No torch."""

from math import ceil, floor


def format_percent(share: float) -> str:
    """An estimate in percent, to the nearest tenth."""
    return f"{round(100 * share, 7):z.1f}"


def format_points(share: float) -> str:
    """A difference in points, to the nearest tenth, with its sign."""
    return format_signed(round(round(100 * share, 7), 1), 1)


def round_down(value: float, digits: int = 1) -> float:
    """The lower bound of an interval at so many decimals; 30.000000000000004 is 30."""
    return floor(_in_last_digits(value, digits)) / 10**digits


def round_up(value: float, digits: int = 1) -> float:
    """The upper bound of an interval."""
    return ceil(_in_last_digits(value, digits)) / 10**digits


def format_span(low: float, high: float, digits: int = 1) -> str:
    """Both bounds, of values as they are."""
    return f"{round_down(low, digits):z.{digits}f} to {round_up(high, digits):z.{digits}f}"


def format_percent_span(low: float, high: float) -> str:
    """Both bounds of a share, in percent."""
    return format_span(100 * low, 100 * high)


def format_points_span(low: float, high: float) -> str:
    """Both bounds of a difference of shares, in points with their signs."""
    return f"{format_signed(round_down(100 * low), 1)} to {format_signed(round_up(100 * high), 1)}"


def format_signed(value: float, digits: int) -> str:
    """With a sign where it is not 0."""
    return f"{value:+.{digits}f}" if value else f"{0:.{digits}f}"


def _in_last_digits(value: float, digits: int) -> float:
    """In units of the last digit, without the noise of floats."""
    return round(value * 10**digits, 7)
