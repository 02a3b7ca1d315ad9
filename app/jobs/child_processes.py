"""Processes that share the long part of an audit on this machine; each takes a shard, as with --shard, and this one takes the first."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import IO

from app.child_command import child_argv
from erasure.errors import Unfinished, UserError

USAGE_ERROR = 1  # exit code of a process whose input is wrong
LINES_SHOWN = 20  # of the output of a process that failed


@dataclass(frozen=True)
class ShardProcesses:
    """Processes that have loaded their libraries, or are about to, and wait for their shard; without this one.

    Attributes:
        outputs: what each of them prints.
    """

    processes: Sequence["subprocess.Popen[str]"]
    outputs: Sequence[IO[str]]

    def begin(self, shards: Sequence[Sequence[str]]) -> None:
        """Let each process run `erasure audit` with its own arguments."""
        for process, arguments in zip(self.processes, shards, strict=True):
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # it has ended; `wait` says so
                process.stdin.write(json.dumps(["audit", *arguments]) + "\n")
                process.stdin.flush()

    def wait(self) -> None:
        """Return when all shards are done.

        Raises:
            UserError: A process failed; Unfinished, unless the input is wrong. Finished work stays.
        """
        codes = [process.wait() for process in self.processes]
        for code, output in zip(codes, self.outputs, strict=True):
            if code:
                output.seek(0)
                sys.stderr.write("".join(output.readlines()[-LINES_SHOWN:]))
        if any(codes):
            failure = UserError if USAGE_ERROR in codes else Unfinished
            raise failure(f"{sum(map(bool, codes))} of {len(codes) + 1} workers failed; the same command continues with what is done.")


@contextmanager
def start_shard_processes(count: int) -> Iterator[ShardProcesses]:
    """Start processes that load their libraries while this one prepares; all end with the block, or with this process if it is killed."""
    env = {"OMP_NUM_THREADS": str(threads_of(count + 1)), **os.environ}
    argv = child_argv("app.shard_process", str(os.getpid()))
    with ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile("w+", errors="replace")) for _ in range(count)]
        processes = []
        try:
            for output in outputs:
                processes.append(
                    subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=output, text=True)
                )
            yield ShardProcesses(processes, outputs)
        finally:
            for process in processes:
                process.kill()  # does nothing to processes that have ended


def threads_of(workers: int) -> int:
    """Return the threads of each of several processes that share the cores of this process."""
    return max(1, len(os.sched_getaffinity(0)) // workers) if hasattr(os, "sched_getaffinity") else 1


@contextmanager
def as_one_of(workers: int) -> Iterator[None]:
    """Compute with as many threads as each of the other workers has."""
    import torch

    before = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads_of(workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def exit_with_parent(parent_pid: int) -> None:
    """End this process soon after its parent ends, so that no orphan uses the cores."""

    def wait_for_parent() -> None:
        while os.getppid() == parent_pid:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=wait_for_parent, daemon=True).start()
