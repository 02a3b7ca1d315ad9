"""A list file as columns and rows: CSV with commas, tabs or semicolons, JSON, JSON lines, or one text a line. No torch here."""

import csv
import io
import json
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from erasure.errors import UserError, unknown

JSON, LINES = (".json",), (".jsonl", ".ndjson")
FORMATS = (".csv", ".tsv", ".txt", *JSON, *LINES)
MARKS = (",", "\t", ";")  # between columns, in the order in which a header is tried
ROWS, BYTES = 100_000, 256 * 2**20

Item = TypeVar("Item")


@dataclass(frozen=True)
class Table:
    """What a list file holds."""

    header: tuple[str, ...]  # names of the columns in lower case; empty where the file names none, which then has one column
    rows: tuple[tuple[int, tuple[str, ...]], ...]  # line (or record of JSON) and cells, as many as the file has columns
    unit: str = "line"  # what a row is counted in, for messages
    notes: tuple[str, ...] = ()  # what was changed or guessed in reading it


def read_table(path: Path, data: bytes, texts: Sequence[str], others: Container[str], column: str = "") -> Table:
    """The rows of a list file whose header names a column of texts, or of one that has no header and holds texts alone.

    Args:
        data: the bytes of the file.
        texts: names that a column of texts may have, in lower case.
        others: names of other columns that only a header has.
        column: the column that is wanted in place of `texts`.

    Raises:
        UserError: not text, no column of texts, a row of another length than the header, too many rows; it names file and line.
    """
    text, suffix = _decoded(path, data), path.suffix.lower()
    if "\0" in text:
        bare = read_table(path, text.replace("\0", "").encode(), texts, others, column)
        return replace(bare, notes=(*bare.notes, "NUL characters were taken out of it"))
    wanted = (column.lower(),) if column else tuple(texts)
    if suffix in JSON + LINES:
        return _records(path, text, wanted, others, suffix in LINES)
    if suffix == ".txt" and not column:
        return Table((), tuple((line, (words,)) for line, words in _lines(path, text)))
    first = next((line for _, line in _lines(path, text) if line.strip(' "')), None)
    if first is None:
        raise UserError(f"{path} is empty.")
    for mark in sorted(MARKS, key=lambda mark: suffix == ".tsv" and mark != "\t"):
        header = tuple(name.lower() for name in _names(first, mark))
        if any(name in header for name in wanted):
            rows = _cut(path, text, mark)
            next(rows)
            return Table(header, tuple(_even(path, _limited(path, rows), len(header))))
    mark = "\t" if suffix == ".tsv" else ","
    if column:
        raise unknown(f"column in {path}", column[:80], _names(first, mark))
    return _headless(path, text, mark, _names(first, mark), texts, others)


def _decoded(path: Path, data: bytes) -> str:
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not text in UTF-8, or in UTF-16 with a byte-order mark ({error.reason}, byte {error.start})."
        ) from error
    if text.count("\0") > len(text) / 10:  # HUB's attacks hold a few; UTF-16 without its mark has one for every letter
        raise UserError(f"{path} is mostly NUL characters; save it as text in UTF-8.")
    return text


def _lines(path: Path, text: str) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers. `splitlines` would also cut at separators inside a text, such as U+2028."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if len(lines) > ROWS + 2:
        lines = [line for _, line in _limited(path, enumerate(lines))]
    return ((i, line) for i, line in enumerate(lines, 1) if line.strip())


