"""One writer a folder: a lock that outlives no process, also on disks that several machines share.

The lock is a file that names its holder (erasure.storage.processes). It appears by a hard link, which only one of many can make.
Nothing is ever
removed to take over from a dead holder: the next one links its own record as the *successor* of exactly that record, then looks whether
the chain from the lock file still ends with itself, and only then replaces the lock file. So of many that find the same dead holder, one
wins, and one that judged by an old record finds out before it begins.

Only processes of the holder's own machine can know that it is dead; those of others are refused, with the name of the file to delete.
There is no heartbeat: one that comes late (a suspended machine, a disk that hangs) would make two writers, and a lock that was left
behind costs one command. Kernel locks (flock) are not used, since network disks do not always pass them on; filelock's SoftFileLock
takes a zombie for a living process and takes over nothing on NFS.
"""

import json
import os
import re
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from erasure.errors import Unfinished
from erasure.storage.files import folder_exists, is_dead_part, part_of, refused, tell
from erasure.storage.processes import Process, gone, this_process

LOCK = ".lock"
SHARE = re.compile(r"\.lock-(\d+)of(\d+)")
READS, PAUSE = 20, 0.05  # a disk without hard links shows a lock before its content is there
Share = tuple[int, int]  # (i, n): the i-th of n processes that may work in one folder together, counted from 0

_mine: dict[Path, int] = {}  # locks of this process, by the thread that holds them
_parents: list[int] = []  # processes of whose work this process does a share


class Busy(Unfinished):
    """Somebody else is writing here."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock."""

    process: Process
    token: str  # unlike that of any other lock ever taken
    what: str  # such as "erasure erase"
    since: str

    @classmethod
    def new(cls, what: str) -> "Holder":
        return cls(this_process(), uuid.uuid4().hex, what, datetime.now(UTC).isoformat(timespec="seconds"))

    @classmethod
    def parse(cls, text: str) -> "Holder":
        """Raises ValueError, TypeError or KeyError where the text is no record."""
        record: dict[str, Any] = json.loads(text)
        process = Process(**record["process"])
        if not re.fullmatch("[0-9a-f]{32}", record["token"]):
            raise ValueError("no token")
        return cls(process, record["token"], str(record["what"]), str(record["since"]))

    def text(self) -> str:
        return json.dumps({"process": self.process.record(), "token": self.token, "what": self.what, "since": self.since})

    def __str__(self) -> str:
        return f"`{self.what}`, process {self.process.pid} on {self.process.host}, since {self.since}"


def holder(folder: Path) -> Holder | None:
    """Who is writing into a folder as a whole; None where nobody is, or where the holder is gone."""
    last = _last(folder / LOCK)
    return last if last and not gone(last.process) else None


def check(folder: Path) -> None:
    """Complain about a folder that somebody else is writing into, as a whole or a share of it, before any work.

    Raises:
        Busy: it names the holder.
    """
    for path in (folder / LOCK, *_shares(folder)):
        last = _last(path)
        if last and not gone(last.process) and _mine.get(path.resolve()) != threading.get_ident():
            raise _busy(path, last)


@contextmanager
def held(folder: Path, what: str, share: Share | None = None, *, wait: bool = False) -> Iterator[None]:
    """The folder belongs to this process while the block runs; it is made if need be. What a thread holds already it may hold again.

    Args:
        what: the command, for whoever is refused.
        share: several processes may each hold one share of a folder, but nobody the whole of it meanwhile.
        wait: wait until the folder is free in place of complaining.

    Raises:
        Busy: somebody else is writing there.
        UserError: the folder cannot be made or written.
    """
    path = (folder / (LOCK if share is None else f"{LOCK}-{share[0] + 1}of{share[1]}")).resolve()
    if threading.get_ident() in (_mine.get(path), _mine.get(path.with_name(LOCK))):
        yield
        return
    made = _make(path.parent)
    token = _patiently(path, what, wait)
    _mine[path] = threading.get_ident()
    try:
        _alone(path, share)
        yield
    finally:
        del _mine[path]
        _release(path, token)
        for empty in made:
            with suppress(OSError):  # something is in it
                empty.rmdir()


