"""Jobs as folders: what a folder holds says how far its job got. Work happens in child processes; this module imports no torch.

<job>/spec.json     what was asked for; its presence queues the job
<job>/.lock         which process works on it; see erasure.storage.locks
<job>/claim.json    in which phase that is, or was when it ended
<job>/edit/         the run folder of the erasure
<job>/audit-*/      the audits
<job>/log.txt       what the process said
<job>/error.json    why it stopped
<job>/cancelled     that a person stopped it
<job>/done.json     that everything is there; written last
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import psutil
from typing_extensions import TypedDict

from app.child_command import command
from app.jobs.plan import Spec
from erasure.config.validation import check
from erasure.errors import UserError
from erasure.storage.files import Damaged, canonical_json, clear_parts, is_there, make_room, read_sealed, refused, tell, write_sealed
from erasure.storage.locks import LOCK, Holder, holder
from erasure.storage.processes import this_process

State = Literal["waiting", "running", "done", "failed", "interrupted", "cancelled", "broken"]
STOPPED = ("failed", "cancelled", "broken")  # runs again only when a person says so
UNFINISHED = 2  # exit code of a child that the same command continues


class _Done(TypedDict):
    edits: list[str]
    audits: list[str]
    seconds: float


class _Error(TypedDict):
    error: str
    trace: str


class _Claim(TypedDict):
    phase: str
    total: int
    since: float
    first: int


@dataclass(frozen=True)
class Progress:
    """How far a job is, read off its folder."""

    state: State
    phase: str = ""
    done: int = 0
    total: int = 0
    seconds: float = 0.0  # since the process that works on it started, or what the whole job took
    loss: tuple[float, ...] = ()  # of every training step so far
    error: str = ""
    first: int = 0  # how many of `done` were there before the process that works on it began

    @property
    def rate(self) -> float | None:
        """How many a second in this phase; None while that is unknown."""
        return (self.done - self.first) / self.seconds if self.state == "running" and self.done > self.first and self.seconds else None

    @property
    def eta(self) -> float | None:
        """Seconds that the phase should still take at this rate."""
        return (self.total - self.done) / self.rate if self.rate else None


def progress(folder: Path) -> Progress:
    """State and progress of the job in a folder. A file of it that cannot be used makes it broken; nothing is raised."""
    try:
        return _progress(folder)
    except (UserError, OSError) as error:
        return Progress("broken", error=str(error))


def _progress(folder: Path) -> Progress:
    spec_of(folder)
    if is_there(folder / "done.json"):
        return Progress("done", seconds=_read(folder / "done.json", _Done)["seconds"], loss=losses(folder))
    if is_there(folder / "cancelled"):
        return Progress("cancelled", loss=losses(folder))
    if is_there(folder / "error.json"):
        return Progress("failed", error=_read(folder / "error.json", _Error)["error"], loss=losses(folder))
    claimed = _read(folder / "claim.json", _Claim) if is_there(folder / "claim.json") else None
    if holder(folder) is None:
        return Progress("interrupted" if claimed else "waiting", loss=losses(folder))
    if claimed is None:
        return Progress("running", "starting")
    loss, total = losses(folder), claimed["total"]
    done = min(counted(folder, claimed["phase"]), total)
    return Progress("running", claimed["phase"], done, total, time.time() - claimed["since"], loss, first=min(done, claimed["first"]))


def _read(path: Path, shape: Any) -> dict[str, Any]:
    record = read_sealed(path, required=False)  # what has none was written by an earlier version, and has exactly this shape
    check(record, shape, str(path))
    return record


def spec_of(folder: Path) -> Spec | None:
    """What a job was asked for; None where nothing is queued.

    Raises:
        UserError: its spec.json cannot be used.
    """
    path = folder / "spec.json"
    if not is_there(path):
        return None
    try:
        about = path.stat()
    except OSError as error:
        raise Damaged(f"{path} is damaged ({error.strerror}).") from error
    return _loaded(path, about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=1024)  # pages ask every second, for every job
def _loaded(path: Path, changed: int, size: int) -> Spec:
    return Spec.load(path)


def counted(folder: Path, phase: str) -> int:
    """Steps or pictures that the files of a job show."""
    if phase == "erasing":
        return len(losses(folder))
    return sum(1 for _ in folder.glob("audit-*/images/*/*.png")) if phase == "auditing" else 0


def losses(folder: Path) -> tuple[float, ...]:
    """The sum of a step's losses, for every step in the training log; a line being written is left out."""
    path = folder / "edit" / "train.jsonl"
    try:
        return _parsed(path, path.stat().st_size) if path.is_file() else ()
    except OSError:
        return ()


