"""Describe the fields of a class for a reader: name, type, default, and the comment behind it."""

import ast
import inspect
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import annotated_types

ROOT = Path(__file__).parent.parent.parent
PLAIN_TYPES = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path", dict: "mapping", Any: "any value"}


@dataclass(frozen=True)
class FieldRow:
    """One field of a class."""

    name: str
    type: str
    default: str  # as a reader writes it; empty: required
    meaning: str


def describe_fields(cls: type, left_out: Collection[str] = ()) -> list[FieldRow]:
    """Return a row for every field of a dataclass, in order, but for those left out.

    Raises:
        ValueError: a field has no comment.
    """
    comments, hints = comments_of(cls), get_type_hints(cls, include_extras=True)
    rows = []
    for field in (field for field in fields(cls) if field.name not in left_out):
        meaning = argument_help(hints[field.name]) or comments.get(field.name, "")
        if not meaning:
            raise ValueError(f"{cls.__module__}.{cls.__name__}.{field.name} has no comment that says what it is")
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        rows.append(FieldRow(field.name, describe_type(hints[field.name]), "" if default is MISSING else describe_value(default), meaning))
    return rows


def describe_type(annotation: Any) -> str:
    """Return a type in words, such as "1 to 1,000" for a bounded int or "`a`, `b`" for a Literal."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return describe_bounds(arguments[1:]) or describe_type(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(describe_type(part) for part in arguments if part is not NoneType))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"mapping of {describe_type(arguments[0])} to {describe_type(arguments[1])}"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"any of {describe_type(arguments[0])}" if get_origin(arguments[0]) is Literal else f"list of {describe_type(arguments[0])}s"
    return PLAIN_TYPES.get(annotation, f"`{getattr(annotation, '__name__', annotation)}`")


def describe_bounds(metadata: Sequence[Any]) -> str:
    """Return the range of a pydantic Field in words; empty where it has none."""
    constraints = [constraint for part in metadata for constraint in getattr(part, "metadata", [part])]
    low = next((c.ge for c in constraints if isinstance(c, annotated_types.Ge)), None)
    high = next((c.le for c in constraints if isinstance(c, annotated_types.Le)), None)
    below = next((c.lt for c in constraints if isinstance(c, annotated_types.Lt)), None)
    if low is None:
        return ""
    if high is None and below is None:
        return f"at least {low}"
    return f"{low} to {high:,}" if high is not None else f"{low} to 2^63 - 1" if below == 2**63 else f"{low} to below {below:,}"


def describe_value(value: Any) -> str:
    """Return a default as a reader writes it."""
    if value is None or value == "" or value == ():
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"`{value:g}`"
    if isinstance(value, Mapping):
        return f"{len(value)} entries"
    if isinstance(value, list | tuple):
        return ", ".join(f"`{part}`" for part in value) if len(value) <= 6 else f"{len(value)} entries"
    return f"`{relative_to_here(str(value))}`"


def relative_to_here(text: str) -> str:
    """Return a default without the path of this checkout."""
    return text.replace(f"{ROOT}/", "")


def argument_help(annotation: Any) -> str:
    """Return the help that an annotation brings along (tyro.conf.arg); empty where it brings none."""
    metadata = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    return next((str(part.help) for part in metadata if getattr(part, "help", None)), "")


def comments_of(cls: type) -> dict[str, str]:
    """Return the comment in the lines of every annotated name of a class and its bases."""
    comments: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        try:
            source = textwrap.dedent(inspect.getsource(base))
        except (OSError, TypeError):
            continue
        lines = source.splitlines()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                own_lines = lines[node.lineno - 1 : node.end_lineno]
                comments[node.target.id] = " ".join(line.partition("  # ")[2].strip() for line in own_lines).strip()
    return comments


def format_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *([escape_cell(cell) for cell in row] for row in rows))]


def escape_cell(text: str) -> str:
    """Return text for a cell of a table; what is in backticks stays as it is, but for the bar that would end the cell."""
    parts = text.replace("|", "\\|").split("`")
    return "`".join(part if i % 2 else part.replace("<", "&lt;") for i, part in enumerate(parts))
