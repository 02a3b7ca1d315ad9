"""Jobs as folders: what a folder holds says how far its job got. Work happens in child processes; this module imports no torch.

<job>/spec.json     what was asked for; its presence queues the job
<job>/claim.json    which process works on it, and in which phase
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
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from app.command_line import command
from app.plan import Spec
from erasure.errors import UserError
from erasure.run import canonical_json, read_json, write_json

State = Literal["waiting", "running", "done", "failed", "interrupted", "cancelled"]


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
    """State and progress of the job in a folder."""
    if (folder / "done.json").exists():
        return Progress("done", seconds=read_json(folder / "done.json")["seconds"], loss=losses(folder))
    if (folder / "cancelled").exists():
        return Progress("cancelled", loss=losses(folder))
    if (folder / "error.json").exists():
        return Progress("failed", error=read_json(folder / "error.json")["error"], loss=losses(folder))
    claim = read_json(folder / "claim.json") if (folder / "claim.json").exists() else None
    if claim is None:
        return Progress("waiting")
    if not alive(claim):
        return Progress("interrupted", loss=losses(folder))
    loss = losses(folder)
    done = min(counted(folder, claim["phase"]), claim["total"])
    return Progress("running", claim["phase"], done, claim["total"], time.time() - claim["since"], loss, first=min(done, claim["first"]))


def counted(folder: Path, phase: str) -> int:
    """Steps or pictures that the files of a job show."""
    if phase == "erasing":
        return len(losses(folder))
    return sum(1 for _ in folder.glob("audit-*/images/*/*.png")) if phase == "auditing" else 0


def losses(folder: Path) -> tuple[float, ...]:
    """The sum of a step's losses, for every step in the training log; a line being written is left out."""
    path = folder / "edit" / "train.jsonl"
    if not path.exists():
        return ()
    return _parsed(path, path.stat().st_size)


@lru_cache(maxsize=64)  # pages ask every second, for every job they list
def _parsed(path: Path, size: int) -> tuple[float, ...]:
    lines = path.read_bytes()[:size].decode("utf-8").split("\n")[:-1]
    return tuple(sum(value for key, value in json.loads(line).items() if key != "step") for line in lines)


def alive(claim: dict[str, Any]) -> bool:
    """Whether the process that claimed a job still runs; one of another machine cannot be asked and counts as running."""
    return claim["host"] != os.uname().nodename or (claim["started"] is not None and started(claim["pid"]) == claim["started"])


def started(pid: int) -> str | None:
    """When a process started, in the kernel's own unit, so that a recycled process number is told apart; None when it does not run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        if sys.platform == "linux":
            return None
        found = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout.strip()
        return found or None
    return None if fields[0] == "Z" else fields[19]


def claim(folder: Path, phase: str, total: int) -> None:
    """Say that this process works on the job, and begins a phase of so many steps or pictures."""
    record = {
        "pid": os.getpid(),
        "host": os.uname().nodename,
        "started": started(os.getpid()),
        "phase": phase,
        "total": total,
        "since": time.time(),
        "first": counted(folder, phase),
    }
    write_json(folder / "claim.json", record)


def start(folder: Path) -> "subprocess.Popen[bytes]":
    """A child process that does the job in a folder. It ends when this process does, however that ends."""
    requeue(folder)
    with (folder / "log.txt").open("ab") as log:
        argv = command("app.cli", "jobs", "run-one", str(folder / "spec.json"), "--parent", str(os.getpid()))
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def requeue(folder: Path) -> None:
    """Forget that a job failed, was cancelled or interrupted: it waits again, and continues where it stood."""
    for name in ("error.json", "cancelled", "claim.json"):
        (folder / name).unlink(missing_ok=True)


def explain(folder: Path, code: int) -> None:
    """Leave a reason for a child that could not say itself why it ended, such as one killed for memory."""
    if any((folder / name).exists() for name in ("error.json", "cancelled", "done.json")):
        return
    reason = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    hint = "; out of memory?" if code == -signal.SIGKILL else ""
    write_json(folder / "error.json", {"error": f"the process {reason}{hint} (see {folder / 'log.txt'})", "trace": ""})


def cancel(folder: Path, seconds: float = 10.0) -> None:
    """Stop the job in a folder; what it has made so far stays and can be continued.

    Raises:
        UserError: it is done, or another machine works on it.
    """
    state = progress(folder).state
    if state == "done":
        raise UserError(f"{folder.name} is done; there is nothing to cancel.")
    holder = read_json(folder / "claim.json") if state == "running" else None
    if holder and holder["host"] != os.uname().nodename:
        raise UserError(f"{folder.name} is being worked on by {holder['host']}; cancel it there, or delete {folder / 'claim.json'}.")
    (folder / "cancelled").touch()
    if holder is None:
        return
    os.kill(holder["pid"], signal.SIGTERM)
    end = time.monotonic() + seconds
    while alive(holder) and time.monotonic() < end:
        time.sleep(0.1)
    if alive(holder):
        os.kill(holder["pid"], signal.SIGKILL)


def found(root: Path) -> Iterator[tuple[Path, Spec]]:
    """All jobs below a folder, oldest first."""
    files = sorted(root.glob("**/spec.json"), key=lambda path: (path.stat().st_mtime_ns, str(path)))
    return ((path.parent, Spec.load(path)) for path in files)


def enqueue(folder: Path, spec: Spec) -> None:
    """Put a job into its folder, where it waits to be started.

    Raises:
        UserError: the folder holds another job.
    """
    file = folder / "spec.json"
    if not file.exists():
        spec.save(file)
    elif canonical_json(read_json(file)) != canonical_json(spec.record()):
        raise UserError(f"{folder} holds another job; choose another folder.")
