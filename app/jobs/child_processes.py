"""Run the long part of an audit in several processes on this machine; each takes a shard, as with --shard."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence

from app.child_command import child_argv
from erasure.errors import UserError


def run_shards(shards: Sequence[Sequence[str]]) -> None:
    """Run `erasure audit` with each of several argument lists, one shard each, in a process of its own; return when all are done.

    The first process shows its progress. The output of the others is shown if they fail. All end with this process, even if it is killed.

    Raises:
        UserError: A process failed. Finished work stays.
    """
    workers = len(shards)
    threads = max(1, len(os.sched_getaffinity(0)) // workers) if hasattr(os, "sched_getaffinity") else 1
    env = {"OMP_NUM_THREADS": str(threads), **os.environ}
    with tempfile.TemporaryFile("w+") as stderr_file:
        processes = []
        for i, arguments in enumerate(shards, 1):
            child = child_argv("app.shard_process", str(os.getpid()), "audit", *arguments)
            processes.append(subprocess.Popen(child, env=env, stdout=subprocess.DEVNULL, stderr=None if i == 1 else stderr_file))
        try:
            codes = [process.wait() for process in processes]
        finally:
            for process in processes:
                process.kill()  # does nothing to processes that have ended
        stderr_file.seek(0)
        if any(codes):
            sys.stderr.write("".join(stderr_file.readlines()[-20:]))
            raise UserError(f"{sum(map(bool, codes))} of {workers} workers failed; the same command continues with what is done.")


def exit_with_parent(parent_pid: int) -> None:
    """End this process soon after its parent ends, so that no orphan uses the cores."""

    def wait_for_parent() -> None:
        while os.getppid() == parent_pid:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=wait_for_parent, daemon=True).start()
