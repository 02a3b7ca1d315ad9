"""A run is a folder: job.json says what it is, result.json (renamed into place last) says that it is complete."""

import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from erasure.errors import UserError


def canonical_json(record: Any) -> str:
    return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(record: Any) -> str:
    """Short content hash of a JSON record."""
    return hashlib.sha256(canonical_json(record).encode()).hexdigest()[:16]


def write_json(path: Path, record: Any) -> None:
    """Write a JSON file in one atomic step."""
    write_bytes(path, (json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file in one atomic step; processes of several machines may write the same one at once."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    part.write_bytes(data)
    part.replace(path)


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # the last of brackets a thousand deep
        raise UserError(f"{path} cannot be read as JSON ({error}).") from error


class Run:
    """The folder of one job.

    Raises:
        UserError: the folder holds another job, or files that are no run at all.
    """

    def __init__(self, folder: Path, job: dict[str, Any], fresh: bool = False) -> None:
        self.folder, self.job, self.fresh = folder, job, fresh
        if folder.is_file():
            raise UserError(f"{folder} is a file; --out needs a folder.")
        known = folder / "job.json"
        if known.is_file() and not fresh and (other := read_json(known)) != json.loads(canonical_json(job)):
            raise UserError(f"{folder} holds another job ({difference(other, job)}); choose another --out, or --fresh to start over.")
        if not known.is_file() and folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"{folder} is not empty and holds no run; choose another --out.")

    def begin(self) -> None:
        """Make the folder, emptied first if the job is to start over."""
        if self.fresh:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "job.json", self.job)

    @property
    def complete(self) -> bool:
        return not self.fresh and (self.folder / "result.json").is_file()

    def finish(self, result: dict[str, Any]) -> None:
        write_json(self.folder / "result.json", result)


def usable(folder: Path) -> Path:
    """The folder itself, if it is there or can be made: to be asked before the work begins.

    Raises:
        UserError: a file in its place or above it, a name that no file system takes, or no right to write.
    """
    if "\0" in str(folder):
        raise UserError(f"{str(folder)!r} cannot be a folder: its name holds a NUL.")
    if any(len(part.encode(errors="surrogateescape")) > 255 for part in folder.parts) or len(str(folder.absolute())) > 4000:
        raise UserError(f"{folder} cannot be a folder: a name may have 255 bytes, a path 4,000; choose a shorter --out.")
    above = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if not above.is_dir():
        raise UserError(f"{above} is a file, so {folder} cannot be a folder; choose another --out.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"{above} cannot be written to, so {folder} cannot be a folder; choose another --out.")
    return folder


def default_folder(job: dict[str, Any]) -> Path:
    return Path("runs") / digest(job)


def difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The first key in which two jobs differ, for an error message."""
    for key in sorted({*old, *new}):
        a, b = old.get(key), json.loads(canonical_json(new.get(key)))
        if isinstance(a, dict) and isinstance(b, dict) and a != b:
            return f"{key}: {difference(a, b)}"
        if a != b:
            return f"its {key} is {canonical_json(a)[:80]}, this one's is {canonical_json(b)[:80]}"
    return "the same"


def cache_folder() -> Path:
    """Where recordings are shared between runs: $ERASURE_CACHE, or ~/.cache/erasure-studio."""
    return Path(os.environ.get("ERASURE_CACHE") or Path.home() / ".cache" / "erasure-studio")
