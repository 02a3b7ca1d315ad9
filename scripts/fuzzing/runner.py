"""Runs one case in this process or in one of its own, and says what was wrong with how it ended."""

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
from erasure.errors import MESSAGE
from fuzzing.case import Case

WORK, WAIT = 90, 600  # seconds of computing and of waiting after which a case hangs; the first count on a busy machine alike
LETTERS = MESSAGE + 100  # of a message with its first word and the mark of a cut
WRITES = {"os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"}
NETWORK = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname"}


@dataclass(frozen=True)
class Failure:
    """What a case did that no input may bring about."""

    kind: str  # one of KINDS
    detail: str


KINDS = ("traceback", "accepted", "outside", "network", "hang", "message")


class Hang(BaseException):
    """No handler of the program catches it."""


class Watch:
    """Records files that Python opens to write, makes or deletes outside some folders, and connections; between `begin` and `end`."""

    def __init__(self) -> None:
        self.allowed: tuple[str, ...] | None = None
        self.found: list[Failure] = []
        sys.addaudithook(self.hook)

    def begin(self, *allowed: Path) -> None:
        self.found, self.allowed = [], tuple(os.path.realpath(path) for path in allowed)

    def end(self) -> list[Failure]:
        self.allowed = None
        return self.found

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.allowed is None:
            return
        if event == "open":
            path, mode, flags = args
            if isinstance(path, int) or not (flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or set(mode or "") & set("wax+")):
                return
            self.check(path)
        elif event in WRITES:
            self.check(args[1] if event in ("os.link", "os.symlink") else args[0])
        elif event == "os.rename":
            self.check(args[1])
        elif event in NETWORK and not (event == "socket.connect" and isinstance(args[1], str | bytes)):
            self.found.append(Failure("network", f"{event} {args[1:]!r}"[:200]))

    def check(self, path: Any) -> None:
        with contextlib.suppress(TypeError, ValueError, OSError):
            place = os.path.realpath(os.fsdecode(path))
            if place != os.devnull and not any(place == root or place.startswith(root + os.sep) for root in self.allowed or ()):
                self.found.append(Failure("outside", place[:200]))


def run(case: Case, root: Path, cache: Path, watch: Watch) -> list[Failure]:
    """Everything that a case did wrong; `root` is a new folder."""
    given, out, cwd = root / "in", root / "out", root / "cwd"
    for folder in (given, out, cwd):
        folder.mkdir(parents=True)
    for name, content in case.files.items():
        put(content, given / name)
    argv = [part.replace("{in}", str(given)).replace("{out}", str(out)) for part in case.argv]
    code, said, failures = (in_process_of_its_own if case.process else in_this_process)(argv, cwd, watch, (given, out, cwd, cache))
    strangers = sorted(path.name for path in root.iterdir() if path not in (given, out, cwd))
    failures += [Failure("outside", f"beside the given folders: {name}") for name in strangers]
    return [*failures, *judged(case, code, said)]


def put(content: bytes | Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content.is_dir():
        shutil.copytree(content, path, dirs_exist_ok=True)
    else:
        shutil.copyfile(content, path)


def judged(case: Case, code: int | str | None, said: str) -> Iterator[Failure]:
    """What is wrong with an exit code and with what was said on stderr."""
    if code == "hang":
        yield Failure("hang", "no end in sight")
        return
    if code is None or "Traceback (most recent call last)" in said:
        yield Failure("traceback", (said.strip().splitlines() or [""])[-1][:200])
        return
    lines = [line for line in said.replace("\r", "\n").split("\n") if line.strip()]
    first = next((i for i, line in enumerate(lines) if line.startswith("erasure: ") and not line.startswith("erasure: warning:")), None)
    if case.wrong and not (code == 1 or (code == 2 and first is not None)):  # 2: no room, no memory, or another process is at work there
        yield Failure("accepted", f"exit code {code}")
    if code == 1:
        if first is None:
            yield Failure("message", f"exit code 1 without a line that begins with erasure: {said[-100:]!r}")
        elif first < len(lines) - 1:
            yield Failure("message", f"{len(lines) - first} lines, the second is {lines[first + 1][:100]!r}")
        elif len(lines[first]) > LETTERS:
            yield Failure("message", f"{len(lines[first]):,} letters: {lines[first][:100]!r}")


def in_this_process(argv: list[str], cwd: Path, watch: Watch, allowed: tuple[Path, ...]) -> tuple[int | str | None, str, list[Failure]]:
    """Exit code (None: an exception came out), what was said, and what the watch saw."""
    code: int | str | None = None
    before = Path.cwd()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        os.chdir(cwd)
        watch.begin(*allowed)
        try:
            with limited():
                code = main(argv)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(bool(error.code))
        except Hang:
            code = "hang"
        except BaseException:
            traceback.print_exc()
        finally:
            failures = watch.end()
            os.chdir(before)
    return code, said.getvalue(), failures


@contextlib.contextmanager
def limited() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Hang

    timers = ((signal.ITIMER_PROF, signal.SIGPROF, WORK), (signal.ITIMER_REAL, signal.SIGALRM, WAIT))
    for timer, number, seconds in timers:
        signal.signal(number, stop)
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for timer, *_ in timers:
            signal.setitimer(timer, 0)


def in_process_of_its_own(
    argv: list[str], cwd: Path, watch: Watch, allowed: tuple[Path, ...]
) -> tuple[int | str | None, str, list[Failure]]:
    """The same for a command that would end this process or serve for ever."""
    command = [sys.executable, "-m", "app.cli", *argv]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        _, said = process.communicate(timeout=WAIT / 4)
        code: int | str = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        _, said = process.communicate()
        code = "hang"
    return code, said.decode("utf-8", "replace"), []
