"""An audit's long part in several processes of this machine: each takes a share, as --shard does."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence

from app.child_command import command
from erasure.errors import UserError
from erasure.storage.locks import part_of_work


def together(argv: Sequence[str], workers: int) -> None:
    """Run `erasure audit argv` in that many processes, one share each; returns when all are done.

    The first process shows its progress; what another one said is shown if it fails. They end with this process, also when it is killed.

    Raises:
        UserError: a process failed; what is done stays.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // workers) if hasattr(os, "sched_getaffinity") else 1
    env = {"OMP_NUM_THREADS": str(threads), **os.environ}
    with tempfile.TemporaryFile("w+") as said:
        started = []
        for i in range(1, workers + 1):
            words = [*(a for a in argv if a != "--fresh"), "--workers", "1", "--shard", f"{i}/{workers}"]  # the last of two flags counts
            child = command("app.jobs.child_processes", str(os.getpid()), "audit", *words)
            started.append(subprocess.Popen(child, env=env, stdout=subprocess.DEVNULL, stderr=None if i == 1 else said))
        try:
            codes = [process.wait() for process in started]
        finally:
            for process in started:
                process.kill()  # nothing to those that ended
        said.seek(0)
        if any(codes):
            sys.stderr.write("".join(said.readlines()[-20:]))
            raise UserError(f"{sum(map(bool, codes))} of {workers} workers failed; the same command continues with what is done.")


def die_with(parent: int) -> None:
    """End this process soon after its parent has ended, so that no orphan keeps the cores."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    """A worker's own process: the number of the one that started it, then a command line."""
    from app import cli

    die_with(int(sys.argv[1]))
    part_of_work(int(sys.argv[1]))
    return cli.main(sys.argv[2:])
