"""Rows on disk: one JSON line each, in samples.jsonl and attacks.jsonl. Imports no torch."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from erasure.errors import UserError
from erasure.storage.files import DamagedFile, is_path_taken, write_bytes
from eval.records.convert import parse_record, to_record
from eval.records.rows import AttackRow, AttackRows, SampleRow, SampleRows

MADE_BY_EARLIER_VERSION = "{} was made by an earlier version of this project; audit again with --fresh."


def write_rows(path: Path, rows: Iterable[SampleRow | AttackRow]) -> None:
    """Write rows to a file, one a line."""
    write_bytes(path, "".join(json.dumps(to_record(row), sort_keys=True) + "\n" for row in rows).encode())


def read_sample_rows(path: Path) -> tuple[SampleRow, ...]:
    """Read the rows of samples.jsonl; an empty tuple without a file.

    Raises:
        UserError: a row of an earlier version, which lacks the role of a prompt, or one that no audit wrote.
        DamagedFile: unreadable, or a line is not valid JSON.
    """
    rows = _read_lines(path)
    if any(isinstance(row, dict) and "role" not in row for row in rows):
        raise UserError(MADE_BY_EARLIER_VERSION.format(path.parent))
    return parse_record({"rows": rows}, SampleRows, str(path)).rows


def read_attack_rows(path: Path) -> tuple[AttackRow, ...]:
    """Read the rows of attacks.jsonl; an empty tuple without a file.

    Raises:
        UserError: a row that no attack wrote.
        DamagedFile: unreadable, or a line is not valid JSON.
    """
    return parse_record({"rows": _read_lines(path)}, AttackRows, str(path)).rows


def _read_lines(path: Path) -> list[Any]:
    if not is_path_taken(path):
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedFile(f"{path} is damaged ({error}); the same audit makes it again.") from error