def part_of_work(parent: int) -> None:
    """From now on this process does a share of what another one does, whose lock is not in its way."""
    _parents.append(parent)


def _patiently(path: Path, what: str, wait: bool) -> str:
    told = False
    while True:
        try:
            return _acquire(path, what)
        except Busy as error:
            if not wait:
                raise
            if not told:
                tell(f"waiting: {error}")
            told = True
            time.sleep(PAUSE * READS)


def _acquire(path: Path, what: str) -> str:
    """Take a lock and return its token."""
    me = Holder.new(what)
    own = part_of(path)
    try:
        own.write_text(me.text(), encoding="utf-8")
        while (last := _last(path)) is None or last.token != me.token:
            if last and not gone(last.process):
                raise _busy(path, last)
            place = path.with_name(f"{path.name}.{last.token}") if last else path
            if _linked(own, place) and ((now := _last(path)) is None or now.token != me.token):
                place.unlink(missing_ok=True)  # judged by a record that has been replaced since
        if (first := _record(path)) is None or first.token != me.token:
            own.replace(path)
        _clear_successors(path)
        return me.token
    except OSError as error:
        raise refused(path, error) from error
    finally:
        own.unlink(missing_ok=True)


def _linked(own: Path, place: Path) -> bool:
    """Whether the record got that name; only one ever does."""
    try:
        os.link(own, place)
    except FileExistsError:
        return False
    except (OSError, AttributeError, NotImplementedError):  # no hard links on this disk
        try:
            with place.open("xb") as file:
                file.write(own.read_bytes())
        except FileExistsError:
            return False
    return True


def _last(path: Path) -> Holder | None:
    """The last record of the chain that begins with a lock file; None where there is no lock.

    Raises:
        Busy: a record that cannot be read.
    """
    last, following = None, _record(path)
    while following:
        last, following = following, _record(path.with_name(f"{path.name}.{following.token}"))
    return last


def _record(path: Path) -> Holder | None:
    for _ in range(READS):
        try:
            return Holder.parse(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise refused(path, error) from error
        except (ValueError, TypeError, KeyError, RecursionError):
            time.sleep(PAUSE)
    raise Busy(f"the lock {path} does not say whose it is; if nothing is writing into {path.parent}, delete it and repeat the command.")


def _alone(path: Path, share: Share | None) -> None:
    """Complain about a whole beside shares, or shares of another number; each is taken first and looks for others then."""
    others = [path.with_name(LOCK)] if share else []
    others += [other for other in _shares(path.parent) if share is None or not other.name.endswith(f"of{share[1]}")]
    for other in others:
        last = _last(other)
        if last and not gone(last.process) and last.process.pid not in _parents:
            raise _busy(other, last)


def _shares(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"{LOCK}-*") if SHARE.fullmatch(path.name))


def _release(path: Path, token: str) -> None:
    with suppress(OSError, Unfinished):
        now = _record(path)
        if now and now.token == token:
            _clear_successors(path)  # before the lock is free: then they are nobody's
            path.unlink()


def _clear_successors(path: Path) -> None:
    """Remove records that replaced ones, and dead drafts of records. Only the holder may."""
    for left in path.parent.glob(f"{path.name}.*"):
        left.unlink(missing_ok=True)
    for draft in path.parent.glob(f".{LOCK}*.part"):
        if is_dead_part(draft):
            draft.unlink(missing_ok=True)


def _busy(path: Path, found: Holder) -> Busy:
    here = this_process()
    known = (found.process.machine, found.process.space) == (here.machine, here.space)
    remedy = "wait for it" if known else f"wait for it, or delete {path} if that machine no longer runs it"
    return Busy(f"{path.parent} is being written by {found}; {remedy}, then repeat the command.")


def _make(folder: Path) -> list[Path]:
    """Make a folder; returns what had to be made, innermost first."""
    missing = []
    place = folder
    while not place.exists() and place != place.parent:
        missing.append(place)
        place = place.parent
    folder_exists(folder)
    return missing
