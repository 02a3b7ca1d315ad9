"""One queue for all tabs and users: a thread that starts waiting jobs one after the other, each in a process of its own."""

import subprocess
import threading
from pathlib import Path

from app.jobs import queue as jobs
from erasure.errors import UserError
from erasure.storage.files import print_message

PAUSE_SECONDS = 5.0  # seconds before the next job, after one that could not go on: the disk may be full


class QueueWorker(threading.Thread):
    """Takes the oldest waiting job below a folder; jobs that were interrupted wait for a person to continue them."""

    def __init__(self, root: Path) -> None:
        super().__init__(daemon=True, name="jobs")
        self.root, self.stop_event = root, threading.Event()
        self.child: subprocess.Popen[bytes] | None = None
        self.folder: Path | None = None

    def run(self) -> None:
        last_error = ""
        while not self.stop_event.wait(0.3):
            try:
                self.start_next()
                last_error = ""
            except (OSError, UserError) as error:  # a full disk, a folder that cannot be read: the page must outlive them
                if str(error) != last_error:
                    print_message(f"the queue waits: {error}")
                last_error = str(error)

    def start_next(self) -> None:
        """Let the running job go on, or start the next one."""
        if self.child is not None and self.child.poll() is None:
            return
        finished, self.child = self.child, None
        if finished is not None and self.folder is not None and finished.returncode:
            jobs.record_exit(self.folder, finished.returncode)
            if finished.returncode == jobs.EXIT_UNFINISHED and self.stop_event.wait(PAUSE_SECONDS):
                return
        waiting = [folder for folder, _ in jobs.find_jobs(self.root) if jobs.read_progress(folder).state == "waiting"]
        if waiting:
            self.folder, self.child = waiting[0], jobs.start_child(waiting[0])

    def stop(self) -> None:
        """Stop taking jobs and end the one that runs; it can be continued."""
        self.stop_event.set()
        if self.child is not None and self.child.poll() is None:
            self.child.terminate()
            self.child.wait()
