"""Jobs as folders: the files in a folder tell the state of its job. Work happens in child processes; this module does not import torch.

<job>/spec.json     the specification; its presence queues the job
<job>/.lock         which process works on it; see erasure.storage.locks
<job>/claim.json    the phase of that process, or its last phase if it ended
<job>/edit/         the run folder of the erasure
<job>/audit-*/      the audits
<job>/log.txt       the output of the process
<job>/error.json    why the job stopped
<job>/cancelled     marks that a person stopped the job
<job>/done.json     marks that the job is complete; written last
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

from app.child_command import child_argv
from app.jobs.plan import JobSpec
from erasure.config.validation import check_mapping
from erasure.errors import UserError
from erasure.storage.files import (
    DamagedFile,
    canonical_json,
    clear_dead_parts,
    clear_path,
    is_path_taken,
    print_message,
    read_checksummed_json,
    to_user_error,
    write_checksummed_json,
)
from erasure.storage.locks import LOCK_FILE, LockHolder, holder_of, holders_of
from erasure.storage.processes import this_process

JobState = Literal["waiting", "running", "done", "failed", "interrupted", "cancelled", "broken"]
STOPPED_STATES = ("failed", "cancelled", "broken")  # run again only when a person asks for it
FLEET_COMMAND = "erasure jobs run --fleet"  # names a fleet's workers as holders of a job's lock
EXIT_UNFINISHED = 2  # exit code of a child whose job the same command continues


class _DoneRecord(TypedDict):
    edits: list[str]
    audits: list[str]
    seconds: float


class _ErrorRecord(TypedDict):
    error: str
    trace: str


class _ClaimRecord(TypedDict):
    phase: str
    total: int
    started_at: float
    done_before: int


@dataclass(frozen=True)
class JobProgress:
    """The progress of a job, read from its folder."""

    state: JobState
    phase: str = ""
    done: int = 0
    total: int = 0
    seconds: float = 0.0  # since the phase began; of a finished job, what it took
    loss: tuple[float, ...] = ()  # per training step so far
    error: str = ""
    done_before: int = 0  # how many of `done` existed before the phase began

    @property
    def rate(self) -> float | None:
        """Steps or images per second in this phase; None while unknown."""
        is_known = self.state == "running" and self.done > self.done_before and self.seconds
        return (self.done - self.done_before) / self.seconds if is_known else None

    @property
    def eta(self) -> float | None:
        """Seconds left in this phase at this rate; None while unknown."""
        return (self.total - self.done) / self.rate if self.rate else None


def read_progress(folder: Path) -> JobProgress:
    """Return state and progress of the job in a folder. An unusable file makes the job broken; nothing is raised."""
    try:
        return _read_progress(folder)
    except (UserError, OSError) as error:
        return JobProgress("broken", error=str(error))


def _read_progress(folder: Path) -> JobProgress:
    spec_of(folder)
    if is_path_taken(folder / "done.json"):
        return JobProgress("done", seconds=_read_record(folder / "done.json", _DoneRecord)["seconds"], loss=read_losses(folder))
    if is_path_taken(folder / "cancelled"):
        return JobProgress("cancelled", loss=read_losses(folder))
    if is_path_taken(folder / "error.json"):
        return JobProgress("failed", error=_read_record(folder / "error.json", _ErrorRecord)["error"], loss=read_losses(folder))
    claim_record = _read_record(folder / "claim.json", _ClaimRecord) if is_path_taken(folder / "claim.json") else None
    if holder_of(folder) is None:
        return JobProgress("interrupted" if claim_record else "waiting", loss=read_losses(folder))
    if claim_record is None:
        return JobProgress("running", "starting")
    loss, total = read_losses(folder), claim_record["total"]
    done = min(count_done(folder, claim_record["phase"]), total)
    seconds, done_before = time.time() - claim_record["started_at"], min(done, claim_record["done_before"])
    return JobProgress("running", claim_record["phase"], done, total, seconds, loss, done_before=done_before)


def _read_record(path: Path, schema: Any) -> dict[str, Any]:
    record = read_checksummed_json(path, required=False)
    check_mapping(record, schema, str(path))
    return record


def spec_of(folder: Path) -> JobSpec | None:
    """Return the specification of a job; None where nothing is queued.

    Raises:
        UserError: Its spec.json is damaged or invalid.
    """
    path = folder / "spec.json"
    if not is_path_taken(path):
        return None
    try:
        stat = path.stat()
    except OSError as error:
        raise DamagedFile(f"{path} is damaged ({error.strerror}).") from error
    return _load_spec(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=1024)  # the page asks every second for every job
def _load_spec(path: Path, mtime_ns: int, size: int) -> JobSpec:
    return JobSpec.load(path)


def count_done(folder: Path, phase: str) -> int:
    """Count the finished steps or images of a phase from the files of a job."""
    if phase == "erasing":
        return len(read_losses(folder))
    return sum(1 for _ in folder.glob("audit-*/images/*/*.png")) if phase == "auditing" else 0


def read_losses(folder: Path) -> tuple[float, ...]:
    """Return the sum of the losses of every step in the training log. An unfinished last line is left out."""
    path = folder / "edit" / "train.jsonl"
    try:
        return _parse_losses(path, path.stat().st_size) if path.is_file() else ()
    except OSError:
        return ()


@lru_cache(maxsize=64)  # the page asks every second for every job it lists
def _parse_losses(path: Path, size: int) -> tuple[float, ...]:
    step_losses = []
    for line in path.read_bytes()[:size].decode("utf-8", "replace").split("\n")[:-1]:
        with suppress(ValueError, TypeError, AttributeError, RecursionError):  # skip damaged lines
            step_losses.append(float(sum(value for key, value in json.loads(line).items() if key != "step")))
    return tuple(step_losses)


def write_claim(folder: Path, phase: str, total: int) -> None:
    """Record that this process, which holds the job's lock, begins a phase of `total` steps or images."""
    record = {"phase": phase, "total": total, "started_at": time.time(), "done_before": count_done(folder, phase)}
    write_checksummed_json(folder / "claim.json", record)


