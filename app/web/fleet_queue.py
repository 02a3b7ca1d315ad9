"""The studio's queue on a fleet: a thread that gives waiting jobs to the workers of a Ray cluster."""

import threading
from pathlib import Path

from app.jobs import cluster, queue
from app.jobs.fleet import Fleet
from erasure.errors import UserError
from erasure.storage.files import print_message


class FleetQueue(threading.Thread):
    """A thread that gives every job that waits below a folder to a fleet, on the cluster that this process is connected to.

    Interrupted jobs wait for a person to continue them.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(daemon=True, name="fleet")
        self.root, self.stop_event, self.fleet = root, threading.Event(), Fleet()
        self.submitted: set[Path] = set()

    def run(self) -> None:
        last_error = ""
        while not self.stop_event.wait(0.3):
            try:
                self.submit_waiting()
                self.submitted -= {job.folder for job in self.fleet.step(0.3)} if self.fleet.unfinished else set()
                last_error = ""
            except (OSError, UserError) as error:  # a full disk or a cluster without workers must not stop the page
                if str(error) != last_error:
                    print_message(f"the queue waits: {error}")
                last_error = str(error)

    def submit_waiting(self) -> None:
        """Submit the jobs that wait and are not under way."""
        for folder, spec in queue.find_jobs(self.root):
            if spec and folder.absolute() not in self.submitted and queue.read_progress(folder).state == "waiting":
                self.fleet.submit(folder, spec)
                self.submitted.add(folder.absolute())

    def stop(self) -> None:
        """End the running jobs with their workers; they can be resumed."""
        self.stop_event.set()
        if self.is_alive():
            self.join()
        cluster.disconnect()
