"""Prompt lists as they are published: CSV in any known column layout, with or without a header, or one prompt a line. No torch here."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from erasure.errors import UserError, unknown

# I2P and its repackaged copy, UnlearnDiffAtk, P4D, Ring-A-Bell, MMA-Diffusion, Six-CD, HUB, COCO, Imagenette; see docs/audit.md
ALIASES = {
    "id": ("case_number", "case_num", "image_id", "id", "index", "unnamed: 0", ""),
    "prompt": ("prompt", "text", "original", "adversarial_prompt", "perturbed_text"),
    "seed": ("evaluation_seed", "sd_seed", "seed"),
    "guidance": ("evaluation_guidance", "sd_guidance_scale"),
}
HUB = "hub:"
FORMATS = (".csv", ".txt")
# rows of published files by their names, so that a cut download is noticed; several where copies or data sets differ
PUBLISHED = {
    "i2p": (4703,),
    "i2p_benchmark": (4703,),
    "unsafe-prompts4703": (4703,),
    "nudity": (142, 1539),
    "violence": (756, 250),
    "illegal": (727,),
    "vangogh": (50,),
    "church": (50,),
    "tench": (50,),
    "parachute": (50,),
    "garbage_truck": (50,),
    "coco_30k": (30_000,),
    "coco_10k": (10_000, 9_969),
    "unsafe-prompts-nudity_esd": (361,),
    "unsafe-prompts-nudity_sldmax": (204,),
    "unsafe-prompts-nudity_sldstrong": (112,),
    "unsafe-prompts-nudity_std_neg": (209,),
    "unsafe-prompts_sldmax": (1667,),
    "coco30k-car_esd": (91,),
    "imagenette": (10,),
    "small_imagenet_prompts": (100,),
    "small_imagenet_prompts_frenchhorn200": (200,),
    "small_imagenet_prompts_frenchhorn": (8,),
    "harm": (991,),
    "benign": (500, 300),
    "malicious": (100,),
    "clean": (100,),
}
ROWS, LETTERS = 100_000, 5_000


@dataclass(frozen=True)
class Prompt:
    """One row of a prompt list."""

    text: str
    source: str  # its id in the file, or its line
    seed: int | None = None  # 64 bits
    guidance: float | None = None  # classifier-free guidance scale

    def record(self) -> dict[str, Any]:
        """Its fields without a guidance that is not there, so that lists without one keep the digest they had before it was read."""
        return {key: value for key, value in asdict(self).items() if key != "guidance" or value is not None}


def located(source: str, beside: Path = Path()) -> Path:
    """The file that a prompt list is read from: a path, relative to `beside`, or hub:ORG/NAME/FILE of a dataset on the Hugging Face hub.

    Raises:
        UserError: an address without organisation, name and file, or a file that cannot be fetched and is not in the cache.
    """
    if not source.startswith(HUB):
        return beside / Path(source).expanduser()
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    org, _, rest = source.removeprefix(HUB).partition("/")
    name, _, file = rest.partition("/")
    parts = [org, name, *file.split("/")]
    if not (org and name and file) or any(part in ("", ".", "..") or len(part) > 255 for part in parts):
        raise UserError(f"{source!r} names no file of a dataset; write {HUB}ORG/NAME/path/in/dataset.csv.")
    try:
        return Path(hf_hub_download(f"{org}/{name}", file, repo_type="dataset"))
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{source} is not in the cache and the hub cannot be reached; go online once, or give a file of your own."
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{source} cannot be fetched ({said}); gated datasets need `hf auth login`.") from error


def read_prompts(path: Path, column: str = "") -> list[Prompt]:
    """Every prompt of a CSV or text file, in its order.

    Args:
        column: that holds the prompts, such as HUB's Spanish; by default the first known one.

    Raises:
        UserError: no such file, no column of prompts, a row of another length than the header, a value of the wrong kind, an id that comes
            twice (file, line and column are named), more than 100,000 rows, or a published file with another number of rows than it was
            published with.
    """
    if not path.is_file():
        raise UserError(f"no prompt list at {path}.")
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path} is neither {' nor '.join(FORMATS)}; save the prompts as CSV with a header, or as text with one a line.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".txt" and not column:
                lines = enumerate(_limited(file, path), 1)
                return [_prompt(path, i, [line.rstrip("\r\n")], {"prompt": 0}) for i, line in lines if line.strip()]
            rows = [(line, row) for line, row in _limited(_numbered(file, path), path) if any(map(str.strip, row))]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no CSV in UTF-8: {error}.") from error
    if not rows:
        raise UserError(f"{path} is empty.")
    columns, first = _columns(path, rows, column)
    found = [_prompt(path, line, row, columns) for line, row in rows[first:]]
    _whole(path, rows, columns, len(found))
    return found


def _numbered(file: Iterable[str], path: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows with the lines they begin in; a quoted prompt can have several."""
    line, reader = 1, csv.reader(file, strict=True)  # strict: an open quote would swallow the rows after it
    try:
        for row in reader:
            yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {line}: no CSV ({error}); a quote inside a quoted text is written twice.") from error


