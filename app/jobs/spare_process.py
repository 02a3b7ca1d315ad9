"""A spare process for the next job: loading the libraries takes seconds, which the first job after a pause need not wait for."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from app.child_command import child_argv
from app.jobs import queue


@dataclass
class SpareProcess:
    """At most one process that waits for a job."""

    process: "subprocess.Popen[bytes] | None" = None

    def prepare(self) -> None:
        """Start the process if there is none; it ends with this one."""
        if self.process is None or self.process.poll() is not None:
            argv = child_argv("app.job_process", str(os.getpid()))
            nothing = subprocess.DEVNULL
            self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=nothing, stderr=nothing, start_new_session=True)

    def start_job(self, folder: Path) -> "subprocess.Popen[bytes]":
        """Let the spare process run the job in a folder, or a new process if there is none. Raises as `queue.start_child`."""
        process, self.process = self.process, None
        if process is not None and process.poll() is None and process.stdin is not None:
            try:
                process.stdin.write(os.fsencode((folder / "spec.json").absolute()) + b"\n")
                process.stdin.close()
                return process
            except BrokenPipeError:
                pass  # it ended just now
        return queue.start_child(folder)

    def stop(self) -> None:
        """End the process, unless it has a job."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
