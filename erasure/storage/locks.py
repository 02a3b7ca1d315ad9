"""One writer per folder: a lock that does not outlive its process, also on disks that several machines share.

The lock is a file that names its holder (erasure.storage.processes). It is created as a hard link, which only one of many processes can
make. Nothing is ever removed to take over from a dead holder: the next process links its own record as the *successor* of exactly that
record, then checks that the chain from the lock file still ends with its own record, and only then replaces the lock file. So of many that
see the same dead holder, one wins, and one that decided by an old record notices before it begins.

Only processes of the holder's own machine can know that it is dead; those of others are refused, with the name of the file to delete.
There is no heartbeat: a late one (a suspended machine, a disk that hangs) would allow two writers, and a lock that was left behind costs
only one command. Kernel locks (flock) are not used, because network disks do not always pass them on; filelock's SoftFileLock takes a
zombie for a living process and takes over nothing on NFS.
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
from erasure.storage.files import ensure_folder, is_dead_part, part_path_of, print_message, to_user_error
from erasure.storage.processes import Process, has_ended, this_process

LOCK_FILE = ".lock"
SHARD_LOCK_NAME = re.compile(r"\.lock-(\d+)of(\d+)")
READ_ATTEMPTS, RETRY_SECONDS = 20, 0.05  # on a disk without hard links, a lock appears before its content
Shard = tuple[int, int]  # (i, n): the i-th of n processes that share one folder, counted from 0

_held_locks: dict[Path, int] = {}  # locks of this process, and the id of the thread that holds them
_parent_pids: list[int] = []  # processes whose work this process shares


class FolderLocked(Unfinished):
    """Raised where another process is writing."""


@dataclass(frozen=True)
class LockHolder:
    """The holder of a lock."""

    process: Process
    token: str  # unique to this lock
    command: str  # such as "erasure erase"
    since: str

    @classmethod
    def new(cls, command: str) -> "LockHolder":
        """Return this process as the holder of a new lock."""
        return cls(this_process(), uuid.uuid4().hex, command, datetime.now(UTC).isoformat(timespec="seconds"))

    @classmethod
    def parse(cls, text: str) -> "LockHolder":
        """Parse the content of a lock file.

        Raises:
            ValueError, TypeError, KeyError: not a record of a holder.
        """
        record: dict[str, Any] = json.loads(text)
        process = Process(**record["process"])
        if not re.fullmatch("[0-9a-f]{32}", record["token"]):
            raise ValueError("no token")
        return cls(process, record["token"], str(record["command"]), str(record["since"]))

    def to_json(self) -> str:
        """Return the content of the lock file."""
        return json.dumps({"process": self.process.to_dict(), "token": self.token, "command": self.command, "since": self.since})

    def __str__(self) -> str:
        return f"`{self.command}`, process {self.process.pid} on {self.process.host}, since {self.since}"


def holder_of(folder: Path) -> LockHolder | None:
    """Return who is writing into a folder, as a whole or into a shard of it; None if nobody is, or if the holders have ended."""
    return next(iter(holders_of(folder)), None)


def holders_of(folder: Path) -> list[LockHolder]:
    """Return who is writing into a folder: one process into the whole, or several into a shard each."""
    lasts = [_last_holder(path) for path in (folder / LOCK_FILE, *_shard_locks(folder))]
    return [last for last in lasts if last and not has_ended(last.process)]


def check_unlocked(folder: Path) -> None:
    """Check, before any work, that nobody else is writing into a folder or a shard of it.

    Raises:
        FolderLocked: somebody is; the message names the holder.
    """
    for path in (folder / LOCK_FILE, *_shard_locks(folder)):
        last = _last_holder(path)
        if last and not has_ended(last.process) and _held_locks.get(path.resolve()) != threading.get_ident():
            raise _locked_error(path, last)


@contextmanager
def lock_folder(folder: Path, command: str, shard: Shard | None = None, *, wait: bool = False) -> Iterator[None]:
    """Lock a folder while the block runs; it is made if it does not exist. A thread may lock again what it has locked.

    Args:
        command: the name of this command, for messages to others.
        shard: several processes may each lock one shard of a folder, but then nobody can lock the whole.
        wait: wait until the folder is free instead of raising.

    Raises:
        FolderLocked: somebody else is writing there.
        UserError: the folder cannot be made or written.
    """
    path = (folder / (LOCK_FILE if shard is None else f"{LOCK_FILE}-{shard[0] + 1}of{shard[1]}")).resolve()
    if threading.get_ident() in (_held_locks.get(path), _held_locks.get(path.with_name(LOCK_FILE))):
        yield
        return
    created_folders = _make_folder(path.parent)
    token = _acquire_or_wait(path, command, wait)
    _held_locks[path] = threading.get_ident()
    try:
        _check_no_conflict(path, shard)
        yield
    finally:
        del _held_locks[path]
        _release(path, token)
        for created in created_folders:
            with suppress(OSError):  # something is in it
                created.rmdir()


@contextmanager
def lock_file(path: Path, command: str) -> Iterator[None]:
    """Hold a lock file of any name while the block runs; its folder is made, and stays.

    Raises:
        FolderLocked: somebody else holds it.
        UserError: it cannot be written.
    """
    ensure_folder(path.parent)
    token = _acquire(path, command)
    try:
        yield
    finally:
        _release(path, token)


def ignore_lock_of(parent_pid: int) -> None:
    """Ignore the lock of a parent process from now on: this process does a part of its work."""
    _parent_pids.append(parent_pid)


def _acquire_or_wait(path: Path, command: str, wait: bool) -> str:
    """Take a lock, if asked to as soon as it is free, and return its token."""
    reported = False
    while True:
        try:
            return _acquire(path, command)
        except FolderLocked as error:
            if not wait:
                raise
            if not reported:
                print_message(f"waiting: {error}")
            reported = True
            time.sleep(RETRY_SECONDS * READ_ATTEMPTS)


def _acquire(path: Path, command: str) -> str:
    """Take a lock and return its token."""
    own = LockHolder.new(command)
    draft = part_path_of(path)
    try:
        draft.write_text(own.to_json(), encoding="utf-8")
        while (last := _last_holder(path)) is None or last.token != own.token:
            if last and not has_ended(last.process):
                raise _locked_error(path, last)
            target = path.with_name(f"{path.name}.{last.token}") if last else path
            if _try_link(draft, target) and ((current := _last_holder(path)) is None or current.token != own.token):
                target.unlink(missing_ok=True)  # the record it succeeds has been replaced meanwhile
        if (first := _read_holder(path)) is None or first.token != own.token:
            draft.replace(path)
        _clear_successors(path)
        return own.token
    except OSError as error:
        raise to_user_error(path, error) from error
    finally:
        draft.unlink(missing_ok=True)


def _try_link(draft: Path, target: Path) -> bool:
    """Link the record under a name and return whether that worked; it does for only one process."""
    try:
        os.link(draft, target)
    except FileExistsError:
        return False
    except (OSError, AttributeError, NotImplementedError):  # no hard links on this disk
        try:
            with target.open("xb") as file:
                file.write(draft.read_bytes())
        except FileExistsError:
            return False
    return True


def _last_holder(path: Path) -> LockHolder | None:
    """Return the last record of the chain that begins with a lock file; None if there is no lock.

    Raises:
        FolderLocked: a record that cannot be read.
    """
    last, successor = None, _read_holder(path)
    while successor:
        last, successor = successor, _read_holder(path.with_name(f"{path.name}.{successor.token}"))
    return last


def _read_holder(path: Path) -> LockHolder | None:
    """Read one record; None if there is no such file."""
    for _ in range(READ_ATTEMPTS):
        try:
            return LockHolder.parse(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise to_user_error(path, error) from error
        except (ValueError, TypeError, KeyError, RecursionError):
            time.sleep(RETRY_SECONDS)
    raise FolderLocked(
        f"the lock {path} does not say whose it is; if nothing is writing into {path.parent}, delete it and repeat the command."
    )


def _check_no_conflict(path: Path, shard: Shard | None) -> None:
    """Check for a lock of the whole beside shards, and for shards of another count; every process locks first and checks then."""
    others = [path.with_name(LOCK_FILE)] if shard else []
    others += [other for other in _shard_locks(path.parent) if shard is None or not other.name.endswith(f"of{shard[1]}")]
    for other in others:
        last = _last_holder(other)
        if last and not has_ended(last.process) and last.process.pid not in _parent_pids:
            raise _locked_error(other, last)


def _shard_locks(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"{LOCK_FILE}-*") if SHARD_LOCK_NAME.fullmatch(path.name))


def _release(path: Path, token: str) -> None:
    with suppress(OSError, Unfinished):
        current = _read_holder(path)
        if current and current.token == token:
            _clear_successors(path)  # while the lock is still ours
            path.unlink()


def _clear_successors(path: Path) -> None:
    """Remove the records of successors and dead drafts of records. Only the holder may do so."""
    for successor in path.parent.glob(f"{path.name}.*"):
        successor.unlink(missing_ok=True)
    for draft in path.parent.glob(f".{LOCK_FILE}*.part"):
        if is_dead_part(draft):
            draft.unlink(missing_ok=True)


def _locked_error(path: Path, lock_holder: LockHolder) -> FolderLocked:
    current = this_process()
    same_machine = (lock_holder.process.machine_id, lock_holder.process.pid_namespace) == (current.machine_id, current.pid_namespace)
    remedy = "wait for it" if same_machine else f"wait for it, or delete {path} if that machine no longer runs it"
    return FolderLocked(f"{path.parent} is being written by {lock_holder}; {remedy}, then repeat the command.")


def _make_folder(folder: Path) -> list[Path]:
    """Make a folder; return the folders that had to be made, innermost first."""
    missing = []
    ancestor = folder
    while not ancestor.exists() and ancestor != ancestor.parent:
        missing.append(ancestor)
        ancestor = ancestor.parent
    ensure_folder(folder)
    return missing