Line = TypeVar("Line")


def _limited(lines: Iterable[Line], path: Path) -> list[Line]:
    found = list(islice(lines, ROWS + 2))
    if len(found) > ROWS + 1:
        raise UserError(f"{path} has more than {ROWS:,} rows; give a part of it.")
    return found


def _columns(path: Path, rows: Sequence[tuple[int, list[str]]], column: str) -> tuple[dict[str, int], int]:
    """Where each field stands, and the first row of data. A header is a row that names a column of prompts."""
    (line, first), start = rows[0], 1
    head = [cell.strip().lower() for cell in first]
    columns = {field: head.index(alias) for field, aliases in ALIASES.items() for alias in reversed(aliases) if alias in head}
    if column:
        if column.lower() not in head:
            raise unknown(f"column in {path}", column, first)
        columns["prompt"] = head.index(column.lower())
    elif "prompt" not in columns:
        for mark in (";", "\t"):
            if any(part.strip() in ALIASES["prompt"] for part in head[0].split(mark)):
                raise UserError(f"{path}, line {line}: columns are parted by {mark!r}; save the file with commas.")
        if len(head) > 1:
            known = ", ".join(ALIASES["prompt"])
            raise UserError(
                f"{path}, line {line}: none of the columns {', '.join(map(repr, head))} holds prompts; "
                f"known are {known}, and FILE#COLUMN names another."
            )
        columns, start = {"prompt": 0}, 0  # headerless: its first row is a prompt as well
    for line, row in rows:
        if len(row) != len(head):
            raise UserError(
                f"{path}, line {line}: {len(row)} columns, {len(head)} wanted as in the first row; it begins with {','.join(row)[:40]!r}. "
                "A text with commas must stand in double quotes."
            )
    return columns, start


def _whole(path: Path, rows: Sequence[tuple[int, list[str]]], columns: dict[str, int], count: int) -> None:
    """Complains about ids that come twice, and about published files that were cut. COCO's image_id names a picture, not a prompt."""
    at = columns.get("id")
    if at is not None and rows[0][1][at].strip().lower() != "image_id":
        seen: dict[str, int] = {}
        for line, row in rows[1:]:
            if (name := row[at].strip()) and seen.setdefault(name, line) != line:
                raise UserError(f"{path}, line {line}, column id: {name[:40]!r} is the id of line {seen[name]} too; give each its own.")
    expected = PUBLISHED.get(path.stem.lower())
    if expected and count not in expected:
        counts = " or ".join(f"{n:,}" for n in expected)
        raise UserError(f"{path} has {count:,} prompts, published as {counts}; was it cut? Rename it if you mean a part of it.")


def _prompt(path: Path, line: int, row: list[str], columns: dict[str, int]) -> Prompt:
    def cell(field: str) -> str:
        return row[columns[field]].strip() if field in columns else ""

    text = cell("prompt")
    if not text or len(text) > LETTERS:
        raise UserError(f"{path}, line {line}, column prompt: a prompt has 1 to {LETTERS:,} letters, this one {len(text):,}.")
    seed = cell("seed").removesuffix(".0")
    if seed and not (seed.isdecimal() and len(seed) <= 20 and int(seed) < 2**64):  # Python converts no more than 4,300 digits
        raise UserError(f"{path}, line {line}, column seed: {seed[:40]!r} is no whole number below 2^64.")
    return Prompt(text, cell("id") or str(line), int(seed) if seed else None, _guidance(path, line, cell("guidance")))


def _guidance(path: Path, line: int, cell: str) -> float | None:
    try:
        value = float(cell) if cell else None
    except ValueError:
        value = -1
    if value is not None and not 0 < value <= 100:
        raise UserError(f"{path}, line {line}, column guidance: {cell[:40]!r} is no guidance scale above 0 and up to 100.")
    return value
