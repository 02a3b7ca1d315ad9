"""Work for the workers of a fleet that does not erase, in a module that they import without torch."""

import os
import time

from app.jobs import queue
from app.jobs.fleet_tasks import Task
from erasure.errors import Unfinished
from erasure.storage.locks import lock_folder
from erasure.storage.run import write_json


def note_process(task: Task) -> None:
    """The work of a job that only writes which process had it, and that it is done."""
    with lock_folder(task.folder, queue.FLEET_COMMAND):
        (task.folder / "process").write_text(str(os.getpid()))
        time.sleep(0.05)
        write_json(task.folder / "done.json", {"edits": [], "audits": [], "seconds": 0.0})


def die(task: Task) -> None:
    """The work of a job that takes its worker with it."""
    if task.spec.seed == 0:
        os._exit(1)
    note_process(task)


def wait_for_cancel(task: Task) -> None:
    """The work of a job that only ends with its process; the next one sees the mark."""
    with lock_folder(task.folder, queue.FLEET_COMMAND):
        if (task.folder / "cancelled").exists():
            raise Unfinished("cancelled")
        if task.spec.seed == 0:
            time.sleep(600)
    note_process(task)
