"""A process ends early and loses nothing: exit codes, output, exit handlers, threads, streams that are closed or full."""

import subprocess
import sys

import pytest

END = "import atexit, sys, threading, time; from app.process import run_process; "


def run(code: str, redirect: str = "") -> "subprocess.CompletedProcess[str]":
    command = f"'{sys.executable}' -c \"$CODE\" {redirect}"
    return subprocess.run(
        ["bash", "-c", command], env={"CODE": END + code, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("code", [0, 1, 3])
def test_the_exit_code_and_what_was_printed_arrive(code: int) -> None:
    done = run(f"run_process(lambda: print('x' * 100_000) or print('why', file=sys.stderr) or {code})")
    assert done.returncode == code and len(done.stdout) == 100_001 and done.stderr == "why\n"


def test_threads_and_exit_handlers_come_first() -> None:
    late = "threading.Thread(target=lambda: time.sleep(0.3) or print('thread')).start()"
    pool = "from concurrent.futures import ThreadPoolExecutor; ThreadPoolExecutor().submit(lambda: time.sleep(0.2) or print('pool'))"
    done = run(f"atexit.register(print, 'handler'); {late}; {pool}; run_process(lambda: 0)")
    assert done.returncode == 0 and sorted(done.stdout.split()) == ["handler", "pool", "thread"] and done.stdout.endswith("handler\n")


def test_an_error_is_raised_as_ever() -> None:
    done = run("run_process(lambda: 1 // 0)")
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr


@pytest.mark.parametrize(("redirect", "code"), [(">&-", 3), ("2>&-", 3), (">/dev/full", 3), ("| head -c 0; exit ${PIPESTATUS[0]}", 3)])
def test_a_stream_that_is_closed_or_full_keeps_the_verdict(redirect: str, code: int) -> None:
    done = run("run_process(lambda: (sys.stdout and sys.stdout.write('text')) and 3 or 3)", redirect)
    assert done.returncode == code and "Traceback" not in done.stderr


def test_a_full_disk_is_no_success() -> None:
    assert run("run_process(lambda: print('text') or 0)", ">/dev/full").returncode == 1
