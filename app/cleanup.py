"""Find and remove caches, downloads and incomplete runs. Files that this program does not write are left alone."""

import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from app.jobs.queue import read_progress
from erasure.config.choices import Removable
from erasure.erasing import OUTPUT_FILES as ERASURE
from erasure.errors import UserError
from erasure.storage.files import is_dead_part, is_path_taken, read_json
from erasure.storage.locks import LOCK_FILE, FolderLocked, check_unlocked, lock_folder
from erasure.storage.run import cache_folder
from eval.auditing.prepare import OUTPUT_FILES as AUDIT

RUN_FILES = {"erase": ("job.json", *ERASURE), "audit": ("job.json", *AUDIT)}  # files in a run folder, by task
JOB_FILES = ("spec.json", "claim.json", "error.json", "cancelled", "log.txt", "preview.png")
KEY_PATTERN = "[0-9a-f]" * 16
CACHE_FILES = {
    "teacher-caches": (f"{KEY_PATTERN}/trajectories-[0-9]*.safetensors", f"{KEY_PATTERN}/images-[0-9]*.safetensors"),
    "tensors": (f"{KEY_PATTERN}.safetensors",),
    "samples": (f"[0-9a-f][0-9a-f]/{KEY_PATTERN}.png",),
    "divergence": (f"{KEY_PATTERN}.json",),
    "claims": (f".lock-{KEY_PATTERN}*",),  # that killed processes left behind
}
PRETRAINING_FILES = ("job.json", "result.json", "train.jsonl", "checkpoint.pt", "pretrained.safetensors", "mask.safetensors")
ALL_FILES = ("*",)


@dataclass(frozen=True)
class RemovableFiles:
    """Files in a folder that may be removed."""

    kind: Removable
    label: str
    folder: Path
    files: tuple[Path, ...]
    other_count: int  # files in the folder that this program does not write; they stay
    needs_lock: bool  # whether the folder's lock must be free

    @property
    def size(self) -> int:
        return sum(size_of(path) for path in self.files)


def find_removable(root: Path, kinds: tuple[Removable, ...]) -> list[RemovableFiles]:
    """Return everything of these kinds that may be removed from the cache and from a folder with runs below it."""
    removable: list[RemovableFiles] = []
    if "caches" in kinds:
        removable += find_caches(cache_folder())
    for folder in iterate_folders(root):
        if "downloads" in kinds and folder.name == "downloads" and is_path_taken(folder.parent / "spec.json"):
            removable.append(match_files("downloads", "downloads of a job", folder, ALL_FILES))
        if "incomplete" in kinds:
            removable += find_incomplete(folder)
    return [entry for entry in without_duplicates(removable) if entry.files]


def without_duplicates(entries: list[RemovableFiles]) -> Iterator[RemovableFiles]:
    """Yield the entries with every file in one entry only, the first that lists it."""
    seen: set[Path] = set()
    for entry in entries:
        yield replace(entry, files=tuple(path for path in entry.files if path not in seen))
        seen.update(entry.files)


def find_caches(root: Path) -> Iterator[RemovableFiles]:
    """Yield what a model can make again: teacher caches, tensors, samples, divergences and pretrained weights."""
    for name, patterns in CACHE_FILES.items():
        # no lock: entries are written atomically, and missing ones are made again
        yield match_files("caches", name, root / name, patterns, needs_lock=False)
    for folder in sorted((root / "pretraining").glob("*")):
        if fnmatchcase(folder.name, KEY_PATTERN) and not folder.is_symlink():
            yield match_files("caches", "pretraining", folder, PRETRAINING_FILES)


