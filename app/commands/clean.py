"""`erasure clean`: show what may be removed, and remove it with --yes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, get_args

import tyro

from app.parsing import Switch
from erasure.config.choices import Removable
from erasure.errors import UserError

if TYPE_CHECKING:
    from app.cleanup import RemovableFiles

KINDS: tuple[Removable, ...] = get_args(Removable)


@dataclass(frozen=True, kw_only=True)
class CleanCommand:
    """Show caches, downloads and incomplete runs with their sizes. Nothing is removed without --yes.

    Complete runs, files in use by a running process, and files that this program does not write are never removed. Links are not followed.
    """

    words: ClassVar[str] = "clean"

    path: Annotated[Path, tyro.conf.Positional] = Path("runs")  # folder with runs below it
    kinds: tuple[Removable, ...] = KINDS  # caches: can be made again; downloads: zips of the page; incomplete: unfinished runs
    yes: Switch = False  # remove them


def run_clean(command: CleanCommand) -> int:
    """List what may be removed, and remove it with --yes.

    Raises:
        UserError: The folder does not exist.
    """
    from app.cleanup import find_removable, lock_message  # imports torch

    if not command.path.is_dir() and command.path != Path("runs"):
        raise UserError(f"{command.path} is not a folder; name the one your runs are in.")
    entries = find_removable(command.path, command.kinds or KINDS)
    busy_messages = {entry.folder: reason for entry in entries if (reason := lock_message(entry))}
    removable = [entry for entry in entries if entry.folder not in busy_messages]
    for line in [*format_entries(removable), *(f"kept, in use: {reason}" for reason in busy_messages.values())]:
        print(line)
    if command.yes:
        print(f"freed {format_size(sum(remove_unless_busy(entry) for entry in reversed(removable)))}")  # deeper folders first
    elif removable:
        print(f"nothing was removed; --yes removes these {sum(len(entry.files) for entry in removable)} files")
    return 0


def remove_unless_busy(entry: "RemovableFiles") -> int:
    from app.cleanup import remove_files
    from erasure.storage.locks import FolderLocked

    try:
        return remove_files(entry)
    except FolderLocked as error:
        print(f"kept, in use: {error}")
        return 0


def format_entries(entries: "Sequence[RemovableFiles]") -> list[str]:
    """Format one line per entry, and the sum of each kind."""
    lines = []
    for kind in KINDS:
        kind_entries = [entry for entry in entries if entry.kind == kind]
        for entry in kind_entries:
            note = f"  ({entry.other_count} other files stay)" if entry.other_count else ""
            lines.append(f"  {format_size(entry.size):>10}  {len(entry.files):>6} files  {entry.label}: {entry.folder}{note}")
        size, file_count = sum(entry.size for entry in kind_entries), sum(len(entry.files) for entry in kind_entries)
        lines.append(f"{kind}: {format_size(size)} in {file_count} files")
    return lines


def format_size(size: float) -> str:
    """Format bytes with a binary unit."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
