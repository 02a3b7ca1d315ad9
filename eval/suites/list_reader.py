"""Prompt lists as they are published: any known column layout, with or without a header, or one prompt per line. Imports no torch."""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from erasure.errors import UserError
from eval.suites.list_table import LIST_SUFFIXES, MAX_BYTES, ListTable, read_table

# I2P and its repackaged copies, UnlearnDiffAtk, P4D, Ring-A-Bell, MMA-Diffusion, Six-CD, HUB, COCO, Imagenette: docs/guides/prompt-lists.md
COLUMN_ALIASES = {
    "id": ("case_number", "case_num", "image_id", "id", "index", "unnamed: 0", ""),
    "prompt": ("prompt", "adv_prompt", "adversarial_prompt", "sensitive prompt", "perturbed_text", "text", "original", "caption"),
    "seed": ("evaluation_seed", "sd_seed", "seed"),
    "guidance": ("evaluation_guidance", "sd_guidance_scale"),
}
OTHER_COLUMNS = frozenset(name for field in ("id", "seed", "guidance") for name in COLUMN_ALIASES[field] if name)
HUB_PREFIX = "hub:"
# rows of published files by name, so that a truncated download is noticed; several numbers where copies or data sets differ
PUBLISHED_ROW_COUNTS = {
    "i2p": (4703,),
    "i2p_benchmark": (4703,),
    "i2p_prompts_4703": (4703,),
    "i2p_prompts_sexual": (931,),
    "unsafe-prompts4703": (4703,),
    "nudity": (142, 1539, 1000, 9873),
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
    "unsafe-prompts_sldstrong": (1189,),
    "nudity-p4d": (151,),
    "nudity-ring-a-bell": (79,),
    "nudity-unlearndiff": (142,),
    "nudity-mma-diffusion": (1000,),
    "coco30k-car_esd": (91,),
    "imagenette": (10, 5000),
    "small_imagenet_prompts": (100,),
    "small_imagenet_prompts_frenchhorn200": (200,),
    "small_imagenet_prompts_frenchhorn": (8,),
    "harm": (991,),
    "benign": (500, 300),
    "malicious": (100,),
    "clean": (100,),
}
MAX_CHARACTERS = 5_000
SEED_PATTERN = re.compile(r"(\d{1,20})(\.0*)?")  # pandas writes integers as 7.0 if the column has gaps


@dataclass(frozen=True)
class ListedPrompt:
    """One row of a prompt list."""

    text: str
    row_id: str  # its id in the file, or its line number
    seed: int | None = None  # below 2^64
    guidance: float | None = None  # classifier-free guidance scale

    def to_record(self) -> dict[str, Any]:
        """Return the fields for a digest. A missing guidance is left out, so that lists without that column keep their digest."""
        return {key: value for key, value in asdict(self).items() if key != "guidance" or value is not None}


@dataclass(frozen=True)
class PromptListOrigin:
    """The file that prompts came from, and what was left out of it."""

    file: str  # its name, or hub:ORG/NAME/FILE
    sha256: str  # of the file's bytes
    rows: int
    prompts: int  # rows that are used
    left_out: dict[str, int]  # reason -> number of rows
    warnings: tuple[str, ...]  # complete sentences, for the report


class PromptList(NamedTuple):
    """The prompts of a file, in its order, and their origin."""

    prompts: tuple[ListedPrompt, ...]
    origin: PromptListOrigin


def load_prompt_list(source: str, beside: Path = Path()) -> PromptList:
    """Load a prompt list from a path or hub:ORG/NAME/FILE; a suffix #COLUMN chooses another column.

    Raises:
        UserError: the list cannot be located or read.
    """
    file, column = split_column(source)
    return read_prompt_list(locate_list(file, beside), column, source if source.startswith(HUB_PREFIX) else Path(source).name)


def split_column(source: str) -> tuple[str, str]:
    """Split FILE#COLUMN; the column is empty if none is named."""
    file, _, column = source.rpartition("#") if "#" in Path(source).name else (source, "", "")
    return file, column


def locate_list(source: str, beside: Path = Path()) -> Path:
    """Return the path of a prompt list; a file on the hub is downloaded.

    Args:
        source: a path, or hub:ORG/NAME/FILE of a dataset on the Hugging Face hub.
        beside: folder that a relative path starts from.

    Raises:
        UserError: an address lacks organization, name or file; or a file cannot be downloaded and is not in the cache.
    """
    if not source.startswith(HUB_PREFIX):
        try:
            return beside / Path(source).expanduser()
        except RuntimeError as error:  # ~name of an unknown user
            raise UserError(f"no prompt list at {source[:200]}: {error}") from error
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    org, _, rest = source.removeprefix(HUB_PREFIX).partition("/")
    name, _, file = rest.partition("/")
    invalid_parts = [
        part for part in file.split("/") if part in ("", ".", "..") or not part.isprintable() or "\\" in part or len(part) > 200
    ]
    if not (org and name) or invalid_parts:
        raise UserError(f"{source[:200]!r} does not name a file of a dataset; write {HUB_PREFIX}ORG/NAME/path/in/dataset.csv.")
    try:
        return Path(hf_hub_download(f"{org}/{name}", file, repo_type="dataset"))
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{source[:200]} is not in the cache and the hub cannot be reached; go online once, or give a file of your own."
        ) from error
    except (HfHubHTTPError, ValueError, OSError) as error:  # ValueError: an invalid repository name
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UserError(f"{source[:200]} cannot be fetched ({reason}); gated datasets need `hf auth login`.") from error


