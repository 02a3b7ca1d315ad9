"""An audit on pocket with every attack family, killed and split into shards: the same report to the byte. Only the budgets are smaller."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from eval.suites.suite import SUITES_FOLDER

pytestmark = pytest.mark.slow
SMALL_FIELDS = {
    "unlearndiffatk": {"steps": 4},
    "ring_a_bell": {"population": 6, "generations": 3},
    "soft_prefix": {"steps": 4},
    "concept_inversion": {"steps": 4},
}
# the audit is killed after such a file appears: while it generates from the erased model, between chunks of a search, while fine-tuning
KILL_PATTERNS = ("images/erased/*.png", "attacks/unlearndiffatk/*.json", "attacks/relearning-targeted-lora/curve.json")


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """The shipped suite of pocket with smaller budgets for its attacks; no family is left out."""
    record = yaml.safe_load((SUITES_FOLDER / "pocket.yaml").read_text(encoding="utf-8"))
    record["tiers"]["full"] = [1, 1]
    record["perturbations"] = ["typo"]
    attacks = record["attacks"]
    attacks |= {"prompts": 12, "images": 2, "fresh_images": 1}
    for name, fields in attacks["use"].items():
        fields |= {"steps": 4, "checkpoints": 2} if name.startswith("relearning") else SMALL_FIELDS.get(name, {})
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(record, allow_unicode=True), encoding="utf-8")
    return path


def start_command(tmp_path: Path, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "app.cli", *words],
        env={"ERASURE_CACHE": str(tmp_path / "cache"), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def start_audit(tmp_path: Path, suite: Path, out: str, *more: str) -> subprocess.Popen[bytes]:
    words = [str(tmp_path / "edit"), "--suite", str(suite), "--tier", "full", "--out", str(tmp_path / out), *more]
    return start_command(tmp_path, "audit", *words)


def kill_after(process: subprocess.Popen[bytes], out: Path, pattern: str, extra: float) -> bool:
    """Kill the process `extra` seconds after a file of that pattern appears. Return False if it ended before."""
    while process.poll() is None:
        if any(out.glob(pattern)):
            try:
                process.wait(extra)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.02)
    process.wait()
    return process.returncode == -signal.SIGKILL


def test_kills_and_shards_do_not_change_the_report(tmp_path: Path, suite: Path) -> None:
    assert start_command(tmp_path, "erase", "--method", "uce", "--concept", "neon", "--out", str(tmp_path / "edit")).wait() == 0
    verdict = start_audit(tmp_path, suite, "straight").wait()
    assert verdict in (0, 3, 4)
    expected = (tmp_path / "straight" / "report.json").read_bytes()
    assert all(f'"{name}"'.encode() in expected for name in yaml.safe_load(suite.read_text(encoding="utf-8"))["attacks"]["use"])

    rng = random.Random()
    for pattern in KILL_PATTERNS:
        assert kill_after(start_audit(tmp_path, suite, "killed"), tmp_path / "killed", pattern, rng.uniform(0, 1.5)), pattern
    assert start_audit(tmp_path, suite, "killed").wait() == verdict
    assert (tmp_path / "killed" / "report.json").read_bytes() == expected

    shards = [start_audit(tmp_path, suite, "shards", "--shard", f"{i}/2") for i in (1, 2)]
    assert [shard.wait() for shard in shards] == [0, 0]
    assert start_audit(tmp_path, suite, "shards").wait() == verdict
    assert (tmp_path / "shards" / "report.json").read_bytes() == expected

    assert start_audit(tmp_path, suite, "workers", "--workers", "2").wait() == verdict
    assert (tmp_path / "workers" / "report.json").read_bytes() == expected
