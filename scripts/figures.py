"""Put what a script measured between the marks of a document."""

from pathlib import Path


def fill(document: Path, name: str, lines: list[str]) -> None:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->`.

    Raises:
        ValueError: the document has no such marks.
    """
    text = document.read_text(encoding="utf-8")
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if text.count(start) != 1 or text.count(end) != 1:
        raise ValueError(f"{document} needs exactly one {start} and one {end}")
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    document.write_text(before + start + "\n" + "\n".join(lines).strip("\n") + "\n" + end + after, encoding="utf-8")
