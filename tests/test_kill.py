"""SIGKILL at random points, rerun until done: the same bytes as an undisturbed run. On pocket, through the command line."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import tiny

ARGS = ["--concept", "neon", "--steps", "60", "--batch", "4", "--walks", "32", "--walk-steps", "6", "--lr", "3e-4"]


def start(out: Path, cache: Path, model: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "app.cli", "erase", "--model", model, "--out", str(out), *ARGS]
    return subprocess.Popen(
        argv,
        env={"ERASURE_CACHE": str(cache), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


def killed_when(out: Path, cache: Path, model: str, sign: Path, pattern: str, extra: float) -> bool:
    """Kill the process `extra` seconds after a file matching the pattern appears below `sign`; whether it was killed."""
    process = start(out, cache, model)
    before = len(list(sign.rglob(pattern)))
    while process.poll() is None:
        if len(list(sign.rglob(pattern))) > before:
            try:
                process.wait(extra)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.01)  # looking without a pause would take a core from the process
    process.wait()
    return process.returncode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("source", ["tiny", "pocket"])
def test_killed_runs_end_with_the_same_bytes(tmp_path: Path, source: str) -> None:
    model = "pocket" if source == "pocket" else str(tiny.folder(tmp_path / "model", width=32))
    assert start(tmp_path / "straight", tmp_path / "cache-straight", model).wait() == 0
    expected = (tmp_path / "straight" / "edit.safetensors").read_bytes()
    assert start(tmp_path / "again", tmp_path / "cache-again", model).wait() == 0
    assert (tmp_path / "again" / "edit.safetensors").read_bytes() == expected
    rng = random.Random()
    places = [
        ("walks-00000.tmp", "cache"),
        ("walks-00000.safetensors", "cache"),
        (".checkpoint.part", "out"),
        ("checkpoint.pt", "out"),
        ("train.jsonl", "out"),
    ]
    kills = 0
    for i, (pattern, where) in enumerate(places):
        out, cache = tmp_path / f"out-{i}", tmp_path / f"cache-{i}"
        kills += killed_when(out, cache, model, out if where == "out" else cache, pattern, rng.random() * 0.2)
        for _ in range(2):
            process = start(out, cache, model)
            try:
                process.wait(rng.uniform(3, 12))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                kills += 1
            process.wait()
        assert start(out, cache, model).wait() == 0
        assert (out / "edit.safetensors").read_bytes() == expected
    assert kills >= len(places)
