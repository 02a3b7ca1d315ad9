"""Hostile inputs: the few that a fast test can afford, how they are judged, and all of them as a slow test."""

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "scripts"))
from fuzzing import runner  # scripts are not a package
from fuzzing.case import Case, damage, mutate, swap_type


def failures_of(code: int | str | None, output: str, wrong: bool = True) -> list[str]:
    return [failure.kind for failure in runner.find_failures(Case("x", (), {}, wrong), code, output)]


def test_how_an_end_is_judged() -> None:
    assert failures_of(1, "generating 100%|##|\rerasure: warning: odd\nerasure: no edit at x.\n") == []
    assert failures_of(0, "", wrong=False) == failures_of(4, "", wrong=False) == []
    assert failures_of(0, "") == failures_of(3, "") == failures_of(2, "  INCOMPLETE, judge of style: no weights") == ["accepted"]
    assert failures_of(2, "erasure: no room is left on the disk.") == []
    assert failures_of(None, "Traceback (most recent call last):\nKeyError: 'x'") == ["traceback"]
    assert failures_of(1, "Traceback (most recent call last):\nKeyError: 'x'") == ["traceback"]
    assert failures_of("hang", "") == ["hang"]
    assert failures_of(1, "") == failures_of(1, "error: x") == ["message"]
    assert failures_of(1, "erasure: one\ntwo\n") == ["message"] and failures_of(1, "erasure: " + "x" * 3000) == ["message"]


def test_the_monitor_sees_files_elsewhere_and_connections(tmp_path: Path) -> None:
    import socket

    monitor = runner.SideEffectMonitor()
    (tmp_path / "out").mkdir()
    monitor.begin(tmp_path / "out")
    (tmp_path / "out" / "fine.txt").write_text("x")
    (tmp_path / "out" / ".." / "beside.txt").write_text("x")
    (tmp_path / "out.folder").mkdir()
    (tmp_path / "out" / "fine.txt").rename(tmp_path / "moved.txt")
    (tmp_path / "moved.txt").read_text()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", 1), timeout=1)
    failures = monitor.end()
    (tmp_path / "after.txt").write_text("x")
    assert [failure.kind for failure in failures if failure.kind == "outside"] == ["outside"] * 3
    assert [Path(failure.detail).name for failure in failures[:3]] == ["beside.txt", "out.folder", "moved.txt"]
    assert failures[3:] and {failure.kind for failure in failures[3:]} == {"network"} and monitor.end() == failures


def test_perturbations_change_one_place_and_repeat_by_seed() -> None:
    import random

    record = {"a": 1, "b": {"c": [1, "x"]}, "d": None}
    perturbed = [mutate(record, random.Random(seed)) for seed in range(200)]
    assert all(str(value) != str(record) for value in perturbed) and len({str(value) for value in perturbed}) > 30
    assert [str(value) for value in perturbed] == [str(mutate(record, random.Random(seed))) for seed in range(200)]
    assert record == {"a": 1, "b": {"c": [1, "x"]}, "d": None}
    assert all(type(swap_type(3, random.Random(seed))) not in (int, float) for seed in range(50))
    assert sum(damage(b"0123456789" * 20, random.Random(seed)) != b"0123456789" * 20 for seed in range(100)) > 90


@pytest.mark.slow
def test_no_input_brings_a_traceback_a_silent_acceptance_or_a_file_elsewhere(tmp_path: Path) -> None:
    """In a process of its own: it changes the environment and limits memory for good."""
    argv = [sys.executable, str(Path(__file__).parent.parent.parent / "scripts" / "fuzz.py"), "--count", "780"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    *_, last = done.stdout.splitlines()
    name, cases, *failures = last.strip("| ").split(" | ")
    assert name == "all" and int(cases) >= 700, done.stderr[-2000:]
    assert [int(count) for count in failures] == [0] * len(runner.KINDS), done.stdout
    assert done.returncode == 0
