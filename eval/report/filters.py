"""How the templates of the pages print numbers and identities. Imports no torch."""

from collections.abc import Sequence
from typing import Any, Protocol

from eval.report import charts, commands, numbers


class Bounds(Protocol):
    """Anything with the bounds of an interval."""

    @property
    def low(self) -> float: ...

    @property
    def high(self) -> float: ...


def show_percent(share: float) -> str:
    return charts.use_minus_sign(numbers.format_percent(share))


def show_points(share: float) -> str:
    """Format a difference with its sign."""
    return charts.use_minus_sign(numbers.format_points(share))


def show_percent_span(bounds: Bounds) -> str:
    return charts.use_minus_sign(numbers.format_percent_span(bounds.low, bounds.high))


def show_points_span(bounds: Bounds) -> str:
    return charts.use_minus_sign(numbers.format_points_span(bounds.low, bounds.high))


def show_span(bounds: Sequence[float], digits: int) -> str:
    """Format low and high of values as they are."""
    low, high = bounds
    return charts.use_minus_sign(numbers.format_span(low, high, digits))


def to_plain_text(value: Any) -> str:
    """Format a value of a judge's identity for a reader."""
    if isinstance(value, list | tuple):
        return ", ".join(map(to_plain_text, value))
    if isinstance(value, dict):
        return "; ".join(f"{name}: {to_plain_text(part)}" for name, part in value.items())
    return str(value)


FILTERS = {
    "percent": show_percent,
    "points": show_points,
    "percent_span": show_percent_span,
    "points_span": show_points_span,
    "span": show_span,
    "plain_text": to_plain_text,
    "has_placeholders": commands.has_placeholders,
}
