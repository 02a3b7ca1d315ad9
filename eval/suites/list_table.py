"""A list file as columns and rows: CSV with commas, tabs or semicolons, JSON, JSON lines, or one text per line. Imports no torch."""

import csv
import io
import json
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from erasure.errors import UserError, unknown_value_error

JSON_SUFFIXES, JSON_LINES_SUFFIXES = (".json",), (".jsonl", ".ndjson")
LIST_SUFFIXES = (".csv", ".tsv", ".txt", *JSON_SUFFIXES, *JSON_LINES_SUFFIXES)
DELIMITERS = (",", "\t", ";")  # between columns, in the order in which they are tried on the header
MAX_ROWS, MAX_BYTES = 100_000, 256 * 2**20

Item = TypeVar("Item")


@dataclass(frozen=True)
class ListTable:
    """The contents of a list file."""

    header: tuple[str, ...]  # column names in lower case; empty if the file has no header, and then one column
    rows: tuple[tuple[int, tuple[str, ...]], ...]  # line number (JSON: record number) and cells, one per column
    unit: str = "line"  # "line" or "record", for messages
    notes: tuple[str, ...] = ()  # what was changed or guessed while reading


def read_table(path: Path, data: bytes, prompt_columns: Sequence[str], other_columns: Container[str], column: str = "") -> ListTable:
    """Read a list file whose header names a column of prompts, or that has no header and holds only prompts.

    Args:
        path: for the suffix and for messages.
        data: the bytes of the file.
        prompt_columns: possible names of the column of prompts, in lower case.
        other_columns: names of other columns; one of them in the first line shows that it is a header.
        column: the wanted column, in place of `prompt_columns`.

    Raises:
        UserError: it is not text, is empty or is not valid CSV or JSON; it has no column of prompts or too many rows; or a row differs in
            length from the header. The message names the file, and the line if there is one.
    """
    text, suffix = _decode(path, data), path.suffix.lower()
    if "\0" in text:
        table = read_table(path, text.replace("\0", "").encode(), prompt_columns, other_columns, column)
        return replace(table, notes=(*table.notes, "NUL characters were taken out of it"))
    wanted = (column.lower(),) if column else tuple(prompt_columns)
    if suffix in JSON_SUFFIXES + JSON_LINES_SUFFIXES:
        return _read_json(path, text, wanted, other_columns, suffix in JSON_LINES_SUFFIXES)
    if suffix == ".txt" and not column:
        return ListTable((), tuple((line, (line_text,)) for line, line_text in _numbered_lines(path, text)))
    first_line = next((line for _, line in _numbered_lines(path, text) if line.strip(' "')), None)
    if first_line is None:
        raise UserError(f"{path} is empty.")
    for delimiter in sorted(DELIMITERS, key=lambda delimiter: suffix == ".tsv" and delimiter != "\t"):
        header = tuple(name.lower() for name in _split_line(first_line, delimiter))
        if any(name in header for name in wanted):
            rows = _csv_rows(path, text, delimiter)
            next(rows)
            return ListTable(header, tuple(_check_row_lengths(path, _limit_rows(path, rows), len(header))))
    delimiter = "\t" if suffix == ".tsv" else ","
    if column:
        raise unknown_value_error(f"column in {path}", column[:80], _split_line(first_line, delimiter))
    return _read_without_header(path, text, delimiter, _split_line(first_line, delimiter), prompt_columns, other_columns)


def _decode(path: Path, data: bytes) -> str:
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not text in UTF-8, or in UTF-16 with a byte-order mark ({error.reason}, byte {error.start})."
        ) from error
    if text.count("\0") > len(text) / 10:  # HUB's attacks hold a few; UTF-16 without a byte-order mark has one per letter
        raise UserError(f"{path} is mostly NUL characters; save it as text in UTF-8.")
    return text


def _numbered_lines(path: Path, text: str) -> Iterator[tuple[int, str]]:
    """Yield nonblank lines with their numbers. `splitlines` would also split at characters inside a prompt, such as U+2028."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if len(lines) > MAX_ROWS + 2:
        lines = [line for _, line in _limit_rows(path, enumerate(lines))]
    return ((i, line) for i, line in enumerate(lines, 1) if line.strip())


def _csv_rows(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield the nonblank rows of a CSV with the line they begin on; a quoted text can span several."""
    # strict: otherwise an open quote would swallow the rows behind it
    line, reader = 1, csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if any(map(str.strip, row)):
                yield line, tuple(row)
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {line}: not valid CSV ({error}); double every quote inside a quoted text.") from error


