"""Check values of a YAML or JSON file against type hints with pydantic, and report its errors in one line. No torch here."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, NotRequired, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict, is_typeddict  # pydantic takes typing's own from Python 3.12 on

from erasure.config.type_words import WORDS, describe_type
from erasure.errors import UserError, unknown_value_error

T = TypeVar("T")
MAX_LISTED_ERRORS, MAX_VALUE_CHARS = 20, 200  # errors that are listed; characters of a value that are quoted
YAML_TYPES: dict[Any, Any] = {  # the type in a file for the type of a field
    Path: str,
    int: Annotated[int, Field(ge=-(2**31), lt=2**31)],
    float: Annotated[float, Field(allow_inf_nan=False)],
}
UNKNOWN_KEY_ERRORS = ("extra_forbidden", "invalid_key", "unexpected_keyword_argument")  # pydantic's names for an unknown key
INNER_PARTS = ("[key]", "[filled]", "[empty]")  # parts of pydantic's locations that are not in the file: of keys, and of tags
JSON_WORDS = {"an object": "a mapping", "a valid dictionary": "a mapping", "a valid array": "a list"}  # one word in files of either format
TYPE_ERRORS = {  # its names for a value of another type, and what is allowed
    **dict.fromkeys(("int_type", "int_from_float"), WORDS[int][0]),
    **dict.fromkeys(("list_type", "tuple_type", "sequence_str", "is_instance_of"), "a list"),
    "float_type": WORDS[float][0],
    "string_type": WORDS[str][0],
    "bool_type": WORDS[bool][0],
    "dict_type": WORDS[dict][0],
}


def check_mapping(values: dict[Any, Any], schema: Any, location: str) -> None:
    """Check that a mapping fits a TypedDict.

    Args:
        location: the file or place, for messages.

    Raises:
        UserError: unknown or missing keys, values of another type or out of range; the message has the path to every such value, what is
            allowed and what is there.
    """
    if errors := list_errors(values, schema, location):
        raise combine_errors(errors, location)


def list_errors(values: dict[Any, Any], schema: Any, location: str) -> list[str]:
    """Return what does not fit a TypedDict, one sentence each; empty if everything does."""
    try:
        TypeAdapter(schema).validate_python(values, strict=True, extra="forbid")
    except ValidationError as error:
        return describe_errors(error, schema, location)
    return []


def describe_errors(error: ValidationError, schema: Any, location: str) -> list[str]:
    """Return pydantic's errors about a TypedDict or a dataclass, one sentence each."""
    return [_describe_error(detail, schema, location) for detail in _drop_repeated_errors(error)]


def combine_errors(errors: Sequence[str], location: str) -> UserError:
    """Combine all errors of a file into one error with a message of one line; a single one stays as it is."""
    if len(errors) == 1:
        return UserError(errors[0])
    texts = [
        text.removeprefix(f"{location}: ").replace(f" in {location}", "").removeprefix(f"{location} ").rstrip(".")
        for text in errors[:MAX_LISTED_ERRORS]
    ]
    more = f"; and {len(errors) - MAX_LISTED_ERRORS:,} more" if len(errors) > MAX_LISTED_ERRORS else ""
    return UserError(f"{location} has {len(errors):,} faults: {'; '.join(f'({i}) {text}' for i, text in enumerate(texts, 1))}{more}.")


def build_dataclass(cls: type[T], values: dict[str, Any], location: str) -> T:
    """Build a dataclass from the values of a file; a Path is text there. Numbers must be finite, whole ones within 32 bits.

    Raises:
        UserError: as `check_mapping`, and whatever the class itself raises.
    """
    hints = get_type_hints(cls, include_extras=True)
    schema: dict[str, Any] = {}
    for f in fields(cls):  # type: ignore[arg-type]  # a dataclass
        hint = YAML_TYPES.get(hints[f.name], hints[f.name])
        schema[f.name] = hint if f.default is f.default_factory is MISSING else NotRequired[hint]
    check_mapping(values, TypedDict(cls.__name__, schema), location)  # type: ignore[operator]  # fields known at run time
    return cls(**{name: Path(value) if hints[name] is Path else value for name, value in values.items()})


