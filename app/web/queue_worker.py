"""One queue for all tabs and users: a thread that starts waiting jobs, each in its own process; short ones do not wait behind long ones."""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from app.jobs import queue
from app.jobs.plan import JobSpec
from app.jobs.spare_process import SpareProcess
from erasure.config.registry import load_class
from erasure.errors import UserError
from erasure.methods.base import Method, Trained
from erasure.storage.files import print_message
from erasure.storage.locks import holders_of
from erasure.storage.processes import this_process

PAUSE_SECONDS = 5.0  # before the next job, after one that could not continue: the disk may be full


@dataclass
class RunningJob:
    """A job in a process of its own."""

    folder: Path
    child: "subprocess.Popen[bytes]"
    is_short: bool


class QueueWorker(threading.Thread):
    """A thread that starts the waiting jobs below a folder: one at a time, and the short ones first.

    A long job that runs stands still while a short one does, since two at once would slow each other down; its memory stays in use.
    Interrupted jobs wait for a person to continue them.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(daemon=True, name="jobs")
        self.root, self.stop_event = root, threading.Event()
        self.running: list[RunningJob] = []  # at most a long one and a short one, which began later
        self.spare = SpareProcess()

    def run(self) -> None:
        last_error = ""
        release_paused(self.root)
        while not self.stop_event.wait(0.3):
            try:
                self.start_next()
                last_error = ""
            except (OSError, UserError) as error:  # a full disk or an unreadable folder must not stop the page
                if str(error) != last_error:
                    print_message(f"the queue waits: {error}")
                last_error = str(error)

    def start_next(self) -> None:
        """Take note of jobs that ended, and start the next one if it may run now."""
        for job in [job for job in self.running if job.child.poll() is not None]:
            self.running.remove(job)
            if job.child.returncode:
                queue.record_exit(job.folder, job.child.returncode)
                if job.child.returncode == queue.EXIT_UNFINISHED and self.stop_event.wait(PAUSE_SECONDS):
                    return
        if any(job.is_short for job in self.running):
            return
        short, long = self._find_waiting()
        if short is not None:
            for job in self.running:
                pause(job.child.pid)
            self.running.append(RunningJob(short, self.spare.start_job(short), True))
            return
        for job in self.running:
            release(job.child.pid)
        if long is not None and not self.running:
            self.running.append(RunningJob(long, self.spare.start_job(long), False))
        elif not self.running:
            self.spare.prepare()  # not before: a job that runs needs the cores

    def _find_waiting(self) -> tuple[Path | None, Path | None]:
        """Return the first short and the first long job that waits."""
        short, long = None, None
        for folder, spec in queue.find_jobs(self.root):
            if queue.read_progress(folder).state != "waiting" or any(job.folder == folder for job in self.running):
                continue
            if spec is not None and is_short(spec):
                short = short or folder
            else:
                long = long or folder
        return short, long

    def stop(self) -> None:
        """Stop starting jobs and end the running ones; they can be resumed."""
        self.stop_event.set()
        if self.is_alive():
            self.join()  # it starts nothing more
        self.spare.stop()
        for job in [job for job in self.running if job.child.poll() is None]:
            job.child.terminate()
            release(job.child.pid)
            job.child.wait()


def is_short(spec: JobSpec) -> bool:
    """Return whether a job only solves for new weights, or only sets guidance: it neither trains nor measures."""
    if spec.edits or spec.suite:
        return False
    try:
        return not issubclass(load_class("erasure.methods", spec.method, Method), Trained)
    except UserError:
        return True  # it will say at once what is wrong with it


def pause(pid: int) -> None:
    """Let a process and all that it started stand still."""
    for process in _family(pid):
        with suppress(psutil.NoSuchProcess):
            process.suspend()


def release(pid: int) -> None:
    """Let a process and all that it started go on."""
    for process in _family(pid):
        with suppress(psutil.NoSuchProcess):
            if process.status() == psutil.STATUS_STOPPED:
                process.resume()


def _family(pid: int) -> Iterator[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        yield process
        yield from process.children(recursive=True)


def release_paused(root: Path) -> None:
    """Let jobs go on that a killed studio left paused: without their parent they end, and can be continued."""
    own = this_process()
    for folder, _ in queue.find_jobs(root):
        for holder in holders_of(folder):
            if (holder.process.machine_id, holder.process.pid_namespace) == (own.machine_id, own.pid_namespace):
                release(holder.process.pid)