def _split_line(line: str, delimiter: str) -> list[str]:
    """Split a line into cells, even with unbalanced quotes; only its first 10,000 characters, since csv rejects cells of 131,072."""
    return [cell.strip()[:80] for cell in next(csv.reader([line[:10_000]], delimiter=delimiter))]


def _check_row_lengths(path: Path, rows: Iterable[tuple[int, tuple[str, ...]]], width: int) -> Iterator[tuple[int, tuple[str, ...]]]:
    for line, row in rows:
        if len(row) != width:
            raise UserError(
                f"{path}, line {line}: {len(row)} columns, expected {width} as in the header; it starts with {','.join(row)[:40]!r}. "
                "Put a text that holds the separator in double quotes."
            )
        yield line, row


def _read_without_header(
    path: Path, text: str, delimiter: str, first_cells: Sequence[str], prompt_columns: Sequence[str], other_columns: Container[str]
) -> ListTable:
    """Read one prompt per line, quoted as in a CSV or not at all (like HUB's attacks, which their own code reads by lines)."""
    try:
        rows, csv_error = _limit_rows(path, _csv_rows(path, text, delimiter)), ""
    except UserError as error:
        if "not valid CSV" not in str(error):
            raise
        rows, csv_error = [], "it is not valid CSV"
    widths = {len(row) for _, row in rows}
    if widths == {1}:
        return ListTable((), tuple(rows))
    if len(widths) == 1 or any(cell.lower() in other_columns for cell in first_cells):
        raise UserError(
            f"{_no_prompt_column(path, 'columns', first_cells, prompt_columns)}, or save the file as .txt if each line is one prompt."
        )
    reason = csv_error or "its rows have different numbers of columns"
    note = f"no column has a known name of prompts and {reason}, so every line was read as one prompt, including quotes and commas"
    return ListTable((), tuple((line, (line_text.strip(),)) for line, line_text in _numbered_lines(path, text)), notes=(note,))


def _no_prompt_column(path: Path, noun: str, names: Sequence[str], known_names: Iterable[str]) -> str:
    listing = ", ".join(repr(name[:40]) for name in names[:8])
    return f"{path}: none of the {noun} {listing} holds prompts; known names are {', '.join(known_names)}. Name another with FILE#COLUMN"


def _read_json(path: Path, text: str, wanted: Sequence[str], other_columns: Container[str], json_lines: bool) -> ListTable:
    """Read JSON: a list of texts, or of mappings with a column of prompts; as JSON lines, one of either per line."""
    try:
        if json_lines:
            records = [(line, json.loads(line_text)) for line, line_text in _numbered_lines(path, text)]
        else:
            document = json.loads(text)
            records = list(enumerate(document, 1)) if isinstance(document, list) else []
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({str(error)[:100]}).") from error
    records, unit = _limit_rows(path, records), "line" if json_lines else "record"
    if records and all(isinstance(record, str) for _, record in records):
        return ListTable((), tuple((i, (_json_cell(path, unit, i, record, True),)) for i, record in records), unit)
    if not records or not all(isinstance(record, dict) for _, record in records):
        raise UserError(f"{path} must hold a list of texts, or of mappings with a key such as {wanted[0][:80]!r}.")
    keys = tuple(dict.fromkeys(key.lower() for _, record in records for key in record))
    if not any(name in keys for name in wanted):
        raise UserError(f"{_no_prompt_column(path, 'keys', keys, wanted)}.")
    header, rows = tuple(key for key in keys if key in wanted or key in other_columns), []
    for i, record in records:
        lowercase_record = {key.lower(): value for key, value in record.items()}
        rows.append((i, tuple(_json_cell(path, unit, i, lowercase_record.get(name), name in wanted) for name in header)))
    return ListTable(header, tuple(rows), unit)


def _json_cell(path: Path, unit: str, number: int, value: Any, is_prompt: bool) -> str:
    if is_prompt and not isinstance(value, str | None):
        raise UserError(f"{path}, {unit} {number}: a prompt must be text, got {json.dumps(value)[:80]}.")
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"{path}, {unit} {number}: a text holds half a surrogate pair; write it as plain Unicode.")
    return text.replace("\0", "")


def _limit_rows(path: Path, items: Iterable[Item]) -> list[Item]:
    rows = list(islice(items, MAX_ROWS + 2))
    if len(rows) > MAX_ROWS + 1:
        raise UserError(f"{path} has more than {MAX_ROWS:,} rows; give a part of it.")
    return rows
