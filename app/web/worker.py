"""One queue for all tabs and users: a thread that starts waiting jobs one after the other, each in a process of its own."""

import subprocess
import threading
from pathlib import Path

from app import jobs


class Worker(threading.Thread):
    """Takes the oldest waiting job below a folder; jobs that were interrupted wait for a person to continue them."""

    def __init__(self, root: Path) -> None:
        super().__init__(daemon=True, name="jobs")
        self.root, self.stopped = root, threading.Event()
        self.child: subprocess.Popen[bytes] | None = None
        self.folder: Path | None = None

    def run(self) -> None:
        while not self.stopped.wait(0.3):
            if self.child is not None and self.child.poll() is None:
                continue
            if self.child is not None and self.folder is not None and self.child.returncode:
                jobs.explain(self.folder, self.child.returncode)
            self.child = None
            waiting = [folder for folder, _ in jobs.found(self.root) if jobs.progress(folder).state == "waiting"]
            if waiting:
                self.folder, self.child = waiting[0], jobs.start(waiting[0])

    def stop(self) -> None:
        """Stop taking jobs and end the one that runs; it can be continued."""
        self.stopped.set()
        if self.child is not None and self.child.poll() is None:
            self.child.terminate()
            self.child.wait()
