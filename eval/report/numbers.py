"""How numbers are printed, everywhere: estimates to the nearest, bounds of intervals outward, so that none promises too much. No torch."""

from math import ceil, floor


def percent(share: float) -> str:
    """An estimate in percent, to the nearest tenth."""
    return f"{round(100 * share, 7):z.1f}"


def points(share: float) -> str:
    """A difference in points, to the nearest tenth, with its sign."""
    return signed(round(round(100 * share, 7), 1), 1)


def down(value: float, digits: int = 1) -> float:
    """The lower bound of an interval at so many decimals; 30.000000000000004 is 30."""
    return floor(_units(value, digits)) / 10**digits


def up(value: float, digits: int = 1) -> float:
    """The upper bound of an interval."""
    return ceil(_units(value, digits)) / 10**digits


def span(low: float, high: float, digits: int = 1) -> str:
    """Both bounds, of values as they are."""
    return f"{down(low, digits):z.{digits}f} to {up(high, digits):z.{digits}f}"


def percent_span(low: float, high: float) -> str:
    """Both bounds of a share, in percent."""
    return span(100 * low, 100 * high)


def points_span(low: float, high: float) -> str:
    """Both bounds of a difference of shares, in points with their signs."""
    return f"{signed(down(100 * low), 1)} to {signed(up(100 * high), 1)}"


def signed(value: float, digits: int) -> str:
    """With a sign where it is not 0."""
    return f"{value:+.{digits}f}" if value else f"{0:.{digits}f}"


def _units(value: float, digits: int) -> float:
    """In units of the last digit, without the noise of floats."""
    return round(value * 10**digits, 7)
