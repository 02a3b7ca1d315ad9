"""Locks whose holder a test chooses: a living child process, this process, or one that is dead."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from erasure.storage.locks import LockHolder
from erasure.storage.processes import Process, this_process

HOLD = """
import sys, time
from pathlib import Path
from erasure.storage.locks import lock_folder
with lock_folder(Path(sys.argv[1]), "a test"):
    print("in", flush=True)
    time.sleep(600)
"""


def hold_lock_in_child(folder: Path) -> "subprocess.Popen[str]":
    """A process that holds the lock of a folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "in\n"
    return process


def dead_process() -> Process:
    """This process's number, with the start time of one that had it before."""
    return replace(this_process(), start_time="1")


def plant_lock(path: Path, process: Process) -> LockHolder:
    """Write a lock file that names this process."""
    holder = replace(LockHolder.new("erasure erase"), process=process)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(holder.to_json())
    return holder
