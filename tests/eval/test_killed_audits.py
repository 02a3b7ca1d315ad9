"""An audit on pocket with every attack family, killed and shared out: the same report to the byte. Budgets alone are smaller."""

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
SMALL = {
    "unlearndiffatk": {"steps": 4},
    "ring_a_bell": {"population": 6, "generations": 3},
    "soft_prefix": {"steps": 4},
    "concept_inversion": {"steps": 4},
}
# a file of the audit after whose appearance it is killed: while the erased model is drawn, between chunks of a search, while fine-tuning
SIGNS = ("images/erased/*.png", "attacks/unlearndiffatk/*.json", "attacks/relearning-targeted-lora/curve.json")


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """The shipped suite of pocket with the budgets of its attacks cut down; no family is left out."""
    record = yaml.safe_load((SUITES_FOLDER / "pocket.yaml").read_text(encoding="utf-8"))
    record["tiers"]["full"] = [1, 1]
    record["mutations"] = ["typo"]
    attacks = record["attacks"]
    attacks |= {"prompts": 12, "pictures": 2, "fresh": 1}
    for name, fields in attacks["use"].items():
        fields |= {"steps": 4, "checkpoints": 2} if name.startswith("relearning") else SMALL.get(name, {})
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(record, allow_unicode=True), encoding="utf-8")
    return path


def command(tmp_path: Path, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "app.cli", *words],
        env={"ERASURE_CACHE": str(tmp_path / "cache"), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def audit(tmp_path: Path, suite: Path, out: str, *more: str) -> subprocess.Popen[bytes]:
    return command(tmp_path, "audit", str(tmp_path / "edit"), "--suite", str(suite), "--tier", "full", "--out", str(tmp_path / out), *more)


def killed_at(process: subprocess.Popen[bytes], out: Path, pattern: str, extra: float) -> bool:
    """SIGKILL `extra` seconds after a file of that pattern appears; whether it was killed."""
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


def test_killed_three_times_and_in_two_shards_it_ends_with_the_same_report(tmp_path: Path, suite: Path) -> None:
    assert command(tmp_path, "erase", "--method", "uce", "--concept", "neon", "--out", str(tmp_path / "edit")).wait() == 0
    verdict = audit(tmp_path, suite, "straight").wait()
    assert verdict in (0, 3, 4)
    expected = (tmp_path / "straight" / "report.json").read_bytes()
    assert all(f'"{name}"'.encode() in expected for name in yaml.safe_load(suite.read_text(encoding="utf-8"))["attacks"]["use"])

    rng = random.Random()
    for sign in SIGNS:
        assert killed_at(audit(tmp_path, suite, "killed"), tmp_path / "killed", sign, rng.uniform(0, 1.5)), sign
    assert audit(tmp_path, suite, "killed").wait() == verdict
    assert (tmp_path / "killed" / "report.json").read_bytes() == expected

    shards = [audit(tmp_path, suite, "shards", "--shard", f"{i}/2") for i in (1, 2)]
    assert [shard.wait() for shard in shards] == [0, 0]
    assert audit(tmp_path, suite, "shards").wait() == verdict
    assert (tmp_path / "shards" / "report.json").read_bytes() == expected

    assert audit(tmp_path, suite, "workers", "--workers", "2").wait() == verdict
    assert (tmp_path / "workers" / "report.json").read_bytes() == expected