def _drop_repeated_errors(error: ValidationError) -> list[Any]:
    """Return pydantic's errors without those for missing keys that are present under a misspelled name."""
    unknown_keys: dict[Any, list[str]] = {}
    for detail in error.errors():
        if detail["type"] in UNKNOWN_KEY_ERRORS:
            *parents, key = [part for part in detail["loc"] if part not in INNER_PARTS]
            unknown_keys.setdefault(tuple(parents), []).append(str(key))
    details = []
    for detail in sorted(error.errors(), key=lambda e: e["type"] not in UNKNOWN_KEY_ERRORS):  # these first: they explain the others
        *parents, key = [part for part in detail["loc"] if part not in INNER_PARTS] or [""]
        if detail["type"] != "missing" or not difflib.get_close_matches(str(key), unknown_keys.get(tuple(parents), ())):
            details.append(detail)
    return details


def _schema_at(schema: Any, key: str) -> Any:
    """Return the type of a key of a record, a list, a tuple or a mapping; of a union, that of the first member that has the key."""
    if _is_record(schema):
        return get_type_hints(schema)[key]
    if get_origin(schema) in (Union, UnionType):
        choices = [choice for choice in get_args(schema) if choice is not NoneType]
        return next((_schema_at(choice, key) for choice in choices if not _is_record(choice) or key in get_type_hints(choice)), schema)
    return [part for part in get_args(schema) if part is not Ellipsis][-1]


def _keys_of(schema: Any) -> list[str]:
    """Return the keys of a record, or of all members of a union."""
    return [key for part in (schema, *get_args(schema)) if _is_record(part) for key in get_type_hints(part)]


def _is_record(schema: Any) -> bool:
    """Return whether a type is a TypedDict or a dataclass, whose keys have types of their own."""
    return is_typeddict(schema) or is_dataclass(schema)


def _describe_error(detail: Any, schema: Any, location: str) -> str:
    """Return one of pydantic's errors as a sentence."""
    *parents, key = [str(part) for part in detail["loc"] if part not in INNER_PARTS] or [""]
    container = f"{'.'.join(parents)} in {location}" if parents else location
    key_path = ".".join([*parents, key])
    if detail["type"] in UNKNOWN_KEY_ERRORS:
        for part in parents:
            schema = _schema_at(schema, part)
        return str(unknown_value_error(f"key in {container}", key, _keys_of(schema)))
    if detail["type"] == "missing":
        return f"{container} lacks {key}."
    if detail["type"] == "literal_error":
        return str(unknown_value_error(f"{key_path} in {location}", detail["input"], re.findall("'(.*?)'", detail["ctx"]["expected"])))
    allowed = _allowed_type(detail, schema) or re.sub(r"^(\w+ should|Value error, must)", "must", detail["msg"])
    for word, plain_word in JSON_WORDS.items():
        allowed = allowed.replace(word, plain_word)
    value_text = repr(detail["input"])
    if len(value_text) > MAX_VALUE_CHARS:
        value_text = f"{value_text[:MAX_VALUE_CHARS]}..."
    return f"{f'{location}: {key_path}' if key_path else location} {allowed}, got {value_text}."


def _allowed_type(detail: Any, schema: Any) -> str:
    """Return which type pydantic asks for, of lists with the type of their values where the schema tells; empty for other errors."""
    words = TYPE_ERRORS.get(detail["type"], "")
    if words == "a list":
        try:
            for part in detail["loc"]:
                schema = _schema_at(schema, str(part))
        except (KeyError, IndexError):  # a member of a union, which pydantic names by its type
            return "must be a list"
        words = described if (described := describe_type(schema)).startswith(words) else words
    return f"must be {words}" if words else ""
