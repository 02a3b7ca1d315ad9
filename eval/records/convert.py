"""Records <-> JSON: the one way in which a frozen record is written and read. Imports no torch."""

import json
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from erasure.config.validation import combine_errors, describe_errors
from erasure.errors import UserError

T = TypeVar("T")
_adapter_of: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


def to_record(value: Any) -> dict[str, Any]:
    """Return a frozen record as JSON values: a mapping of its fields, without the keys that it leaves out.

    Raises:
        ValueError: a field holds a value of another type than it declares.
    """
    record: dict[str, Any] = _adapter_of(type(value)).dump_python(value, mode="json", warnings="error")
    return record


def parse_record(record: Any, record_type: type[T], location: str) -> T:
    """Return the frozen record that a JSON value holds.

    Args:
        location: the file or place, for messages.

    Raises:
        UserError: unknown or missing keys, values of another type or out of range; one line with the path to every such value, what is
            allowed and what is there.
    """
    try:
        parsed: T = _adapter_of(record_type).validate_json(json.dumps(record), strict=True, extra="forbid")
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":  # half of a surrogate pair, which JSON can escape
            raise UserError(f"{location}: a text in it is not valid Unicode.") from None
        raise combine_errors(describe_errors(error, record_type, location), location) from None
    return parsed
