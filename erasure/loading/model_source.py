"""What a user may call a model: pocket, a hub id, a folder, or one .safetensors file. No torch here, so that a slip is told at once."""

import re
from pathlib import Path

from erasure.errors import UserError

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(/[\w-][\w.-]*)*")  # org/name, org/name/subfolder


def is_hub_id(source: str) -> bool:
    return not is_local_path(source) and bool(HUB_ID.fullmatch(source))


def is_local_path(source: str) -> bool:
    """Whether a file or folder is there. A name that no file system takes is not."""
    try:
        return Path(source).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, the home of somebody unknown
        return False


def check_model_source(source: str) -> None:
    """Complain about what is neither pocket, nor there, nor could be on the hub.

    Raises:
        UserError: it names the source.
    """
    if any(len(part) > 255 for part in Path(source).parts):
        raise UserError(f"no model at {source!r}: a name has at most 255 letters.")
    if source != "pocket" and not is_local_path(source) and not is_hub_id(source):
        raise UserError(f"no model at {source!r}: no such folder or file, and not a hub id (org/name or org/name/subfolder).")
