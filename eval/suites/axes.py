"""The two axes of a grid, and of every concept: style and object. Imports no torch."""

from typing import Literal

Axis = Literal["style", "object"]


def cross_axis(axis: Axis) -> Axis:
    """Return the other axis."""
    return "object" if axis == "style" else "style"
