"""Short jobs do not wait behind long ones: a long one stands still meanwhile, goes on afterwards, and can be cancelled at any time."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from app.jobs import queue
from app.jobs.plan import JobSpec
from app.web import queue_worker
from app.web.queue_worker import QueueWorker, is_short, pause, release, release_paused
from erasure.concept import Concept
from erasure.storage.locks import lock_folder

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


def spec(method: str, **changes: object) -> JobSpec:
    return JobSpec(concepts=(Concept(name="neon"),), method=method, **changes)


def enqueue(root: Path, job: JobSpec) -> Path:
    queue.enqueue(root / job.folder_name, job)
    return root / job.folder_name


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Path, "subprocess.Popen[bytes]"]]]:
    """Jobs that a queue starts, in order; each is a process that only sleeps."""
    jobs: list[tuple[Path, subprocess.Popen[bytes]]] = []

    def start(folder: Path) -> "subprocess.Popen[bytes]":
        jobs.append((folder, subprocess.Popen(SLEEPER)))
        return jobs[-1][1]

    monkeypatch.setattr(queue, "start_child", start)
    monkeypatch.setattr(queue_worker.SpareProcess, "prepare", lambda self: None)
    yield jobs
    for _, child in jobs:
        child.kill()
        child.wait()


def wait_for_status(pid: int, status: str) -> None:
    deadline = time.monotonic() + 30
    while psutil.Process(pid).status() != status and time.monotonic() < deadline:
        time.sleep(0.02)
    assert psutil.Process(pid).status() == status


def end(folder: Path, child: "subprocess.Popen[bytes]") -> None:
    child.kill()
    child.wait()
    (folder / "cancelled").touch()


def test_what_counts_as_short() -> None:
    assert is_short(spec("uce")) and is_short(spec("negative_prompt"))
    assert not is_short(spec("esd"))
    assert not is_short(spec("uce", suite="pocket"))
    assert not is_short(JobSpec(edits=("x",), suite="pocket"))


def test_a_long_job_stands_still_while_short_ones_run(tmp_path: Path, started: list) -> None:
    worker = QueueWorker(tmp_path)
    long = enqueue(tmp_path, spec("esd"))
    worker.start_next()
    first, second = enqueue(tmp_path, spec("uce")), enqueue(tmp_path, spec("uce", seed=1))
    other_long = enqueue(tmp_path, spec("esd", seed=1))
    worker.start_next()
    worker.start_next()
    assert [folder for folder, _ in started] == [long, first]
    wait_for_status(started[0][1].pid, psutil.STATUS_STOPPED)
    end(first, started[1][1])
    worker.start_next()
    assert started[2][0] == second
    wait_for_status(started[0][1].pid, psutil.STATUS_STOPPED)
    end(second, started[2][1])
    worker.start_next()
    wait_for_status(started[0][1].pid, psutil.STATUS_SLEEPING)
    assert len(started) == 3, "two long jobs never run at once"
    end(long, started[0][1])
    worker.start_next()
    assert started[3][0] == other_long
    worker.stop()


def test_a_job_that_stands_still_is_ended_with_its_queue(tmp_path: Path, started: list) -> None:
    worker = QueueWorker(tmp_path)
    enqueue(tmp_path, spec("esd"))
    worker.start_next()
    enqueue(tmp_path, spec("uce"))
    worker.start_next()
    wait_for_status(started[0][1].pid, psutil.STATUS_STOPPED)
    worker.stop()
    assert all(child.poll() is not None for _, child in started)


def test_a_job_that_stands_still_can_be_cancelled(tmp_path: Path) -> None:
    """A process that holds the job's lock, and ends at SIGTERM as jobs do."""
    folder = enqueue(tmp_path, spec("esd"))
    code = (
        "import sys, time; from pathlib import Path; from erasure.storage.locks import lock_folder\n"
        "with lock_folder(Path(sys.argv[1]), 'a test'):\n    print('locked', flush=True); time.sleep(600)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline()
    pause(child.pid)
    wait_for_status(child.pid, psutil.STATUS_STOPPED)
    started = time.monotonic()
    queue.cancel(folder, timeout=60)
    assert child.wait(60) == -15, "it must end by the signal, not be killed after the timeout"
    assert time.monotonic() - started < 60
    assert queue.read_progress(folder).state == "cancelled"


def test_a_new_studio_releases_what_a_killed_one_left_paused(tmp_path: Path) -> None:
    folder = enqueue(tmp_path, spec("esd"))
    with lock_folder(folder, "a test"):  # this process holds the lock and is not paused
        release_paused(tmp_path)
    child = subprocess.Popen(SLEEPER)
    try:
        pause(child.pid)
        wait_for_status(child.pid, psutil.STATUS_STOPPED)
        release(child.pid)
        wait_for_status(child.pid, psutil.STATUS_SLEEPING)
        release(os.getpid())  # one that runs is left alone
    finally:
        child.kill()
        child.wait()
