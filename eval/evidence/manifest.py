"""manifest.json of an audit: the digest of every file, when it was written, and with what software. No torch here."""

import hashlib
import importlib.metadata
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import Field

from erasure.storage.files import read_json, write_json
from eval.records.convert import parse_record, to_record

MANIFEST_FILE = "manifest.json"
ATTESTATION_FILES = ("attestation.json", "inspect-log.json", "model-index.yaml")  # written after the manifest, about it
PACKAGES = ("erasure-studio", "torch", "torchvision", "diffusers", "transformers", "open_clip_torch", "torchmetrics")
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """When a report was written, and with what.

    Attributes:
        date: in UTC.
        software: versions by package.
        commit: of the checkout that ran, with "+" if it had changes; empty outside a checkout.
    """

    date: str
    software: Mapping[str, str]
    commit: str


@dataclass(frozen=True, kw_only=True)
class Manifest(Origin):
    """What an audit's folder holds: the SHA-256 of every file by its path there."""

    files: Mapping[str, Digest]


def origin_now() -> Origin:
    return Origin(
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        software={"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}},
        commit=checkout_commit(),
    )


def write_manifest(folder: Path, origin: Origin | None = None) -> Manifest:
    """Write manifest.json over everything that an audit has written into its folder, and return it."""
    manifest = Manifest(
        **vars(origin or origin_now()),
        files={path.relative_to(folder).as_posix(): file_digest(path) for path in listed_files(folder)},
    )
    write_json(folder / MANIFEST_FILE, to_record(manifest))
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of an audit.

    Raises:
        UserError: there is none, or it is not one.
    """
    path = folder / MANIFEST_FILE
    return parse_record(read_json(path), Manifest, str(path))


def listed_files(folder: Path) -> Iterator[Path]:
    """Yield the files that a manifest lists, sorted: all but itself, what is written about it, hidden files and locks."""
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in relative.parts)
        if path.is_file() and not is_hidden and relative.as_posix() not in (MANIFEST_FILE, *ATTESTATION_FILES):
            yield path


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folders_of_edits(folder: Path, named: Sequence[Path]) -> list[Path]:
    """Return the folders of the edits that an audit is of: those that are named, else the one above it, or beside it in a job."""
    above = [path for path in (folder.parent, folder.parent / "edit") if (path / "edit.json").is_file()]
    return list(named) or above[:1]


@cache
def checkout_commit() -> str:
    """Return the commit of the checkout that this package runs from, with "+" if files differ from it; empty outside one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        commit, changes = (
            subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, timeout=20, check=True).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return commit + ("+" if changes else "")
