"""Prompt lists as they are published: any known column layout, with or without a header, or one prompt a line. No torch here."""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from erasure.errors import UserError
from eval.suites.list_file import BYTES, FORMATS, Table, read_table

# I2P and its repackaged copies, UnlearnDiffAtk, P4D, Ring-A-Bell, MMA-Diffusion, Six-CD, HUB, COCO, Imagenette; see docs/audit.md
ALIASES = {
    "id": ("case_number", "case_num", "image_id", "id", "index", "unnamed: 0", ""),
    "prompt": ("prompt", "adv_prompt", "adversarial_prompt", "sensitive prompt", "perturbed_text", "text", "original", "caption"),
    "seed": ("evaluation_seed", "sd_seed", "seed"),
    "guidance": ("evaluation_guidance", "sd_guidance_scale"),
}
HEADS = frozenset(name for field in ("id", "seed", "guidance") for name in ALIASES[field] if name)
HUB = "hub:"
# rows of published files by their names, so that a cut download is noticed; several where copies or data sets differ
PUBLISHED = {
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
LETTERS = 5_000
SEED = re.compile(r"(\d{1,20})(\.0*)?")  # pandas writes whole numbers beside gaps as 7.0


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


@dataclass(frozen=True)
class Origin:
    """The file that prompts came from, and what of it is not among them."""

    file: str  # its name, or its address on the hub
    sha256: str  # of its bytes
    rows: int
    prompts: int  # rows that are used
    left_out: dict[str, int]  # why -> rows
    warnings: tuple[str, ...]  # sentences


class PromptList(NamedTuple):
    """The prompts of a file, in its order."""

    prompts: tuple[Prompt, ...]
    origin: Origin


def located(source: str, beside: Path = Path()) -> Path:
    """The file that a prompt list is read from: a path, relative to `beside`, or hub:ORG/NAME/FILE of a dataset on the Hugging Face hub.

    Raises:
        UserError: an address without organisation, name and file, or a file that cannot be fetched and is not in the cache.
    """
    if not source.startswith(HUB):
        try:
            return beside / Path(source).expanduser()
        except RuntimeError as error:  # ~name of nobody
            raise UserError(f"no prompt list at {source[:200]}: {error}") from error
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    org, _, rest = source.removeprefix(HUB).partition("/")
    name, _, file = rest.partition("/")
    odd = [part for part in file.split("/") if part in ("", ".", "..") or not part.isprintable() or "\\" in part or len(part) > 200]
    if not (org and name) or odd:
        raise UserError(f"{source[:200]!r} names no file of a dataset; write {HUB}ORG/NAME/path/in/dataset.csv.")
    try:
        return Path(hf_hub_download(f"{org}/{name}", file, repo_type="dataset"))
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{source[:200]} is not in the cache and the hub cannot be reached; go online once, or give a file of your own."
        ) from error
    except (HfHubHTTPError, ValueError, OSError) as error:  # ValueError: a name that no repository can have
        said = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UserError(f"{source[:200]} cannot be fetched ({said}); gated datasets need `hf auth login`.") from error