def start_child(folder: Path) -> "subprocess.Popen[bytes]":
    """Start a child process that runs the job in a folder. It ends when this process ends, even if this one is killed.

    If another process has locked the job by then, or a person has cancelled it, the child does nothing and exits with EXIT_UNFINISHED.

    Raises:
        UserError: log.txt cannot be written.
    """
    try:
        log = (folder / "log.txt").open("ab")
    except OSError as error:
        raise to_user_error(folder / "log.txt", error) from error
    with log:
        argv = child_argv("app.cli", "jobs", "run-one", str(folder / "spec.json"), "--parent-pid", str(os.getpid()))
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def requeue(folder: Path) -> None:
    """Let a failed, cancelled, interrupted or broken job wait again. It will resume where it stopped.

    Raises:
        UserError: Its spec.json is damaged or invalid, or a folder has the name of one of its files.
    """
    spec_of(folder)
    damaged = ("done.json",) if read_progress(folder).state == "broken" else ()
    for name in ("error.json", "cancelled", "claim.json", *damaged):
        clear_path(folder / name)


def record_exit(folder: Path, code: int) -> None:
    """Write error.json for a child that could not, such as one killed for memory."""
    clear_dead_parts(folder)
    if code == EXIT_UNFINISHED or any(is_path_taken(folder / name) for name in ("error.json", "cancelled", "done.json")):
        return
    reason = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    hint = "; out of memory?" if code == -getattr(signal, "SIGKILL", 9) else ""
    write_checksummed_json(folder / "error.json", {"error": f"the process {reason}{hint} (see {folder / 'log.txt'})", "trace": ""})


def last_log_line(folder: Path) -> str:
    """Return the last line of a job's log; empty where there is none."""
    try:
        with (folder / "log.txt").open("rb") as log:
            log.seek(max(0, (folder / "log.txt").stat().st_size - 4096))
            lines = log.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    return next((line for line in reversed(lines) if line.strip()), "")


def cancel(folder: Path, timeout: float = 10.0) -> None:
    """Stop the job in a folder. Its files stay, and it can be resumed. A fleet sees the mark and stops its workers itself.

    This function writes the mark before it looks for a lock holder, and a process takes the lock before it looks for the mark. So one of
    the two always sees the other.

    Raises:
        UserError: The job is done or broken, or another machine works on it without a fleet.
    """
    job_progress = read_progress(folder)
    if job_progress.state == "done":
        raise UserError(f"{folder.name} is done; there is nothing to cancel.")
    if job_progress.state == "broken":
        raise UserError(f"{folder.name} is broken: {job_progress.error}")
    _find_holders_to_stop(folder)
    try:
        (folder / "cancelled").touch()
    except OSError as error:
        raise to_user_error(folder / "cancelled", error) from error
    for lock_holder in _find_holders_to_stop(folder):
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(lock_holder.process.pid)
            process.terminate()
            process.resume()  # a process that stands still would not notice
            deadline = time.monotonic() + timeout
            while lock_holder in holders_of(folder) and time.monotonic() < deadline:
                time.sleep(0.1)
            if lock_holder in holders_of(folder):
                process.kill()


def _find_holders_to_stop(folder: Path) -> list[LockHolder]:
    """Return the lock holders outside a fleet, after a check that this machine can stop them."""
    own, holders = this_process(), [holder for holder in holders_of(folder) if holder.command != FLEET_COMMAND]
    for lock_holder in holders:
        if (lock_holder.process.machine_id, lock_holder.process.pid_namespace) != (own.machine_id, own.pid_namespace):
            hint = f"cancel it there, or delete {folder / LOCK_FILE} if it is gone."
            raise UserError(f"{folder.name} is being worked on by {lock_holder}; {hint}")
    return holders


def find_jobs(root: Path) -> Iterator[tuple[Path, JobSpec | None]]:
    """Yield all jobs below a folder, oldest first. The spec is None where it cannot be read; `read_progress` tells why."""
    folders = []
    for path, subfolders, files in os.walk(root):
        if "spec.json" in (*subfolders, *files):
            folders.append(Path(path))
            subfolders.clear()
    for folder in sorted(folders, key=lambda path: (os.lstat(path / "spec.json").st_mtime_ns, str(path))):
        try:
            yield folder, spec_of(folder)
        except UserError:
            yield folder, None


def enqueue(folder: Path, spec: JobSpec) -> None:
    """Write a job into its folder, where it waits to be started.

    Raises:
        UserError: The folder holds another job.
    """
    try:
        existing_spec = spec_of(folder)
    except UserError as error:
        print_message(f"{error} It is written again.")
        existing_spec = None
    if existing_spec is None:
        spec.save(folder / "spec.json")
    elif canonical_json(existing_spec.record()) != canonical_json(spec.record()):
        raise UserError(f"{folder} holds another job; choose another folder.")
