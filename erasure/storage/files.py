"""Write files completely or not at all, and read them back, with a checksum where damage would go unnoticed.

A file is written under a name of its own that ends in .part and names the writing process, then renamed into place. What a killed process
left behind is removed when the next one writes into the same folder. No torch here.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from erasure.errors import Unfinished, UserError, unreadable_error
from erasure.storage.processes import Process, has_ended, this_process

CHECKSUM_KEY = "sha256"  # key under which a file holds the checksum of the rest
PART_NAME = re.compile(r"\..*\.(?P<mark>[0-9a-f]{8}-[0-9a-f]*-[0-9a-f]*-\d+-[\w.]+)\.[0-9a-f]{8}\.part")
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
_cleared_folders: set[Path] = set()  # folders that this process has cleared of parts of dead processes


class DamagedFile(UserError):
    """Raised for a file that does not hold what was written into it."""


class MissingChecksum(DamagedFile):
    """Raised for a file without the checksum that it should have."""


def canonical_json(record: Any) -> str:
    """Return JSON with sorted keys and no spaces, the same text for equal records."""
    return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def print_message(line: str) -> None:
    """Print one line for the user on stderr, also from within the library."""
    from tqdm import tqdm  # the command line imports this module before it knows whether anything will be computed

    tqdm.write(f"erasure: {line}", file=sys.stderr)  # on a line of its own, also while a progress bar is shown


@contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a file that is moved into place when the block ends, and removed when it fails.

    Raises:
        Unfinished: no room is left on the disk.
        UserError: the path cannot be written, or is a folder that is not empty.
    """
    clear_dead_parts_once(path.parent)
    part = part_path_of(path)
    try:
        with part.open("xb") as file:
            yield file
        move_into_place(part, path)
    except OSError as error:
        _remove(part)
        raise to_user_error(path, error) from error
    except BaseException:
        _remove(part)
        raise


@contextmanager
def open_draft_folder(folder: Path) -> Iterator[Path]:
    """Make a draft folder whose contents are moved into the folder when the block ends; if it fails, the folder stays as it was.

    Raises:
        Unfinished: no room is left on the disk.
        UserError: the folder cannot be written.
    """
    clear_dead_parts_once(ensure_folder(folder))
    draft = part_path_of(folder / "draft")
    try:
        draft.mkdir()
        yield draft
        for path in sorted(draft.iterdir()):
            path.replace(folder / path.name)
    except OSError as error:
        raise to_user_error(folder, error) from error
    finally:
        _remove(draft)


def part_path_of(path: Path) -> Path:
    """Return an unused name beside a path, for a file that this process is writing."""
    return path.with_name(f".{path.name[:80]}.{this_process().mark}.{uuid.uuid4().hex[:8]}.part")


def move_into_place(part: Path, path: Path) -> None:
    """Rename a part to its path; an empty folder there is removed."""
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    part.replace(path)


def to_user_error(path: Path, error: OSError) -> UserError:
    """Return the error of a failed write in words for the user."""
    if error.errno in DISK_FULL_ERRNOS:
        return Unfinished(f"no room is left on the disk of {path.parent} for {path.name}; make room, then repeat the command.")
    if error.errno in (errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST):
        return UserError(f"{path} is a folder where a file belongs; move it away.")
    return UserError(f"{path} cannot be written ({error.strerror or error}).")


def clear_path(path: Path) -> None:
    """Remove a file of this project, or an empty folder in its place.

    Raises:
        UserError: a folder that is not empty, or no permission.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise to_user_error(path, error) from error


def is_disk_full(error: BaseException) -> bool:
    """Return whether an exception of any library means that the disk is full; safetensors and torch say so only in the message."""
    if isinstance(error, OSError):
        return error.errno in DISK_FULL_ERRNOS
    return "os error 28" in str(error) or "No space left on device" in str(error)


def clear_dead_parts_once(folder: Path) -> None:
    """Remove what dead processes were writing in a folder; once for each folder in this process."""
    if folder not in _cleared_folders:
        _cleared_folders.add(folder)
        clear_dead_parts(folder)


def clear_dead_parts(folder: Path) -> int:
    """Remove what dead processes of this machine were writing in a folder, and return the number of files."""
    dead_parts = [path for path in _list_folder(folder) if is_dead_part(path)]
    for path in dead_parts:
        _remove(path)
    return len(dead_parts)


def is_dead_part(path: Path) -> bool:
    """Return whether a path is an unfinished file whose writer has ended."""
    match = PART_NAME.fullmatch(path.name)
    return match is not None and has_ended(Process.from_mark(match["mark"]))


def is_empty(folder: Path) -> bool:
    """Return whether a folder holds nothing but locks and unfinished files."""
    return all(path.name.startswith(".lock") or PART_NAME.fullmatch(path.name) for path in folder.iterdir())


def _list_folder(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    except OSError:  # it will be tried again later
        pass


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically; processes of several machines may write the same one at once. Raises as `open_atomic`."""
    with open_atomic(path) as file:
        file.write(data)


def write_json(path: Path, record: Any) -> None:
    """Write a JSON file atomically. Raises as `open_atomic`."""
    write_bytes(path, (json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        UserError: unreadable, or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable_error(path, "JSON", error) from error


def write_checksummed_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON mapping with its checksum among the keys. Raises as `open_atomic`."""
    write_json(path, with_checksum(record))


def read_checksummed_json(path: Path, *, required: bool = True) -> dict[str, Any]:
    """Read a JSON mapping, verify its checksum, and return the mapping without it.

    Args:
        required: whether a file without a checksum counts as damaged; files that people write themselves have none.

    Raises:
        DamagedFile: unreadable, not a mapping, or not what was written; MissingChecksum if the checksum is missing.
    """
    try:
        record = read_json(path)
    except UserError as error:
        is_missing = isinstance(error.__cause__, FileNotFoundError | NotADirectoryError)
        raise DamagedFile(str(error) if is_missing else f"{path} is damaged: {error.__cause__ or error}.") from error
    if not isinstance(record, dict):
        raise DamagedFile(f"{path} is damaged: expected a mapping.")
    return verify_checksum(path, record, required=required)


def verify_checksum(path: Path, record: Mapping[str, Any], *, required: bool = True) -> dict[str, Any]:
    """Return a mapping without its checksum. Raises DamagedFile as `read_checksummed_json`."""
    record = dict(record)
    checksum = record.pop(CHECKSUM_KEY, None)
    if checksum is None and required:
        raise MissingChecksum(f"{path} is damaged: it has no checksum.")
    if checksum is not None and checksum != checksum_of(record):
        raise DamagedFile(f"{path} is damaged: its checksum does not match.")
    return record


def with_checksum(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping with its checksum among the keys."""
    return {**record, CHECKSUM_KEY: checksum_of(record)}


def checksum_of(record: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of a mapping in canonical JSON."""
    return hashlib.sha256(canonical_json(json.loads(json.dumps(record))).encode()).hexdigest()


def ensure_folder(path: Path) -> Path:
    """Make a folder and its parents, and return it.

    Raises:
        UserError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UserError(f"{path} is a file where a folder belongs; move it away.") from error
    except OSError as error:
        raise to_user_error(path, error) from error
    return path


def is_path_taken(path: Path) -> bool:
    """Return whether a path exists, also as a broken link or a folder."""
    return os.path.lexists(path)