@lru_cache(maxsize=64)  # pages ask every second, for every job they list
def _parsed(path: Path, size: int) -> tuple[float, ...]:
    found = []
    for line in path.read_bytes()[:size].decode("utf-8", "replace").split("\n")[:-1]:
        with suppress(ValueError, TypeError, AttributeError, RecursionError):  # a damaged line draws no curve
            found.append(float(sum(value for key, value in json.loads(line).items() if key != "step")))
    return tuple(found)


def claim(folder: Path, phase: str, total: int) -> None:
    """Say that this process, which holds the job's lock, begins a phase of so many steps or pictures."""
    write_sealed(folder / "claim.json", {"phase": phase, "total": total, "since": time.time(), "first": counted(folder, phase)})


def start(folder: Path) -> "subprocess.Popen[bytes]":
    """A child process that does the job in a folder. It ends when this process does, however that ends.

    If another process has the job by then, or a person has cancelled it, the child does nothing and ends with UNFINISHED.
    """
    try:
        log = (folder / "log.txt").open("ab")
    except OSError as error:
        raise refused(folder / "log.txt", error) from error
    with log:
        argv = command("app.cli", "jobs", "run-one", str(folder / "spec.json"), "--parent", str(os.getpid()))
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def requeue(folder: Path) -> None:
    """Forget that a job failed, was cancelled, interrupted or broken: it waits again, and continues where it stood.

    Raises:
        UserError: its spec.json cannot be used, or a folder has the name of one of its files.
    """
    spec_of(folder)
    damaged = ("done.json",) if progress(folder).state == "broken" else ()
    for name in ("error.json", "cancelled", "claim.json", *damaged):
        make_room(folder / name)


def explain(folder: Path, code: int) -> None:
    """Leave a reason for a child that could not say itself why it ended, such as one killed for memory."""
    clear_parts(folder)
    if code == UNFINISHED or any(is_there(folder / name) for name in ("error.json", "cancelled", "done.json")):
        return
    reason = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    hint = "; out of memory?" if code == -getattr(signal, "SIGKILL", 9) else ""
    write_sealed(folder / "error.json", {"error": f"the process {reason}{hint} (see {folder / 'log.txt'})", "trace": ""})


def last_words(folder: Path) -> str:
    """The last line that a job's process said."""
    try:
        with (folder / "log.txt").open("rb") as log:
            log.seek(max(0, (folder / "log.txt").stat().st_size - 4096))
            lines = log.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    return next((line for line in reversed(lines) if line.strip()), "")


def cancel(folder: Path, seconds: float = 10.0) -> None:
    """Stop the job in a folder; what it has made so far stays and can be continued.

    The mark is written before the holder is looked for, and a process takes the job before it looks for the mark; so one of the two sees
    the other, at whatever moment they meet.

    Raises:
        UserError: it is done or broken, or another machine works on it.
    """
    p = progress(folder)
    if p.state == "done":
        raise UserError(f"{folder.name} is done; there is nothing to cancel.")
    if p.state == "broken":
        raise UserError(f"{folder.name} is broken: {p.error}")
    _own(folder, holder(folder))
    try:
        (folder / "cancelled").touch()
    except OSError as error:
        raise refused(folder / "cancelled", error) from error
    found = _own(folder, holder(folder))
    if found is None:
        return
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(found.process.pid)
        process.terminate()
        end = time.monotonic() + seconds
        while holder(folder) == found and time.monotonic() < end:
            time.sleep(0.1)
        if holder(folder) == found:
            process.kill()


def _own(folder: Path, found: Holder | None) -> Holder | None:
    """A holder that this machine can stop."""
    here = this_process()
    if found and (found.process.machine, found.process.space) != (here.machine, here.space):
        raise UserError(f"{folder.name} is being worked on by {found}; cancel it there, or delete {folder / LOCK} if it is gone.")
    return found


def found(root: Path) -> Iterator[tuple[Path, Spec | None]]:
    """All jobs below a folder, oldest first; without what was asked for where that cannot be read, as `progress` says then."""
    folders = []
    for place, below, files in os.walk(root):
        if "spec.json" in (*below, *files):
            folders.append(Path(place))
            below.clear()
    for folder in sorted(folders, key=lambda folder: (os.lstat(folder / "spec.json").st_mtime_ns, str(folder))):
        try:
            yield folder, spec_of(folder)
        except UserError:
            yield folder, None


def enqueue(folder: Path, spec: Spec) -> None:
    """Put a job into its folder, where it waits to be started.

    Raises:
        UserError: the folder holds another job.
    """
    try:
        known = spec_of(folder)
    except UserError as error:
        tell(f"{error} It is written anew.")
        known = None
    if known is None:
        spec.save(folder / "spec.json")
    elif canonical_json(known.record()) != canonical_json(spec.record()):
        raise UserError(f"{folder} holds another job; choose another folder.")
