"""`erasure clean`: what may be removed, and with --yes its removal."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import tyro

from app.parsing import parse
from erasure.config.choices import Removable
from erasure.errors import UserError
from erasure.storage.locks import Busy

if TYPE_CHECKING:
    from app.cleaning import Item

KINDS: tuple[Removable, ...] = get_args(Removable)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Show caches, downloads and incomplete runs with their sizes. Nothing is removed without --yes.

    Complete runs, whatever a living process works on, and files that this program does not write are never removed. Links are not followed.
    """

    where: Annotated[Path, tyro.conf.Positional] = Path("runs")  # folder with runs below it
    kinds: tuple[Removable, ...] = KINDS  # what can be made again, what the page packed, runs that never ended
    yes: bool = False  # remove them


def main(argv: list[str]) -> int:
    options = parse(Options, argv, "clean")
    from app.cleaning import in_use, items  # imports torch

    if not options.where.is_dir() and options.where != Path("runs"):
        raise UserError(f"{options.where} is not a folder; name the one your runs are in.")
    found = items(options.where, options.kinds or KINDS)
    busy = {one.folder: reason for one in found if (reason := in_use(one))}
    free = [one for one in found if one.folder not in busy]
    for line in [*table(free), *(f"kept, in use: {reason}" for reason in busy.values())]:
        print(line)
    if options.yes:
        print(f"freed {shown(sum(removed(one) for one in reversed(free)))}")  # what lies deeper first
    elif free:
        print(f"nothing was removed; --yes removes these {sum(len(one.files) for one in free)} files")
    return 0


def removed(one: "Item") -> int:
    from app.cleaning import remove

    try:
        return remove(one)
    except Busy as error:
        print(f"kept, in use: {error}")
        return 0


def table(found: "Sequence[Item]") -> list[str]:
    """One line for each item, and the sum of each kind."""
    lines = []
    for kind in KINDS:
        mine = [one for one in found if one.kind == kind]
        for one in mine:
            stay = f"  ({one.unknown} other files stay)" if one.unknown else ""
            lines.append(f"  {shown(one.size):>10}  {len(one.files):>6} files  {one.what}: {one.folder}{stay}")
        lines.append(f"{kind}: {shown(sum(one.size for one in mine))} in {sum(len(one.files) for one in mine)} files")
    return lines


def shown(size: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
