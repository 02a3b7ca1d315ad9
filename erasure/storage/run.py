"""A run is a folder: job.json holds its job; result.json, which is written last, marks it as complete."""

import hashlib
import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from erasure.errors import MAX_VALUE_CHARS, UserError, truncate_middle
from erasure.storage.files import (
    DamagedFile,
    canonical_json,
    ensure_folder,
    is_empty,
    print_message,
    read_checksummed_json,
    read_json,
    write_bytes,
    write_checksummed_json,
    write_json,
)

__all__ = [
    "Run",
    "cache_folder",
    "canonical_json",
    "describe_difference",
    "hash_record",
    "read_json",
    "run_folder_of",
    "write_bytes",
    "write_json",
]


def hash_record(record: Any) -> str:
    """Return a short content hash (16 hex digits) of a JSON record."""
    return hashlib.sha256(canonical_json(record).encode()).hexdigest()[:16]


def remove_matching(folder: Path, patterns: Sequence[str]) -> None:
    """Remove the files below a folder that match patterns (`images/*/*.png`), and subfolders that become empty; nothing else."""
    for pattern in patterns:
        for path in list(folder.glob(pattern)):
            if path.is_dir():
                continue
            path.unlink()
            for parent in list(path.parents)[: len(path.relative_to(folder).parts) - 1]:
                if not any(parent.iterdir()):
                    parent.rmdir()


class Run:
    """The folder of one job.

    Args:
        folder: of the run; made by `begin`.
        job: what the run computes, as a JSON record.
        fresh: start over if the folder holds this job or another job of the same command.
        output_patterns: the files that the command writes there (`images/*/*.png`); `fresh` removes nothing else.

    Raises:
        UserError: a file, a folder with another job, or a folder with files that are not a run.
    """

    def __init__(self, folder: Path, job: dict[str, Any], fresh: bool = False, output_patterns: Sequence[str] = ()) -> None:
        self.folder, self.job, self.fresh, self.output_patterns = folder, job, fresh, output_patterns
        if folder.is_file():
            raise UserError(f"{folder} is a file; --out needs a folder.")
        job_file = folder / "job.json"
        if job_file.is_file() and (recorded_job := self._read_job(job_file)) not in (None, json.loads(canonical_json(job))):
            recorded_job = recorded_job if isinstance(recorded_job, dict) else {}
            if recorded_job.get("task") != job["task"]:  # this command must not remove anything here
                raise UserError(f"{folder} holds {describe_job(recorded_job)}, and this is {describe_job(job)}; choose another --out.")
            if not fresh:
                raise UserError(
                    f"{folder} holds {describe_other_job(recorded_job, job)}. Choose another --out, or --fresh to start over "
                    "(in Python out= and fresh=True)."
                )
        if not job_file.is_file() and folder.is_dir() and not is_empty(folder):
            raise UserError(f"{folder} is not empty and holds no run; choose another --out.")

    def begin(self) -> None:
        """Make the folder and write job.json; with `fresh`, first remove what this command wrote there. Other files stay."""
        if self.fresh:
            remove_matching(self.folder, ("result.json", *self.output_patterns))  # result.json first: it marks the run as complete
        ensure_folder(self.folder)
        write_json(self.folder / "job.json", self.job)

    @property
    def is_complete(self) -> bool:
        """Whether the run has a result. A damaged result.json is reported, and counts as missing."""
        return not self.fresh and self.read_result() is not None

    def read_result(self, warn: bool = True) -> dict[str, Any] | None:
        """Return what `finish` wrote; None if it is missing, or damaged, which is reported if `warn` is set."""
        path = self.folder / "result.json"
        if not path.is_file():
            return None
        try:
            return read_checksummed_json(path, required=False)
        except DamagedFile as error:
            if warn:
                print_message(f"{error} It is made anew.")
            return None

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json, with its checksum among the keys."""
        write_checksummed_json(self.folder / "result.json", result)

    def _read_job(self, path: Path) -> Any:
        """Return the job of the folder; None if it cannot be read and `fresh` is set."""
        try:
            return read_json(path)
        except UserError as error:
            if self.fresh:
                return None
            raise UserError(f"{error} So {path.parent} may hold another job; use --fresh to start over, or another --out.") from error


def check_output_folder(folder: Path) -> Path:
    """Return the folder if it exists or can be made; to be called before the work begins.

    Raises:
        UserError: a file in its place or above it, a name that no file system takes, or no write permission.
    """
    if "\0" in str(folder):
        raise UserError(f"{str(folder)!r} cannot be a folder: its name holds a NUL.")
    if any(len(part.encode(errors="surrogateescape")) > 255 for part in folder.parts) or len(str(folder.absolute())) > 4000:
        raise UserError(f"{folder} cannot be a folder: a name may have 255 bytes, a path 4,000; choose a shorter --out.")
    ancestor = next(candidate for candidate in (folder, *folder.absolute().parents) if os.path.lexists(candidate))
    if not ancestor.is_dir():
        raise UserError(f"{ancestor} is a file, so {folder} cannot be a folder; choose another --out.")
    if not os.access(ancestor, os.W_OK | os.X_OK):
        raise UserError(f"{ancestor} cannot be written to, so {folder} cannot be a folder; choose another --out.")
    return folder


def check_tracker(name: str) -> None:
    """Check that a tracker is installed; accelerate only warns, and then logs nothing.

    Raises:
        UserError: it is not; the message names the package.
    """
    if name != "none" and importlib.util.find_spec(name) is None:
        raise UserError(f"--report-to {name} needs the package: pip install {name}, or use --report-to none.")


def run_folder_of(job: dict[str, Any]) -> Path:
    """Return the default folder of a job."""
    return Path("runs") / hash_record(job)


def describe_job(job: dict[str, Any]) -> str:
    """Return in a few words what a job makes, such as "the erasure of neon (esd)"; a record that people have changed may lack anything."""
    if job.get("task") == "erase":
        return f"the erasure of {_subject_of(job)}"
    if job.get("task") == "audit":
        return f"an audit with {_subject_of(job)}"
    return f"a job of the task {job['task']!r}" if "task" in job else "an unknown job"


def describe_other_job(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Return what a folder holds and what this job of the same task makes instead."""
    subject = _subject_of(new)
    if subject == _subject_of(old):
        return f"{describe_job(old)} with other settings: {describe_difference(old, new)}"
    return f"{describe_job(old)}; this one is {subject}"


