"""What people find in a folder where an edit or an export of one should be, or is. No torch here."""

import os
import re
from pathlib import Path

from erasure.errors import UserError
from erasure.storage.files import is_empty

TENSORS_FILE, RECORD_FILE = "edit.safetensors", "edit.json"
CARD_FILE = "README.md"
CARD_TITLE = re.compile(r"^# (.+, erased with .+)$", re.MULTILINE)  # erasure.export.model_card writes it
MAX_CARD_CHARS = 100_000


def is_edit_path(path: str) -> bool:
    """Return whether a path is an edit of this project, not an external erasure."""
    edit_path = Path(path)
    return (edit_path / RECORD_FILE).is_file() or (
        edit_path.name in (TENSORS_FILE, RECORD_FILE) and (edit_path.parent / RECORD_FILE).is_file()
    )


def check_edit_exists(folder: Path) -> None:
    """Check that a folder holds both files of an edit.

    Raises:
        UserError: it lacks one, or both.
    """
    if missing := [name for name in (TENSORS_FILE, RECORD_FILE) if not os.path.isfile(folder / name)]:  # noqa: PTH113  # a name too long is none
        raise UserError(f"no edit at {str(folder)[:300]}: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing.")


def check_unoccupied(out: Path) -> None:
    """Check that an export can go into a folder: a new one, or one that is empty.

    Raises:
        UserError: a file, or a folder that is not empty; the message tells whose export is there, if a model card does.
    """
    if out.is_file() or (out.is_dir() and not is_empty(out)):
        raise UserError(f"{describe_occupied(out)}; choose another --out.")


def describe_occupied(out: Path) -> str:
    """Return what is in the way of an export: a file, the edit or export that a model card in the folder is about, or other files."""
    if out.is_file():
        return f"{out} is a file"
    try:
        with (out / CARD_FILE).open(encoding="utf-8", errors="replace") as file:
            title = CARD_TITLE.search(file.read(MAX_CARD_CHARS))
    except OSError:
        title = None
    return f"{out} holds {title[1].replace(chr(92), '')[:200]}" if title else f"{out} exists and is not empty"