def find_incomplete(folder: Path) -> Iterator[RemovableFiles]:
    """Yield a run without result.json, a stopped job without a complete run, or files that killed processes left behind."""
    if (task := task_of(folder)) and not is_path_taken(folder / "result.json"):
        yield match_files("incomplete", {"erase": "erasure", "audit": "audit"}[task], folder, RUN_FILES[task])
    elif is_path_taken(folder / "spec.json") and not any(folder.glob("*/result.json")):
        if read_progress(folder).state in ("failed", "cancelled", "interrupted", "broken"):
            yield match_files("incomplete", f"{read_progress(folder).state} job", folder, JOB_FILES, recursive=False)
    elif is_dead_part(folder):
        yield match_files("incomplete", "unfinished files", folder, ALL_FILES, needs_lock=False)
    else:
        dead = tuple(path for path in sorted(folder.iterdir()) if is_dead_part(path) and path.is_file())
        yield RemovableFiles("incomplete", "unfinished files", folder, dead, 0, False)


def match_files(
    kind: Removable, label: str, folder: Path, patterns: Sequence[str], *, needs_lock: bool = True, recursive: bool = True
) -> RemovableFiles:
    """Return the files of a folder that match one of the patterns, and unfinished files of dead processes."""
    matching, other_count = [], 0
    for path in iterate_files(folder) if recursive else (path for path in sorted(folder.iterdir()) if not path.is_dir()):
        if path.name.startswith(LOCK_FILE):
            continue
        if not path.is_symlink() and (fits(path.relative_to(folder), patterns) or is_dead_part(path)):
            matching.append(path)
        else:
            other_count += 1
    return RemovableFiles(kind, label, folder, tuple(matching), other_count, needs_lock)


def fits(path: Path, patterns: Sequence[str]) -> bool:
    """Return whether a relative path matches a pattern of the same depth; `*` alone matches every path."""
    return any(
        pattern == "*" or (pattern.count("/") == len(path.parts) - 1 and all(map(fnmatchcase, path.parts, pattern.split("/"))))
        for pattern in patterns
    )


def task_of(folder: Path) -> str:
    """Return "erase" or "audit" from the job.json of a run; empty for any other folder."""
    with suppress(UserError):
        record = read_json(folder / "job.json") if (folder / "job.json").is_file() else None
        if isinstance(record, dict) and record.get("task") in RUN_FILES and "base" in record:
            return str(record["task"])
    return ""


def remove_files(entry: RemovableFiles) -> int:
    """Remove the files of an entry, then empty folders. Return the bytes freed.

    Raises:
        FolderLocked: A running process holds the folder's lock. Nothing was removed.
    """
    with lock_folder(entry.folder, "erasure clean") if entry.needs_lock else nullcontext():
        if entry.needs_lock and entry.kind == "incomplete" and is_path_taken(entry.folder / "result.json"):
            return 0  # the run has finished since the entry was made
        freed = _delete_files(entry)
    with suppress(OSError):  # not empty
        entry.folder.rmdir()
    return freed


def lock_message(entry: RemovableFiles) -> str:
    """Return who holds the lock of an entry's folder; empty where it is free or not needed."""
    try:
        if entry.needs_lock:
            check_unlocked(entry.folder)
    except FolderLocked as error:
        return str(error)
    return ""


def _delete_files(entry: RemovableFiles) -> int:
    freed = 0
    for path in entry.files:
        size = size_of(path)
        with suppress(FileNotFoundError):
            path.unlink()
            freed += size
    for subfolder in sorted({parent for path in entry.files for parent in path.parents if entry.folder in parent.parents}, reverse=True):
        with suppress(OSError):  # not empty
            subfolder.rmdir()
    return freed


def iterate_folders(root: Path) -> Iterator[Path]:
    """Yield a folder and all folders below it. Links are not followed."""
    for path, subfolders, _ in os.walk(root):
        subfolders.sort()
        yield Path(path)


def iterate_files(folder: Path) -> Iterator[Path]:
    for path, subfolders, names in os.walk(folder):
        subfolders.sort()
        yield from (Path(path) / name for name in sorted(names))


def size_of(path: Path) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0
