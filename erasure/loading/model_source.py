"""The ways to name a model: a shipped one, a hub id, a folder or one .safetensors file. No torch here: typos are reported at once."""

import re
from pathlib import Path

from erasure.errors import UserError

SHIPPED_MODELS = ("pocket", "pocket-flow")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(/[\w-][\w.-]*)*")  # org/name, org/name/subfolder


def is_hub_id(source: str) -> bool:
    """Return whether a source has the form of a hub id and is not a local path."""
    return not is_local_path(source) and bool(HUB_ID.fullmatch(source))


def is_local_path(source: str) -> bool:
    """Return whether a file or folder exists; false for a name that no file system takes."""
    try:
        return Path(source).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, the home of an unknown user
        return False


def check_model_source(source: str) -> None:
    """Check that a source is a shipped model, exists locally, or could be on the hub.

    Raises:
        UserError: it is none of these.
    """
    if any(len(part) > 255 for part in Path(source).parts):
        raise UserError(f"no model at {source!r}: a name has at most 255 letters.")
    if source not in SHIPPED_MODELS and not is_local_path(source) and not is_hub_id(source):
        raise UserError(f"no model at {source!r}: no such folder or file, and not a hub id (org/name or org/name/subfolder).")
