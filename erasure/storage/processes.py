"""Which process wrote something, in a form that another process can check later: is the writer gone for certain?

A process number alone does not tell: numbers are used again, and another machine on the same disk has numbers of its own.
"""

import hashlib
import os
import platform
import sys
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import psutil

MACHINE_ID = Path("/etc/machine-id")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Process:
    """One process of one machine. `host` is for people; the other fields decide."""

    pid: int
    host: str
    machine: str  # hash of the host's name and its machine id
    boot: str  # which start of that machine; empty where start times are absolute (macOS, Windows)
    space: str  # which set of process numbers, so that containers with one name are told apart
    started: str  # in the kernel's own unit

    @property
    def mark(self) -> str:
        """A short form for file names; `from_mark` reads it."""
        return "-".join((self.machine, self.boot, self.space, str(self.pid), self.started))

    @classmethod
    def from_mark(cls, mark: str) -> "Process":
        """The process of a mark, without its host's name.

        Raises:
            ValueError: not of that form.
        """
        machine, boot, space, pid, started_ = mark.split("-")
        return cls(int(pid), "", machine, boot, space, started_)

    def record(self) -> dict[str, str | int]:
        return asdict(self)


def this_process() -> Process:
    pid, here = os.getpid(), _surroundings()
    return Process(pid, *here, started(pid) or UNKNOWN)


def gone(process: Process) -> bool:
    """Whether a process has ended for certain. One of another machine or container cannot be asked, and counts as running."""
    here = this_process()
    if process.machine != here.machine:
        return False
    if process.boot and here.boot and process.boot != here.boot:
        return True
    if process.space != here.space:
        return False
    now = started(process.pid)
    if now is None or process.started == UNKNOWN:  # ended, or hidden from us by the system
        return not psutil.pid_exists(process.pid) or _is_zombie(process.pid)
    return now != process.started


def started(pid: int) -> str | None:
    """When a process started; None when it does not run, or may not be looked at.

    On Linux in ticks since boot: psutil converts them with the clock, which may be set between two readings.
    """
    if sys.platform != "linux":
        try:
            process = psutil.Process(pid)
            return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.6f}"
        except psutil.Error:
            return None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _is_zombie(pid: int) -> bool:
    """Ended, but not yet collected by its parent."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


@cache
def _surroundings() -> tuple[str, str, str, str]:
    """Host, machine, boot and set of process numbers. The machine id is hashed, as systemd asks of those who publish it."""
    host = platform.node() or "unknown"
    machine = hashlib.sha256(f"{host}|{_text(MACHINE_ID)}".encode()).hexdigest()[:8]
    boot = hashlib.sha256(_text(BOOT_ID).encode()).hexdigest()[:8] if _text(BOOT_ID) else ""
    try:
        space = f"{Path('/proc/self/ns/pid').stat().st_ino:x}"
    except OSError:
        space = ""
    return host, machine, boot, space


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
