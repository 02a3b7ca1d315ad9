"""One queue for all tabs and users: a thread that starts waiting jobs one after the other, each in its own process."""

import subprocess
import threading
from pathlib import Path

from app.jobs import queue
from erasure.errors import UserError
from erasure.storage.files import print_message

PAUSE_SECONDS = 5.0  # before the next job, after one that could not continue: the disk may be full


class QueueWorker(threading.Thread):
    """A thread that starts the oldest waiting job below a folder. Interrupted jobs wait for a person to continue them."""

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
            except (OSError, UserError) as error:  # a full disk or an unreadable folder must not stop the page
                if str(error) != last_error:
                    print_message(f"the queue waits: {error}")
                last_error = str(error)

    def start_next(self) -> None:
        """Start the next job unless one is running."""
        if self.child is not None and self.child.poll() is None:
            return
        finished, self.child = self.child, None
        if finished is not None and self.folder is not None and finished.returncode:
            queue.record_exit(self.folder, finished.returncode)
            if finished.returncode == queue.EXIT_UNFINISHED and self.stop_event.wait(PAUSE_SECONDS):
                return
        waiting = [folder for folder, _ in queue.find_jobs(self.root) if queue.read_progress(folder).state == "waiting"]
        if waiting:
            self.folder, self.child = waiting[0], queue.start_child(waiting[0])

    def stop(self) -> None:
        """Stop starting jobs and end the running one; it can be resumed."""
        self.stop_event.set()
        if self.child is not None and self.child.poll() is None:
            self.child.terminate()
            self.child.wait()
