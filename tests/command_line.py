"""Commands as a user types them: flags for a short training, and commands that must fail."""

import pytest

from app.cli import main

FAST_FLAGS = ["--steps", "2", "--batch", "1", "--trajectories", "4", "--trajectory-steps", "2", "--dtype", "fp32"]


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
