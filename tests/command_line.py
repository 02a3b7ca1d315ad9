"""Commands as a user types them: flags for a short training, and commands that must fail."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from app.cli import main
from app.command_line import COMMANDS, parse_command_line, run_command
from app.commands.audit_report import print_audit
from eval.finished_audits import FinishedRun, report_runs
from eval.records.audit_result import AuditResult
from eval.records.gates import Gate

FAST_FLAGS = ["--steps", "2", "--batch", "1", "--trajectories", "4", "--trajectory-steps", "2", "--dtype", "fp32"]


def run_words(*words: str) -> int:
    """Run a command and let its errors through."""
    return run_command(parse_command_line(words))


def report_and_print(out: Path, gates: Sequence[Gate], result: AuditResult) -> int:
    """Write the report of a finished audit, print it as the commands do, and return their exit code."""
    return print_audit(report_runs([FinishedRun(out, result, gates)]))


def replace_command(monkeypatch: pytest.MonkeyPatch, name: str, run: Callable[[object], int]) -> None:
    """Let another function run a command."""
    monkeypatch.setitem(COMMANDS, name, replace(COMMANDS[name], run=run))


def complaint_of(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command, expect exit code 1 and one line on stderr, and return it."""
    capsys.readouterr()
    assert main(argv) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert lines[0].startswith("erasure: ")
    return lines[0]


def error_of(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command, expect exit code 1 and one error line among other lines on stderr, and return it."""
    capsys.readouterr()
    assert main(argv) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("erasure: ")]
    return line
