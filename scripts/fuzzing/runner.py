"""Run one case in this process or in its own, and report failures."""

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.cli import main
from erasure.errors import MAX_MESSAGE_CHARS
from fuzzing.case import Case

CPU_SECONDS, WAIT_SECONDS = 90, 600  # limits of a case; CPU time is independent of the load of the machine
MAX_MESSAGE = MAX_MESSAGE_CHARS + 100  # with the prefix of a message and the mark of a cut
WRITE_EVENTS = {"os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"}
NETWORK_EVENTS = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname"}


@dataclass(frozen=True)
class Failure:
    """A failure that no input may cause."""

    kind: str  # one of KINDS
    detail: str


KINDS = ("traceback", "accepted", "outside", "network", "hang", "message")


class Hang(BaseException):
    """Raised at the time limit. It is not an Exception, so that the program does not catch it."""


class SideEffectMonitor:
    """Records network connections, and files that Python writes, makes or deletes outside some folders, between `begin` and `end`."""

    def __init__(self) -> None:
        self.allowed: tuple[str, ...] | None = None
        self.failures: list[Failure] = []
        sys.addaudithook(self.hook)

    def begin(self, *allowed: Path) -> None:
        self.failures, self.allowed = [], tuple(os.path.realpath(path) for path in allowed)

    def end(self) -> list[Failure]:
        self.allowed = None
        return self.failures

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.allowed is None:
            return
        if event == "open":
            path, mode, flags = args
            if isinstance(path, int) or not (flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or set(mode or "") & set("wax+")):
                return
            self.check_path(path)
        elif event in WRITE_EVENTS:
            self.check_path(args[1] if event in ("os.link", "os.symlink") else args[0])
        elif event == "os.rename":
            self.check_path(args[1])
        elif event in NETWORK_EVENTS and not (event == "socket.connect" and isinstance(args[1], str | bytes)):
            self.failures.append(Failure("network", f"{event} {args[1:]!r}"[:200]))

    def check_path(self, path: Any) -> None:
        with contextlib.suppress(TypeError, ValueError, OSError):
            real_path = os.path.realpath(os.fsdecode(path))
            if real_path != os.devnull and not any(real_path == root or real_path.startswith(root + os.sep) for root in self.allowed or ()):
                self.failures.append(Failure("outside", real_path[:200]))


def run_case(case: Case, root: Path, cache: Path, monitor: SideEffectMonitor) -> list[Failure]:
    """Run a case in the new folder `root` and return its failures."""
    inputs, out, cwd = root / "in", root / "out", root / "cwd"
    for folder in (inputs, out, cwd):
        folder.mkdir(parents=True)
    for name, content in case.files.items():
        place_file(content, inputs / name)
    argv = [part.replace("{in}", str(inputs)).replace("{out}", str(out)) for part in case.argv]
    code, stderr, failures = (run_in_subprocess if case.own_process else run_in_process)(argv, cwd, monitor, (inputs, out, cwd, cache))
    unexpected = sorted(path.name for path in root.iterdir() if path not in (inputs, out, cwd))
    failures += [Failure("outside", f"beside the given folders: {name}") for name in unexpected]
    return [*failures, *find_failures(case, code, stderr)]


def place_file(content: bytes | Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content.is_dir():
        shutil.copytree(content, path, dirs_exist_ok=True)
    else:
        shutil.copyfile(content, path)


def find_failures(case: Case, code: int | str | None, stderr: str) -> Iterator[Failure]:
    """Yield failures in the exit code and in the output on stderr."""
    if code == "hang":
        yield Failure("hang", "no end in sight")
        return
    if code is None or "Traceback (most recent call last)" in stderr:
        yield Failure("traceback", (stderr.strip().splitlines() or [""])[-1][:200])
        return
    lines = [line for line in stderr.replace("\r", "\n").split("\n") if line.strip()]
    first = next((i for i, line in enumerate(lines) if line.startswith("erasure: ") and not line.startswith("erasure: warning:")), None)
    if case.must_fail and not (code == 1 or (code == 2 and first is not None)):  # 2: disk full, out of memory, or the folder is locked
        yield Failure("accepted", f"exit code {code}")
    if code == 1:
        if first is None:
            yield Failure("message", f"exit code 1 without a line that begins with erasure: {stderr[-100:]!r}")
        elif first < len(lines) - 1:
            yield Failure("message", f"{len(lines) - first} lines, the second is {lines[first + 1][:100]!r}")
        elif len(lines[first]) > MAX_MESSAGE:
            yield Failure("message", f"{len(lines[first]):,} letters: {lines[first][:100]!r}")


def run_in_process(
    argv: list[str], cwd: Path, monitor: SideEffectMonitor, allowed: tuple[Path, ...]
) -> tuple[int | str | None, str, list[Failure]]:
    """Return the exit code (None after an exception), stderr, and the failures that the monitor saw."""
    code: int | str | None = None
    previous_cwd = Path.cwd()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as stderr:
        os.chdir(cwd)
        monitor.begin(*allowed)
        try:
            with time_limit():
                code = main(argv)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(bool(error.code))
        except Hang:
            code = "hang"
        except BaseException:
            traceback.print_exc()
        finally:
            failures = monitor.end()
            os.chdir(previous_cwd)
    return code, stderr.getvalue(), failures


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Hang

    timers = ((signal.ITIMER_PROF, signal.SIGPROF, CPU_SECONDS), (signal.ITIMER_REAL, signal.SIGALRM, WAIT_SECONDS))
    for timer, number, seconds in timers:
        signal.signal(number, stop)
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for timer, *_ in timers:
            signal.setitimer(timer, 0)


def run_in_subprocess(
    argv: list[str], cwd: Path, monitor: SideEffectMonitor, allowed: tuple[Path, ...]
) -> tuple[int | str | None, str, list[Failure]]:
    """Do the same for a command that would end this process or serve forever."""
    command = [sys.executable, "-m", "app.cli", *argv]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        _, stderr = process.communicate(timeout=WAIT_SECONDS / 4)
        code: int | str = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        _, stderr = process.communicate()
        code = "hang"
    return code, stderr.decode("utf-8", "replace"), []
