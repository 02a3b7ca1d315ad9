"""Hostile inputs: the few that a fast test can afford, how they are judged, and all of them as a slow test."""

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
from fuzzing import runner  # scripts are no package
from fuzzing.case import Case, damage, mutate, swap_type


def judged(code: int | str | None, said: str, wrong: bool = True) -> list[str]:
    return [failure.kind for failure in runner.find_failures(Case("x", (), {}, wrong), code, said)]


def test_how_an_end_is_judged() -> None:
    assert judged(1, "drawing 100%|##|\rerasure: warning: odd\nerasure: no edit at x.\n") == []
    assert judged(0, "", wrong=False) == judged(4, "", wrong=False) == []
    assert judged(0, "") == judged(3, "") == judged(2, "  INCOMPLETE, judge of style: no weights") == ["accepted"]
    assert judged(2, "erasure: no room is left on the disk.") == []
    assert judged(None, "Traceback (most recent call last):\nKeyError: 'x'") == ["traceback"]
    assert judged(1, "Traceback (most recent call last):\nKeyError: 'x'") == ["traceback"]
    assert judged("hang", "") == ["hang"]
    assert judged(1, "") == judged(1, "error: x") == ["message"]
    assert judged(1, "erasure: one\ntwo\n") == ["message"] and judged(1, "erasure: " + "x" * 3000) == ["message"]


def test_the_watch_sees_what_is_written_elsewhere_and_who_is_called(tmp_path: Path) -> None:
    import socket

    watch = runner.SideEffectMonitor()
    (tmp_path / "out").mkdir()
    watch.begin(tmp_path / "out")
    (tmp_path / "out" / "fine.txt").write_text("x")
    (tmp_path / "out" / ".." / "beside.txt").write_text("x")
    (tmp_path / "out.folder").mkdir()
    (tmp_path / "out" / "fine.txt").rename(tmp_path / "moved.txt")
    (tmp_path / "moved.txt").read_text()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", 1), timeout=1)
    found = watch.end()
    (tmp_path / "after.txt").write_text("x")
    assert [failure.kind for failure in found if failure.kind == "outside"] == ["outside"] * 3
    assert [Path(failure.detail).name for failure in found[:3]] == ["beside.txt", "out.folder", "moved.txt"]
    assert found[3:] and {failure.kind for failure in found[3:]} == {"network"} and watch.end() == found


def test_mutations_change_one_place_and_repeat_by_seed() -> None:
    import random

    record = {"a": 1, "b": {"c": [1, "x"]}, "d": None}
    found = [mutate(record, random.Random(seed)) for seed in range(200)]
    assert all(str(one) != str(record) for one in found) and len({str(one) for one in found}) > 30
    assert [str(one) for one in found] == [str(mutate(record, random.Random(seed))) for seed in range(200)]
    assert record == {"a": 1, "b": {"c": [1, "x"]}, "d": None}
    assert all(type(swap_type(3, random.Random(seed))) not in (int, float) for seed in range(50))
    assert sum(damage(b"0123456789" * 20, random.Random(seed)) != b"0123456789" * 20 for seed in range(100)) > 90


@pytest.mark.slow
def test_no_input_brings_a_traceback_a_silent_acceptance_or_a_file_elsewhere(tmp_path: Path) -> None:
    """In a process of its own: it changes the environment and limits memory for good."""
    argv = [sys.executable, str(Path(__file__).parent.parent / "scripts" / "fuzz.py"), "--count", "780"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    *_, last = done.stdout.splitlines()
    name, cases, *failures = last.strip("| ").split(" | ")
    assert name == "all" and int(cases) >= 700, done.stderr[-2000:]
    assert [int(count) for count in failures] == [0] * len(runner.KINDS), done.stdout
    assert done.returncode == 0
