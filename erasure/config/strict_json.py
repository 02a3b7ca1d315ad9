"""JSON as edits are written, read strictly: no key twice, no NaN or Infinity, bounded in size and depth. No torch here."""

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from erasure.errors import UserError

BYTES, DEPTH, LARGEST, LETTERS = 32 * 2**20, 20, 2**64, 100_000


def read_strict_json(path: Path) -> Any:
    """What a JSON file says.

    Raises:
        UserError: an unreadable or too large file, invalid JSON or UTF-8, a duplicated key, a number that is not finite or not below
            2^64 in size, more than 20 levels, a string of more than 100,000 characters.
    """
    try:
        if (size := path.stat().st_size) > BYTES:
            raise UserError(f"{path} has {size:,} bytes; at most {BYTES:,} are read.")
        text = path.read_bytes().decode("utf-8")
        found = json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_finite)
        _bounded(found)
    except UserError:
        raise
    except RecursionError as error:
        raise UserError(f"{path} cannot be read as JSON (it is nested more than {DEPTH} levels deep).") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({str(error)[:200]}).") from error
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)[:80]!r} is duplicated")
    return found


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:20]} is too large")
    return value


def _bounded(value: Any, depth: int = 0) -> None:
    if depth > DEPTH:
        raise ValueError(f"it is nested more than {DEPTH} levels deep")
    if isinstance(value, str):
        if len(value) > LETTERS:
            raise ValueError(f"a string of {len(value):,} characters, at most {LETTERS:,} are allowed")
        value.encode()  # half of a surrogate pair cannot be written again
    elif isinstance(value, int) and not -LARGEST < value < LARGEST:
        raise ValueError(f"a whole number of {len(str(value))} digits, at most {len(str(LARGEST))} are allowed")
    elif isinstance(value, list):
        for part in value:
            _bounded(part, depth + 1)
    elif isinstance(value, dict):
        for key, part in value.items():
            _bounded(key, depth + 1)
            _bounded(part, depth + 1)
