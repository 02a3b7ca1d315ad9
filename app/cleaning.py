"""What may be removed without losing a result: caches, downloads, runs that never ended. Files that nobody here writes are left alone."""

import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from app.jobs.queue import progress
from erasure.config.choices import Removable
from erasure.erasing import WRITES as ERASURE
from erasure.errors import UserError
from erasure.storage.files import is_dead_part, is_there, read_json
from erasure.storage.locks import LOCK, Busy, check, held
from erasure.storage.run import cache_folder
from eval.audit import WRITES as AUDIT

RUNS = {"erase": ("job.json", *ERASURE), "audit": ("job.json", *AUDIT)}  # files of a run by its task, below its folder
JOB = ("spec.json", "claim.json", "error.json", "cancelled", "log.txt", "preview.png")
KEY = "[0-9a-f]" * 16
CACHES = {
    "banks": (f"{KEY}/walks-[0-9]*.safetensors", f"{KEY}/images-[0-9]*.safetensors"),
    "tensors": (f"{KEY}.safetensors",),
    "samples": (f"[0-9a-f][0-9a-f]/{KEY}.png",),
    "divergence": (f"{KEY}.json",),
}
START = ("job.json", "result.json", "train.jsonl", "checkpoint.pt", "start.safetensors", "mask.safetensors")
EVERYTHING = ("*",)


@dataclass(frozen=True)
class Item:
    """A folder of which something may be removed."""

    kind: Removable
    what: str
    folder: Path
    files: tuple[Path, ...]
    unknown: int  # files there that nobody here writes, so that they stay
    guarded: bool  # its lock has to be free

    @property
    def size(self) -> int:
        return sum(size_of(path) for path in self.files)


def items(where: Path, kinds: tuple[Removable, ...]) -> list[Item]:
    """Everything that may be removed of these kinds: in the cache, and below a folder with runs."""
    found: list[Item] = []
    if "caches" in kinds:
        found += caches(cache_folder())
    for folder in folders(where):
        if "downloads" in kinds and folder.name == "downloads" and is_there(folder.parent / "spec.json"):
            found.append(item("downloads", "downloads of a job", folder, EVERYTHING))
        if "incomplete" in kinds:
            found += incomplete(folder)
    return [one for one in distinct(found) if one.files]


def distinct(found: list[Item]) -> Iterator[Item]:
    """Every file in one item alone, the first that names it."""
    seen: set[Path] = set()
    for one in found:
        yield replace(one, files=tuple(path for path in one.files if path not in seen))
        seen.update(one.files)


def caches(root: Path) -> Iterator[Item]:
    """What can be made again from a model: recordings, pictures, comparisons, and what some trainings begin with."""
    for name, patterns in CACHES.items():
        yield item("caches", name, root / name, patterns, guarded=False)  # entries appear whole, and are made again where they are missing
    for folder in sorted((root / "starts").glob("*")):
        if fnmatchcase(folder.name, KEY) and not folder.is_symlink():
            yield item("caches", "starts", folder, START)


def incomplete(folder: Path) -> Iterator[Item]:
    """A run without result.json, a job that stopped with nothing complete in it, and what killed processes left behind."""
    if (task := task_of(folder)) and not is_there(folder / "result.json"):
        yield item("incomplete", {"erase": "erasure", "audit": "audit"}[task], folder, RUNS[task])
    elif is_there(folder / "spec.json") and not any(folder.glob("*/result.json")):
        if progress(folder).state in ("failed", "cancelled", "interrupted", "broken"):
            yield item("incomplete", f"{progress(folder).state} job", folder, JOB, deep=False)
    elif is_dead_part(folder):
        yield item("incomplete", "unfinished files", folder, EVERYTHING, guarded=False)
    else:
        dead = tuple(path for path in sorted(folder.iterdir()) if is_dead_part(path) and path.is_file())
        yield Item("incomplete", "unfinished files", folder, dead, 0, False)


def item(kind: Removable, what: str, folder: Path, patterns: Sequence[str], *, guarded: bool = True, deep: bool = True) -> Item:
    """The files of a folder whose names below it fit one of the patterns, and unfinished ones of dead processes."""
    known, unknown = [], 0
    for path in files(folder) if deep else (path for path in sorted(folder.iterdir()) if not path.is_dir()):
        if path.name.startswith(LOCK):
            continue
        if not path.is_symlink() and (fits(path.relative_to(folder), patterns) or is_dead_part(path)):
            known.append(path)
        else:
            unknown += 1
    return Item(kind, what, folder, tuple(known), unknown, guarded)


def fits(path: Path, patterns: Sequence[str]) -> bool:
    """Whether a relative path is as deep as one of the patterns and fits it; `*` alone takes everything."""
    return any(
        pattern == "*" or (pattern.count("/") == len(path.parts) - 1 and all(map(fnmatchcase, path.parts, pattern.split("/"))))
        for pattern in patterns
    )


def task_of(folder: Path) -> str:
    """erase or audit, by the job.json of a run; empty for anything else."""
    with suppress(UserError):
        record = read_json(folder / "job.json") if (folder / "job.json").is_file() else None
        if isinstance(record, dict) and record.get("task") in RUNS and "base" in record:
            return str(record["task"])
    return ""


def remove(one: Item) -> int:
    """Remove an item's files, then folders that are empty; returns the bytes freed.

    Raises:
        Busy: a living process works there; nothing was removed.
    """
    with held(one.folder, "erasure clean") if one.guarded else nullcontext():
        if one.guarded and one.kind == "incomplete" and is_there(one.folder / "result.json"):
            return 0  # it has ended since it was looked at
        freed = _removed(one)
    with suppress(OSError):  # something is in it
        one.folder.rmdir()
    return freed


def in_use(one: Item) -> str:
    """Who works in an item's folder; empty where nobody does."""
    try:
        if one.guarded:
            check(one.folder)
    except Busy as error:
        return str(error)
    return ""


def _removed(one: Item) -> int:
    freed = 0
    for path in one.files:
        size = size_of(path)
        with suppress(FileNotFoundError):
            path.unlink()
            freed += size
    for place in sorted({parent for path in one.files for parent in path.parents if one.folder in parent.parents}, reverse=True):
        with suppress(OSError):  # something is in it
            place.rmdir()
    return freed


def folders(where: Path) -> Iterator[Path]:
    """A folder and all below it; links are not followed."""
    for place, below, _ in os.walk(where):
        below.sort()
        yield Path(place)


def files(folder: Path) -> Iterator[Path]:
    for place, below, names in os.walk(folder):
        below.sort()
        yield from (Path(place) / name for name in sorted(names))


def size_of(path: Path) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0
