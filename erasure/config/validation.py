"""Values of a YAML file held against type hints by pydantic, and its complaints in one line. No torch here."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, NotRequired, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict, is_typeddict  # pydantic takes typing's own from Python 3.12 on

from erasure.errors import UserError, unknown

T = TypeVar("T")
MOST, LONG = 20, 200  # faults that are listed; characters of a value that are quoted
WRITTEN: dict[Any, Any] = {  # how a file says what a class takes
    Path: str,
    int: Annotated[int, Field(ge=-(2**31), lt=2**31)],
    float: Annotated[float, Field(allow_inf_nan=False)],
}
STRANGE = ("extra_forbidden", "invalid_key")  # pydantic's names for a key that nobody knows


def check(given: dict[Any, Any], shape: Any, place: str) -> None:
    """Complain about a mapping that does not fit a TypedDict: keys too many or too few, values of another type or out of range.

    Raises:
        UserError: every fault, with the keys that lead to the value, what is allowed and what is there.
    """
    if found := faults(given, shape, place):
        raise listed(found, place)


def faults(given: dict[Any, Any], shape: Any, place: str) -> list[str]:
    """What does not fit, one sentence each; empty where everything does."""
    try:
        TypeAdapter(shape).validate_python(given, strict=True, extra="forbid")
    except ValidationError as error:
        return [_in_one_line(wrong, shape, place) for wrong in _without_echoes(error)]
    return []


def listed(found: Sequence[str], place: str) -> UserError:
    """One error, in one line, from every fault of a file; a single one is said as it is."""
    if len(found) == 1:
        return UserError(found[0])
    said = [fault.removeprefix(f"{place}: ").replace(f" in {place}", "").removeprefix(f"{place} ").rstrip(".") for fault in found[:MOST]]
    more = f"; and {len(found) - MOST:,} more" if len(found) > MOST else ""
    return UserError(f"{place} has {len(found):,} faults: {'; '.join(f'({i}) {fault}' for i, fault in enumerate(said, 1))}{more}.")


def built(cls: type[T], given: dict[str, Any], place: str) -> T:
    """A dataclass with the fields that a file gives it; a Path is written as text. Numbers are finite, whole ones within 32 bits.

    Raises:
        UserError: as `check`, and what the class itself complains about.
    """
    hints = get_type_hints(cls, include_extras=True)
    shape: dict[str, Any] = {}
    for f in fields(cls):  # type: ignore[arg-type]  # a dataclass
        hint = WRITTEN.get(hints[f.name], hints[f.name])
        shape[f.name] = hint if f.default is f.default_factory is MISSING else NotRequired[hint]
    check(given, TypedDict(cls.__name__, shape), place)  # type: ignore[misc, operator]  # fields known at run time
    return cls(**{name: Path(value) if hints[name] is Path else value for name, value in given.items()})


def _without_echoes(error: ValidationError) -> list[Any]:
    """Its complaints without the missing keys that are there under a misspelt name."""
    strange: dict[Any, list[str]] = {}
    for wrong in error.errors():
        if wrong["type"] in STRANGE:
            *above, key = [part for part in wrong["loc"] if part != "[key]"]
            strange.setdefault(tuple(above), []).append(str(key))
    found = []
    for wrong in sorted(error.errors(), key=lambda e: e["type"] not in STRANGE):  # those first: they explain the others
        *above, key = wrong["loc"]
        if wrong["type"] != "missing" or not difflib.get_close_matches(str(key), strange.get(tuple(above), ())):
            found.append(wrong)
    return found


def _inside(shape: Any, part: str) -> Any:
    """What a TypedDict, a list or a mapping holds at a key; of a choice of several, what the first that has the key holds there."""
    if is_typeddict(shape):
        return get_type_hints(shape)[part]
    if get_origin(shape) in (Union, UnionType):
        choices = [choice for choice in get_args(shape) if choice is not NoneType]
        return next((_inside(choice, part) for choice in choices if not is_typeddict(choice) or part in get_type_hints(choice)), shape)
    return get_args(shape)[-1]


def _keys(shape: Any) -> list[str]:
    """The keys of a TypedDict, or of all of a choice of several."""
    return [key for one in (shape, *get_args(shape)) if is_typeddict(one) for key in get_type_hints(one)]


def _in_one_line(wrong: Any, shape: Any, place: str) -> str:
    *above, key = [str(part) for part in wrong["loc"] if part != "[key]"]
    inside = f"{'.'.join(above)} in {place}" if above else place
    at = ".".join([*above, key])
    if wrong["type"] in STRANGE:
        for part in above:
            shape = _inside(shape, part)
        return str(unknown(f"key in {inside}", key, _keys(shape)))
    if wrong["type"] == "missing":
        return f"{inside} lacks {key}."
    if wrong["type"] == "literal_error":
        return str(unknown(f"{at} in {place}", wrong["input"], re.findall("'(.*?)'", wrong["ctx"]["expected"])))
    # pydantic speaks of Python's Sequence
    allowed = "must be a list" if "Sequence" in wrong["msg"] else re.sub(r"^(\w+ should|Value error, must)", "must", wrong["msg"])
    given = repr(wrong["input"])
    return f"{place}: {at} {allowed}, got {given if len(given) <= LONG else given[:LONG] + '...'}."