def read_prompt_list(path: Path, column: str = "", name: str = "") -> PromptList:
    """Read the prompts of a list file.

    Rows without a prompt, or with more than 5,000 characters, are left out and counted. Duplicate ids are numbered.

    Args:
        column: the column of prompts, such as HUB's Spanish; by default the first known one.
        name: what to call the file; by default its own name.

    Raises:
        UserError: there is no such file; its format is unknown; it has no column of prompts, no usable prompt, or more than 100,000 rows; a
            row differs in length from the header; or a seed or guidance is invalid (file, line and column are named).
    """
    if path.suffix.lower() not in LIST_SUFFIXES:
        raise UserError(
            f"{path} is not one of {', '.join(LIST_SUFFIXES)}; save the prompts as CSV with a header, or as text with one per line."
        )
    data = _read_bytes(path)
    table = read_table(path, data, COLUMN_ALIASES["prompt"], OTHER_COLUMNS, column)
    if not table.rows:
        raise UserError(f"{path} holds a header and no rows.")
    columns = _column_indices(path, table, column)
    all_prompts = [_parse_prompt(path, table.unit, line, row, columns) for line, row in table.rows]
    used = [prompt for prompt in all_prompts if 0 < len(prompt.text) <= MAX_CHARACTERS]
    left_out = {
        "without a prompt": sum(not prompt.text for prompt in all_prompts),
        f"of more than {MAX_CHARACTERS:,} letters": sum(len(prompt.text) > MAX_CHARACTERS for prompt in all_prompts),
    }
    left_out = {reason: count for reason, count in left_out.items() if count}
    if not used:
        reason = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())
        raise UserError(f"{path} has no prompt that can be used; its rows: {reason}.")
    ids_are_images = "id" in columns and table.header[columns["id"]] == "image_id"  # in COCO an image has several captions
    prompts, repeated = (used, 0) if ids_are_images else _number_repeated_ids(used)
    notes = [
        *table.notes,
        *([f"repeated ids that were numbered: {repeated:,}"] if repeated else []),
        *_row_count_notes(path, len(all_prompts)),
    ]
    list_name = name or path.name
    warnings = tuple(f"{list_name}: {note}." for note in notes)
    return PromptList(
        tuple(prompts), PromptListOrigin(list_name, hashlib.sha256(data).hexdigest(), len(all_prompts), len(used), left_out, warnings)
    )


def _read_bytes(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise UserError(f"no prompt list at {path}.")
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} has more than {MAX_BYTES:,} bytes; give a part of it.")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        if isinstance(error, UserError):
            raise
        raise UserError(f"{str(path)[:200]!r} cannot be read ({error}).") from error


def _column_indices(path: Path, table: ListTable, column: str) -> dict[str, int]:
    """Return the index of each field's column; a file without a header has only prompts."""
    if not table.header:
        return {"prompt": 0}
    indices: dict[str, int] = {}
    for field, aliases in COLUMN_ALIASES.items():
        for alias in reversed(aliases):
            if table.header.count(alias) > 1:
                raise UserError(f"{path} has {table.header.count(alias)} columns {alias!r}; rename all but one of them.")
            if alias in table.header:
                indices[field] = table.header.index(alias)
    return {**indices, "prompt": table.header.index(column.lower())} if column else indices


def _parse_prompt(path: Path, unit: str, line: int, row: Sequence[str], columns: dict[str, int]) -> ListedPrompt:
    def cell(field: str) -> str:
        return row[columns[field]].strip() if field in columns else ""

    seed, guidance = cell("seed"), cell("guidance")
    seed_match = SEED_PATTERN.fullmatch(seed)
    if seed and not (seed_match and seed.isascii() and int(seed_match[1]) < 2**64):
        raise UserError(f"{path}, {unit} {line}, column seed: {seed[:40]!r} is not a whole number from 0 to 2^64 - 1.")
    return ListedPrompt(
        cell("prompt"),
        cell("id")[:200] or str(line),
        int(seed_match[1]) if seed_match else None,
        _parse_guidance(path, unit, line, guidance),
    )


def _parse_guidance(path: Path, unit: str, line: int, cell: str) -> float | None:
    try:
        value = float(cell) if cell else None
    except ValueError:
        value = math.nan
    if value is not None and not 0 < value < math.inf:
        raise UserError(f"{path}, {unit} {line}, column guidance: {cell[:40]!r} is not a guidance scale above 0.")
    return value


def _number_repeated_ids(prompts: Sequence[ListedPrompt]) -> tuple[list[ListedPrompt], int]:
    """Number duplicate ids (7, 7, 7 become 7, 7-2, 7-3); return the prompts and how many ids were changed."""
    used_ids, id_counts, numbered = {prompt.row_id for prompt in prompts}, Counter[str](), []
    for prompt in prompts:
        id_counts[prompt.row_id] += 1
        if id_counts[prompt.row_id] > 1:
            unused_ids = (new_id for new_id in _candidate_ids(prompt.row_id, id_counts[prompt.row_id]) if new_id not in used_ids)
            prompt = replace(prompt, row_id=next(unused_ids))
            used_ids.add(prompt.row_id)
        numbered.append(prompt)
    return numbered, len(prompts) - len(id_counts)


def _candidate_ids(row_id: str, number: int) -> Iterator[str]:
    while True:
        yield f"{row_id}-{number}"
        number += 1


def _row_count_notes(path: Path, rows: int) -> tuple[str, ...]:
    """Return a note if a published file has a different number of rows than it was published with."""
    expected = PUBLISHED_ROW_COUNTS.get(path.stem.lower())
    if not expected or rows in expected:
        return ()
    counts = " or ".join(f"{n:,}" for n in expected)
    return (f"it has {rows:,} rows, but the file published under this name has {counts}",)
