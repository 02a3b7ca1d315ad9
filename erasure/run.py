"""A run is a folder: job.json says what it is, result.json (renamed into place last) says that it is complete."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from erasure.errors import UserError
from erasure.files import (
    Damaged,
    canonical_json,
    folder_exists,
    is_empty,
    read_json,
    read_sealed,
    tell,
    write_bytes,
    write_json,
)
from erasure.locks import LOCK

__all__ = ["Run", "cache_folder", "canonical_json", "default_folder", "difference", "digest", "read_json", "write_bytes", "write_json"]


def digest(record: Any) -> str:
    """Short content hash of a JSON record."""
    return hashlib.sha256(canonical_json(record).encode()).hexdigest()[:16]


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
        if known.is_file() and not fresh and (other := self._known(known)) != json.loads(canonical_json(job)):
            raise UserError(f"{folder} holds another job ({difference(other, job)}); choose another --out, or --fresh to start over.")
        if not known.is_file() and folder.is_dir() and not is_empty(folder):
            raise UserError(f"{folder} is not empty and holds no run; choose another --out.")

    def begin(self) -> None:
        """Make the folder, emptied first if the job is to start over. Its lock stays; see erasure.locks."""
        folder_exists(self.folder)
        if self.fresh:
            for path in self.folder.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                elif not path.name.startswith(LOCK):
                    path.unlink(missing_ok=True)
        write_json(self.folder / "job.json", self.job)

    @property
    def complete(self) -> bool:
        """Whether everything is there. A damaged result.json is named, and counts as none."""
        return not self.fresh and self.result() is not None

    def result(self, say: bool = True) -> dict[str, Any] | None:
        """What `finish` wrote; None where that is missing or damaged, which is told unless `say` is off."""
        path = self.folder / "result.json"
        if not path.is_file():
            return None
        try:
            return read_sealed(path, required=False)
        except Damaged as error:
            if say:
                tell(f"{error} It is made anew.")
            return None

    def finish(self, result: dict[str, Any]) -> None:
        write_json(self.folder / "result.json", result)

    @staticmethod
    def _known(path: Path) -> Any:
        try:
            return read_json(path)
        except UserError as error:
            raise UserError(f"{error} So {path.parent} may hold another job; use --fresh to start over, or another --out.") from error


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
