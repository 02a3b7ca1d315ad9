"""Write measured results between the marks of a document."""

from pathlib import Path


def fill_section(document: Path, name: str, lines: list[str]) -> None:
    """Replace the text between `<!-- name -->` and `<!-- /name -->`.

    Raises:
        ValueError: The document does not have these marks exactly once.
    """
    head, _, tail = split_at_marks(document, name)
    document.write_text(head + "\n" + "\n".join(lines).strip("\n") + "\n" + tail, encoding="utf-8")


def fill_table_rows(document: Path, name: str, head: list[str], rows: list[str]) -> None:
    """Merge rows into a table between marks, sorted by first cell. Rows with the same first cell are replaced.

    Rows from before a column was added get a dash in it.
    """
    _, middle, _ = split_at_marks(document, name)
    new_keys = {_first_cell(row) for row in rows}
    other_rows = [
        line for line in middle.splitlines() if line.startswith("| ") and _first_cell(line) not in {*new_keys, _first_cell(head[0])}
    ]
    width = head[0].count("|")
    other_rows = [row + " – |" * (width - row.count("|")) for row in other_rows]
    fill_section(document, name, [*head, *sorted(other_rows + rows, key=_first_cell)])


def split_at_marks(document: Path, name: str) -> tuple[str, str, str]:
    """Split a document into the text through the first mark, between the marks, and from the second mark on.

    Raises:
        ValueError: The document does not have these marks exactly once.
    """
    text = document.read_text(encoding="utf-8")
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if text.count(start) != 1 or text.count(end) != 1:
        raise ValueError(f"{document} needs exactly one {start} and one {end}")
    before, _, rest = text.partition(start)
    middle, _, after = rest.partition(end)
    return before + start, middle, end + after


def _first_cell(row: str) -> str:
    return row.split("|")[1].strip()
