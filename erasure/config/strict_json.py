"""A strict JSON reader: no duplicated keys, no NaN or Infinity, limits on size and depth. No torch here."""

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from erasure.errors import UserError, unreadable_error

MAX_BYTES, MAX_DEPTH, NUMBER_LIMIT, MAX_STRING_CHARS = 32 * 2**20, 20, 2**64, 100_000


def read_strict_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        UserError: an unreadable or too large file, invalid JSON or UTF-8, a duplicated key, a number that is not finite or whose
            absolute value is not below 2^64, more than 20 levels, a string of more than 100,000 characters.
    """
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise UserError(f"{path} has {size:,} bytes; at most {MAX_BYTES:,} are read.")
        text = path.read_bytes().decode("utf-8")
        document = json.loads(text, object_pairs_hook=_parse_object, parse_constant=_reject_constant, parse_float=_parse_finite)
        _check_limits(document)
    except UserError:
        raise
    except RecursionError as error:
        raise UserError(f"{path} cannot be read as JSON: it is nested more than {MAX_DEPTH} levels deep.") from error
    except (OSError, ValueError) as error:
        raise unreadable_error(path, "JSON", error) from error
    return document


def _parse_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)[:80]!r} is duplicated")
    return mapping


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _parse_finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:20]} is too large")
    return value


def _check_limits(value: Any, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, str):
        if len(value) > MAX_STRING_CHARS:
            raise ValueError(f"a string of {len(value):,} characters, at most {MAX_STRING_CHARS:,} are allowed")
        value.encode()  # raises for half of a surrogate pair, which could not be written again
    elif isinstance(value, int) and not -NUMBER_LIMIT < value < NUMBER_LIMIT:
        raise ValueError(f"a whole number of {len(str(value))} digits, at most {len(str(NUMBER_LIMIT))} are allowed")
    elif isinstance(value, list):
        for item in value:
            _check_limits(item, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_limits(key, depth + 1)
            _check_limits(item, depth + 1)
