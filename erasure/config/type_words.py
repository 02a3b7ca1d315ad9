"""Type hints and values in words, for messages to people who do not read Python's type names. No torch here."""

import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Interval
from typing_extensions import Doc

WORDS: dict[Any, tuple[str, str]] = {  # one value of a type, and the plural without an article
    str: ("text", "texts"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("True or False", "True or False"),
    Path: ("a path", "paths"),
    NoneType: ("None", "None"),
    dict: ("a mapping", "mappings"),
    Mapping: ("a mapping", "mappings"),
    Callable: ("a function", "functions"),
}
PRINTED_TYPES = (str, int, float, NoneType, list, tuple, dict, set, Path, type)  # others have long or useless representations
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 200


def describe_type(hint: Any) -> str:
    """Return which values a type hint allows, such as "a list of texts"; the words of a `typing_extensions.Doc` in it come first."""
    if get_origin(hint) is Annotated:
        documented = [extra.documentation for extra in get_args(hint)[1:] if isinstance(extra, Doc)]
        return documented[0] if documented else describe_type(get_args(hint)[0]) + _describe_range(get_args(hint)[1:])
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return _describe_union(list(_members_of(hint)))
    if origin is Literal:
        return f"one of {', '.join(map(repr, get_args(hint)))}"
    if _is_list(hint):
        members = [member for member in get_args(hint) if member is not ...]
        return f"a list of {WORDS[members[0]][1]}" if members and members[0] in WORDS else "a list"
    known = origin or hint
    return WORDS[known][0] if known in WORDS else _with_article(getattr(known, "__name__", str(known)))


def describe_value(value: object) -> str:
    """Return a value as Python shows it, shortened; of other types than Python's own only the type: "a StableDiffusionPipeline"."""
    if not isinstance(value, PRINTED_TYPES):
        return _with_article(type(value).__name__)
    try:
        return SHORT.repr(value)
    except ValueError:  # Python refuses to print whole numbers of more than 4,300 digits
        return "a number of too many digits"


def _describe_range(marks: Sequence[object]) -> str:
    """Return " from 1 to 100" or " above 0" for a range among the marks of a type hint, and nothing otherwise."""
    for mark in (mark for mark in marks if isinstance(mark, Interval)):
        if mark.gt is not None:
            return f" above {mark.gt:,}"
        if mark.ge is not None and mark.le is not None:
            return f" from {mark.ge:,} to {mark.le:,}"
    return ""


def _describe_union(members: list[Any]) -> str:
    """Return the alternatives of a union; text is not named beside a path, which may be given as text."""
    single = [member for member in members if not _is_list(member) and not (member is str and Path in members)]
    words = [describe_type(member) for member in single]
    for member in members:
        if _is_list(member):
            words.append(describe_type(member) if len(single) == 1 else "a list of these")
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _members_of(hint: Any) -> Iterator[Any]:
    """Yield the alternatives of a union, those of unions within it too."""
    for member in get_args(hint):
        if get_origin(member) in (Union, UnionType):
            yield from _members_of(member)
        else:
            yield member


def _is_list(hint: Any) -> bool:
    return get_origin(hint) in (list, tuple, Sequence)


def _with_article(name: str) -> str:
    return f"{'an' if name[:1] in 'AEIOUaeio' else 'a'} {name}"
