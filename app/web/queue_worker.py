"""One queue for all tabs and users: a thread that starts waiting jobs one after the other, each in a process of its own."""

import subprocess
import threading
from pathlib import Path

from app.jobs import queue as jobs
from erasure.errors import UserError
from erasure.storage.files import tell

PAUSE = 5.0  # seconds before the next job, after one that could not go on: the disk may be full


class Worker(threading.Thread):
    """Takes the oldest waiting job below a folder; jobs that were interrupted wait for a person to continue them."""

    def __init__(self, root: Path) -> None:
        super().__init__(daemon=True, name="jobs")
        self.root, self.stopped = root, threading.Event()
        self.child: subprocess.Popen[bytes] | None = None
        self.folder: Path | None = None

    def run(self) -> None:
        said = ""
        while not self.stopped.wait(0.3):
            try:
                self.look()
                said = ""
            except (OSError, UserError) as error:  # a full disk, a folder that cannot be read: the page must outlive them
                if str(error) != said:
                    tell(f"the queue waits: {error}")
                said = str(error)

    def look(self) -> None:
        """Let the running job go on, or start the next one."""
        if self.child is not None and self.child.poll() is None:
            return
        ended, self.child = self.child, None
        if ended is not None and self.folder is not None and ended.returncode:
            jobs.explain(self.folder, ended.returncode)
            if ended.returncode == jobs.UNFINISHED and self.stopped.wait(PAUSE):
                return
        waiting = [folder for folder, _ in jobs.found(self.root) if jobs.progress(folder).state == "waiting"]
        if waiting:
            self.folder, self.child = waiting[0], jobs.start(waiting[0])

    def stop(self) -> None:
        """Stop taking jobs and end the one that runs; it can be continued."""
        self.stopped.set()
        if self.child is not None and self.child.poll() is None:
            self.child.terminate()
            self.child.wait()
