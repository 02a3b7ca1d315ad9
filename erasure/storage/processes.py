"""The identity of a process, by which another process can check later whether it has certainly ended.

A process id alone is not enough: ids are reused, and another machine on the same disk has ids of its own.
"""

import hashlib
import os
import platform
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import psutil

MACHINE_ID = Path("/etc/machine-id")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
UNKNOWN = "unknown"

_ended_marks: set[str] = set()  # of processes of other machines that somebody knows to have ended


@dataclass(frozen=True)
class Process:
    """One process on one machine. `host` is for people; the other fields identify it."""

    pid: int
    host: str
    machine_id: str  # hash of the host name and the machine id
    boot_id: str  # hash of the boot id; empty where start times are absolute (macOS, Windows)
    pid_namespace: str  # distinguishes containers of one host name
    start_time: str  # in the kernel's own unit

    @property
    def mark(self) -> str:
        """A short form for file names; `from_mark` parses it."""
        return "-".join((self.machine_id, self.boot_id, self.pid_namespace, str(self.pid), self.start_time))

    @classmethod
    def from_mark(cls, mark: str) -> "Process":
        """Parse a mark; the host name is empty.

        Raises:
            ValueError: not a mark.
        """
        machine_id, boot_id, pid_namespace, pid, start_time = mark.split("-")
        return cls(int(pid), "", machine_id, boot_id, pid_namespace, start_time)

    def to_dict(self) -> dict[str, str | int]:
        """Return the fields as a JSON record."""
        return asdict(self)


def this_process() -> Process:
    """Return the identity of the running process."""
    pid, host_identity = os.getpid(), _host_identity()
    return Process(pid, *host_identity, start_time_of(pid) or UNKNOWN)


def count_as_ended(processes: Iterable[Process]) -> None:
    """Take somebody's word that processes have ended, such as a cluster's that a machine is lost."""
    _ended_marks.update(process.mark for process in processes)


def has_ended(process: Process) -> bool:
    """Return whether a process has certainly ended. One on another machine or in another container counts as running."""
    if process.mark in _ended_marks:
        return True
    current = this_process()
    if process.machine_id != current.machine_id:
        return False
    if process.boot_id and current.boot_id and process.boot_id != current.boot_id:
        return True
    if process.pid_namespace != current.pid_namespace:
        return False
    start_time = start_time_of(process.pid)
    if start_time is None or process.start_time == UNKNOWN:  # ended, or hidden from us by the system
        return not psutil.pid_exists(process.pid) or _is_zombie(process.pid)
    return start_time != process.start_time


def start_time_of(pid: int) -> str | None:
    """Return when a process started; None if it does not run, or its information is not accessible.

    On Linux this is in ticks since boot: psutil converts them with the clock, which may be set in between.
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
    """Return whether a process has ended but was not yet collected by its parent."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


@cache
def _host_identity() -> tuple[str, str, str, str]:
    """Return host name, machine id, boot id and PID namespace. The machine id is hashed, as systemd demands where it is published."""
    host = platform.node() or "unknown"
    machine_id = hashlib.sha256(f"{host}|{_read_text(MACHINE_ID)}".encode()).hexdigest()[:8]
    boot_id = hashlib.sha256(_read_text(BOOT_ID).encode()).hexdigest()[:8] if _read_text(BOOT_ID) else ""
    try:
        pid_namespace = f"{Path('/proc/self/ns/pid').stat().st_ino:x}"
    except OSError:
        pid_namespace = ""
    return host, machine_id, boot_id, pid_namespace


def _read_text(path: Path) -> str:
    """Return the stripped content of a file; empty if it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
