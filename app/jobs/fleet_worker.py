"""The side of a fleet's workers: one process per GPU or per group of cores, which keeps its model from job to job."""

import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from app.jobs.fleet_tasks import Outcome, Task, TaskResult, Work, WorkerInfo
from erasure.errors import Unfinished, UserError
from erasure.storage import processes
from erasure.storage.locks import FolderLocked, holders_of
from erasure.storage.processes import Process, this_process


class FleetWorker:
    """Runs the stages that it is given, one at a time. Ray makes it an actor.

    Args:
        folder: the current folder of the command, from which relative paths of jobs count.
        work: what a stage does; `StageRunner().run_stage` if None.
    """

    def __init__(self, folder: str, work: Work | None = None) -> None:
        try:
            os.chdir(folder)
        except OSError as error:
            raise UserError(
                f"{folder} cannot be entered on {os.uname().nodename} ({error.strerror}); a fleet needs a shared disk."
            ) from error
        self._work = work

    def introduce(self) -> WorkerInfo:
        """Return who this worker is. An answer means that it can take a task."""
        import ray

        gpu, cores = os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("OMP_NUM_THREADS", "1")
        device = f"GPU {gpu}" if gpu else f"{cores} core{'s' * (cores != '1')}"
        return WorkerInfo(process=this_process(), node_id=ray.get_runtime_context().get_node_id(), device=device)

    def run(self, task: Task, ended: Sequence[Process]) -> TaskResult:
        """Run one stage. Its output goes to the job's log.txt; an error is part of the result, and not raised.

        Args:
            ended: workers that have ended, by Ray's word; their locks do not count.
        """
        processes.count_as_ended(ended)
        started = time.monotonic()
        if self._work is None:  # now, since it imports torch
            from app.jobs.stage_runner import StageRunner

            self._work = StageRunner().run_stage
        outcome, message, locked_by = run_logged(task, self._work)
        return TaskResult(outcome=outcome, seconds=time.monotonic() - started, message=message, locked_by=locked_by)


def run_logged(task: Task, work: Work) -> tuple[Outcome, str, Process | None]:
    """Do the work of a stage with its output in the job's log. Return the outcome, why it is not done, and who works on it instead."""
    try:
        with output_in(task.folder / "log.txt"):
            try:
                work(task)
            except Exception as error:
                print(f"error: {error}" if isinstance(error, UserError | Unfinished) else traceback.format_exc(), file=sys.stderr)
                raise
        return "done", "", None
    except FolderLocked as error:
        holders = holders_of(task.folder)
        return "locked", str(error), holders[0].process if holders else None
    except (Unfinished, OSError) as error:
        return "unfinished", str(error), None
    except Exception as error:
        return "failed", str(error), None


@contextmanager
def output_in(path: Path) -> Iterator[None]:
    """Append what this process and its libraries print to a file, also what they print past sys.stdout.

    Raises:
        OSError: The file cannot be written.
    """
    saved = [os.dup(fd) for fd in (1, 2)]
    try:
        with path.open("ab", buffering=0) as log:
            for fd in (1, 2):
                os.dup2(log.fileno(), fd)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for fd, original in zip((1, 2), saved, strict=True):
            os.dup2(original, fd)
            os.close(original)
