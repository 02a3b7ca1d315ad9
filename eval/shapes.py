"""Values of a YAML file held against type hints: the one place that says what is wrong with them. No torch here.

A hint is text, a number, Path (written as text), bool, None or Any; a Literal, a union, a TypedDict; a list, a pair or a mapping of hints;
or one of these in Annotated, with a Limit that says what else must hold.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, TypeVar, Union, get_args, get_origin, get_type_hints, is_typeddict

from erasure.errors import UserError, unknown

T = TypeVar("T")
PLAIN: dict[Any, tuple[tuple[type, ...], str]] = {  # hint -> what YAML gives for it, in types and in words
    str: ((str,), "text"),
    Path: ((str, Path), "a path"),
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    NoneType: ((NoneType,), "nothing"),
    **dict.fromkeys((dict, Mapping), ((Mapping,), "a mapping")),
    **dict.fromkeys((list, tuple, Sequence), ((list, tuple), "a list")),
}


class Limit(NamedTuple):
    """What a value must be beyond its type."""

    holds: Callable[[Any], object]
    words: str  # to follow "must be"


def check(value: Any, hint: Any, place: str, at: str = "", words: str = "") -> None:
    """Complain about a value that does not fit its hint.

    Args:
        place: the file that holds it, or what else does.
        at: the keys that lead to it, such as "tiers.full".
        words: what it must be, if those of the hint do not say it all.

    Raises:
        UserError: it names the place, the keys, what is allowed and what is there.
    """
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind is Annotated:
        check(value, parts[0], place, at, parts[1].words)
        if not parts[1].holds(value):
            raise _wrong(value, parts[1].words, place, at)
    elif kind is NotRequired:
        check(value, parts[0], place, at)
    elif kind is Literal:
        if value not in parts:
            raise unknown(f"{at} in {place}", value, parts)
    elif kind in (UnionType, Union):
        if not any(_fits(value, part) for part in parts):
            raise _wrong(value, " or ".join(PLAIN[get_origin(part) or part][1] for part in parts), place, at)
    elif kind is not Any:
        types, said = PLAIN[dict if is_typeddict(kind) else kind]
        if not isinstance(value, types) or isinstance(value, bool) != (kind is bool):
            raise _wrong(value, words or said, place, at)
        for part, its_hint, its_place in _inside(value, kind, parts, place, at):
            check(part, its_hint, place, its_place)


def _inside(value: Any, kind: Any, parts: Sequence[Any], place: str, at: str) -> Iterator[tuple[Any, Any, str]]:
    """What a mapping or a list holds, each with its hint and the keys that lead to it."""
    if is_typeddict(kind):
        hints = get_type_hints(kind, include_extras=True)
        only(value, hints, kind.__required_keys__, f"{at} in {place}" if at else place)
        yield from ((part, hints[key], f"{at}.{key}" if at else key) for key, part in value.items())
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield key, parts[0], f"a key of {at}"
            yield part, parts[1], f"{at}.{key}"
    elif kind is tuple:
        if len(value) != len(parts):
            raise _wrong(value, f"a list of {len(parts)}", place, at)
        yield from ((part, hint, f"each of {at}") for part, hint in zip(value, parts, strict=True))
    elif isinstance(value, list | tuple):
        yield from ((part, parts[0], f"each of {at}") for part in value)


def only(given: Mapping[Any, Any], known: Collection[str], needed: Collection[str], place: str) -> None:
    """Complain about keys that nobody knows, the nearest is named, and about those that are not there."""
    for key in given:
        if key not in known:
            raise unknown(f"key in {place}", str(key), known)
    if missing := sorted(set(needed) - given.keys()):
        raise UserError(f"{place} lacks {', '.join(missing)}.")


def built(cls: type[T], given: Mapping[str, Any], place: str) -> T:
    """A dataclass with the fields that a file gives it.

    Raises:
        UserError: fields that it does not have, lacks, or has with values of another type; and what the class itself complains about.
    """
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]  # a dataclass
    needed = [name for name, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    only(given, known, needed, place)
    hints = get_type_hints(cls)
    for name, value in given.items():
        check(value, hints[name], place, name)
    return cls(**{name: Path(value) if hints[name] is Path else value for name, value in given.items()})


def _fits(value: Any, hint: Any) -> bool:
    try:
        check(value, hint, "")
    except UserError:
        return False
    return True


def _wrong(value: Any, words: str, place: str, at: str) -> UserError:
    return UserError(f"{place}: {at} must be {words}, got {value!r}.")
