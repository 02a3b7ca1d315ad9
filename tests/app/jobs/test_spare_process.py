"""The spare process of a queue: it waits, runs one job as a new process would, and never outlives its queue."""

import time
from pathlib import Path

from app.jobs import queue
from app.jobs.plan import JobSpec
from app.jobs.spare_process import SpareProcess
from app.web.queue_worker import QueueWorker
from erasure.concept import Concept
from tests import tiny


def queue_job(root: Path, source: Path, name: str) -> Path:
    spec = JobSpec(concepts=(Concept(name=name, kind="style"),), method="negative_prompt", model=str(source))
    queue.enqueue(root / spec.folder_name, spec)
    return root / spec.folder_name


def test_a_spare_process_runs_the_next_job_and_a_new_one_the_job_after_it(tmp_path: Path) -> None:
    source = tiny.save_pipeline(tmp_path / "model", size=16, levels=3)
    first, second = (queue_job(tmp_path / "jobs", source, name) for name in ("cat", "dog"))
    spare = SpareProcess()
    spare.prepare()
    waiting = spare.process
    assert waiting is not None
    child = spare.start_job(first)
    assert child is waiting and spare.process is None
    assert child.wait(120) == 0, (first / "log.txt").read_text()
    assert queue.read_progress(first).state == "done" and "done" in (first / "log.txt").read_text()
    spare.prepare()
    assert spare.process is not None
    spare.process.kill()
    spare.process.wait()
    other = spare.start_job(second)  # the spare process has ended
    assert other.wait(120) == 0
    assert queue.read_progress(second).state == "done"


def test_a_queue_that_stops_leaves_no_process(tmp_path: Path) -> None:
    worker = QueueWorker(tmp_path)
    worker.start()
    deadline = time.monotonic() + 60
    while worker.spare.process is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process = worker.spare.process
    assert process is not None and process.poll() is None
    worker.stop()
    worker.join(10)
    assert process.poll() is not None