def _cut(path: Path, text: str, mark: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Rows of a CSV that are not blank, with the lines they begin in; a quoted text can have several."""
    line, reader = 1, csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)  # strict: an open quote would swallow rows
    try:
        for row in reader:
            if any(map(str.strip, row)):
                yield line, tuple(row)
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {line}: not valid CSV ({error}); write a quote inside a quoted text twice.") from error


def _names(line: str, mark: str) -> list[str]:
    """The cells of a line, whatever its quotes are; no header is longer than 10,000 letters, and csv refuses cells of 131,072."""
    return [cell.strip()[:80] for cell in next(csv.reader([line[:10_000]], delimiter=mark))]


def _even(path: Path, rows: Iterable[tuple[int, tuple[str, ...]]], width: int) -> Iterator[tuple[int, tuple[str, ...]]]:
    for line, row in rows:
        if len(row) != width:
            raise UserError(
                f"{path}, line {line}: {len(row)} columns, expected {width} as in the header; it begins with {','.join(row)[:40]!r}. "
                "Put a text that holds the separator in double quotes."
            )
        yield line, row


def _headless(path: Path, text: str, mark: str, first: Sequence[str], texts: Sequence[str], others: Container[str]) -> Table:
    """One text a line, quoted as in a CSV or not at all (as HUB's attacks are, which their own code reads by lines)."""
    try:
        rows, broken = _limited(path, _cut(path, text, mark)), ""
    except UserError as error:
        if "not valid CSV" not in str(error):
            raise
        rows, broken = [], "it is not valid CSV"
    widths = {len(row) for _, row in rows}
    if widths == {1}:
        return Table((), tuple(rows))
    if len(widths) == 1 or any(cell.lower() in others for cell in first):
        raise UserError(f"{_unnamed(path, 'columns', first, texts)}, or save the file as .txt if each line is one prompt.")
    why = broken or "its rows have different numbers of columns"
    note = f"no column is named as one of prompts and {why}, so every line was read as one prompt, quotes and commas included"
    return Table((), tuple((line, (words.strip(),)) for line, words in _lines(path, text)), notes=(note,))


def _unnamed(path: Path, what: str, names: Sequence[str], known: Iterable[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in names[:8])
    return f"{path}: none of the {what} {shown} holds prompts; known names are {', '.join(known)}. Name another with FILE#COLUMN"


def _records(path: Path, text: str, wanted: Sequence[str], others: Container[str], by_line: bool) -> Table:
    """JSON: a list of texts, or of mappings that name their columns; JSON lines: one of either a line."""
    try:
        if by_line:
            found = [(line, json.loads(words)) for line, words in _lines(path, text)]
        else:
            whole = json.loads(text)
            found = list(enumerate(whole, 1)) if isinstance(whole, list) else []
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({str(error)[:100]}).") from error
    found, unit = _limited(path, found), "line" if by_line else "record"
    if found and all(isinstance(record, str) for _, record in found):
        return Table((), tuple((i, (_cell(path, unit, i, record, True),)) for i, record in found), unit)
    if not found or not all(isinstance(record, dict) for _, record in found):
        raise UserError(f"{path} must hold a list of texts, or of mappings with a key such as {wanted[0][:80]!r}.")
    keys = tuple(dict.fromkeys(key.lower() for _, record in found for key in record))
    if not any(name in keys for name in wanted):
        raise UserError(f"{_unnamed(path, 'keys', keys, wanted)}.")
    header, rows = tuple(key for key in keys if key in wanted or key in others), []
    for i, record in found:
        known = {key.lower(): value for key, value in record.items()}
        rows.append((i, tuple(_cell(path, unit, i, known.get(name), name in wanted) for name in header)))
    return Table(header, tuple(rows), unit)


def _cell(path: Path, unit: str, at: int, value: Any, is_prompt: bool) -> str:
    if is_prompt and not isinstance(value, str | None):
        raise UserError(f"{path}, {unit} {at}: a prompt must be text, got {json.dumps(value)[:80]}.")
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value)
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UserError(f"{path}, {unit} {at}: a text holds half a surrogate pair; write it as plain Unicode.")
    return text.replace("\0", "")


def _limited(path: Path, items: Iterable[Item]) -> list[Item]:
    found = list(islice(items, ROWS + 2))
    if len(found) > ROWS + 1:
        raise UserError(f"{path} has more than {ROWS:,} rows; give a part of it.")
    return found