def read_prompts(path: Path, column: str = "", name: str = "") -> PromptList:
    """The prompts of a list file and what was left out of it.

    Rows without a prompt, or with one of more than 5,000 letters, are left out and counted. Ids that come twice are numbered.

    Args:
        column: that holds the prompts, such as HUB's Spanish; by default the first known one.
        name: what to call the file; by default its own name.

    Raises:
        UserError: no such file, another format, no column of prompts, a row of another length than the header, a seed or guidance of the
            wrong kind (file, line and column are named), more than 100,000 rows, or no prompt at all.
    """
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path} is not one of {', '.join(FORMATS)}; save the prompts as CSV with a header, or as text with one a line.")
    data = _bytes(path)
    table = read_table(path, data, ALIASES["prompt"], HEADS, column)
    if not table.rows:
        raise UserError(f"{path} holds a header and no rows.")
    columns = _columns(path, table, column)
    found = [_prompt(path, table.unit, line, row, columns) for line, row in table.rows]
    used = [prompt for prompt in found if 0 < len(prompt.text) <= LETTERS]
    left_out = {
        "without a prompt": sum(not prompt.text for prompt in found),
        f"of more than {LETTERS:,} letters": sum(len(prompt.text) > LETTERS for prompt in found),
    }
    left_out = {why: count for why, count in left_out.items() if count}
    if not used:
        why = ", ".join(f"{count:,} {why}" for why, count in left_out.items())
        raise UserError(f"{path} has no prompt that can be used; of its rows there are {why}.")
    picture_ids = "id" in columns and table.header[columns["id"]] == "image_id"  # COCO's: a picture has several captions
    prompts, repeated = (used, 0) if picture_ids else _numbered(used)
    notes = [*table.notes, *([f"repeated ids that were numbered: {repeated:,}"] if repeated else []), *_whole(path, len(found))]
    called = name or path.name
    warnings = tuple(f"{called}: {note}." for note in notes)
    return PromptList(tuple(prompts), Origin(called, hashlib.sha256(data).hexdigest(), len(found), len(used), left_out, warnings))


def _bytes(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise UserError(f"no prompt list at {path}.")
        if path.stat().st_size > BYTES:
            raise UserError(f"{path} has more than {BYTES:,} bytes; give a part of it.")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if isinstance(error, UserError):
            raise
        raise UserError(f"{str(path)[:200]!r} cannot be read ({error}).") from error


def _columns(path: Path, table: Table, column: str) -> dict[str, int]:
    """Where each field is; a file without a header has prompts alone."""
    if not table.header:
        return {"prompt": 0}
    found: dict[str, int] = {}
    for field, aliases in ALIASES.items():
        for alias in reversed(aliases):
            if table.header.count(alias) > 1:
                raise UserError(f"{path} has {table.header.count(alias)} columns {alias!r}; rename all but one of them.")
            if alias in table.header:
                found[field] = table.header.index(alias)
    return {**found, "prompt": table.header.index(column.lower())} if column else found


def _prompt(path: Path, unit: str, line: int, row: Sequence[str], columns: dict[str, int]) -> Prompt:
    def cell(field: str) -> str:
        return row[columns[field]].strip() if field in columns else ""

    seed, guidance = cell("seed"), cell("guidance")
    whole = SEED.fullmatch(seed)
    if seed and not (whole and seed.isascii() and int(whole[1]) < 2**64):
        raise UserError(f"{path}, {unit} {line}, column seed: {seed[:40]!r} is not a whole number from 0 to 2^64 - 1.")
    return Prompt(cell("prompt"), cell("id")[:200] or str(line), int(whole[1]) if whole else None, _guidance(path, unit, line, guidance))


def _guidance(path: Path, unit: str, line: int, cell: str) -> float | None:
    try:
        value = float(cell) if cell else None
    except ValueError:
        value = math.nan
    if value is not None and not 0 < value < math.inf:
        raise UserError(f"{path}, {unit} {line}, column guidance: {cell[:40]!r} is not a guidance scale above 0.")
    return value


def _numbered(prompts: Sequence[Prompt]) -> tuple[list[Prompt], int]:
    """Ids that come again get a number, and how many did: 7, 7, 7 are 7, 7-2, 7-3."""
    taken, times, found = {prompt.source for prompt in prompts}, Counter[str](), []
    for prompt in prompts:
        times[prompt.source] += 1
        if times[prompt.source] > 1:
            free = (name for name in _names(prompt.source, times[prompt.source]) if name not in taken)
            prompt = replace(prompt, source=next(free))
            taken.add(prompt.source)
        found.append(prompt)
    return found, len(prompts) - len(times)


def _names(source: str, number: int) -> Iterator[str]:
    while True:
        yield f"{source}-{number}"
        number += 1


def _whole(path: Path, rows: int) -> tuple[str, ...]:
    """A note where a published file has another number of rows than it was published with."""
    expected = PUBLISHED.get(path.stem.lower())
    if not expected or rows in expected:
        return ()
    counts = " or ".join(f"{n:,}" for n in expected)
    return (f"it has {rows:,} rows, and the file that was published under this name has {counts}",)