def _subject_of(job: dict[str, Any]) -> str:
    """Return what tells jobs of one task apart: concepts and method of an erasure, suite, tier and axis of an audit."""
    if job.get("task") == "audit":
        return f"suite {job.get('suite')}, tier {job.get('tier')}, on {job.get('axis')}s"
    concepts = job.get("concepts")
    names = [str(c.get("name")) for c in concepts if isinstance(c, dict)] if isinstance(concepts, list) else []
    return f"{truncate_middle('; '.join(names), MAX_VALUE_CHARS)} ({job.get('method')})"


def describe_difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Describe the first key in which two jobs differ, for an error message."""
    for key in sorted({*old, *new}):
        old_value, new_value = old.get(key), json.loads(canonical_json(new.get(key)))
        if isinstance(old_value, dict) and isinstance(new_value, dict) and old_value != new_value:
            return f"{key}: {describe_difference(old_value, new_value)}"
        if old_value != new_value:
            shown_old, shown_new = (truncate_middle(canonical_json(value), 80) for value in (old_value, new_value))
            return f"its {key} is {shown_old}, this one's is {shown_new}"
    return "the same"


def cache_folder() -> Path:
    """Return the folder of caches that runs share: $ERASURE_CACHE, or ~/.cache/erasure-studio."""
    return Path(os.environ.get("ERASURE_CACHE") or Path.home() / ".cache" / "erasure-studio")
