"""SIGKILL at thirty random points, rerun until done: the bytes of an undisturbed run, and nothing of the dead left behind.

Points are chosen by work, not by the clock: after a random number of files and logged steps, then a random moment later. Seeds are fixed.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from app.jobs.plan import load_plan
from erasure.concept import Concept
from erasure.erasing import erase
from erasure.families.stable_diffusion import StableDiffusion
from erasure.methods.esd import ESD
from erasure.storage.locks import holder_of
from tests import tiny
from tests.factories import small_suite_record

STEPS = {"esd": 60, "salun": 60, "advunlearn": 60}
SMALL = ["--trajectories", "32", "--trajectory-steps", "4"]
ERASURES = {
    "esd": [*SMALL, "--batch", "2"],
    "salun": [*SMALL, "--batch", "2", "--retain-batch", "2"],
    "advunlearn": [*SMALL, "--attack-steps", "2", "--warmup", "10", "--retain-batch", "2"],
}
TIMES = ("timing.json", "done.json", "log.txt", "preview.png", "report.html", "manifest.json")  # files that contain times or the folder


def run(tmp_path: Path, *words: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "app.cli", *words],
        env={"ERASURE_CACHE": str(tmp_path / "cache"), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=(tmp_path / "stderr.txt").open("ab"),
    )


def work_done(*roots: Path) -> int:
    """Files there are, and steps that were logged."""
    count = 0
    for root in roots:
        for folder, _, names in os.walk(root):
            count += len(names)
            if "train.jsonl" in names:
                with suppress(OSError):
                    count += (Path(folder) / "train.jsonl").read_bytes().count(b"\n")
    return count


def result_bytes(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in TIMES]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def kill_after(process: "subprocess.Popen[bytes]", work: int, extra: float, done: Callable[[], int], kill: Callable[[], None]) -> bool:
    """Kill when so much is done and a moment more has passed; whether it was still running."""
    while process.poll() is None and done() < work:
        time.sleep(0.02)  # polling without a pause would take a core from the process
    try:
        process.wait(extra)
    except subprocess.TimeoutExpired:
        kill()
    process.wait()
    return process.returncode < 0


Start = Callable[[Path], "subprocess.Popen[bytes]"]


def kill_and_resume(seed: int, kills: int, start: Start, tmp_path: Path, codes: tuple[int, ...] = (0,)) -> None:
    """Kill a command so often while it works on `out`, in a new folder whenever it ends meanwhile; compare with an undisturbed run."""
    rng = random.Random(seed)
    straight = tmp_path / "straight"
    straight.mkdir()
    begun = work_done(straight)
    assert start(straight).wait() in codes, (straight / "stderr.txt").read_text()[-2000:]
    total, expected = work_done(straight) - begun, result_bytes(straight / "out")
    count, turn = 0, 0
    while count < kills:
        turn += 1
        folder = tmp_path / f"killed-{turn}"
        folder.mkdir()
        ended = False
        while not ended and count < kills:
            now = work_done(folder)
            process = start(folder)
            ended = not kill_after(
                process,
                rng.randint(now + 1, max(now + 2, total - 2)),
                rng.random() * 0.3,
                lambda: work_done(folder),  # noqa: B023  # used at once
                lambda: process.send_signal(signal.SIGKILL),  # noqa: B023
            )
            count += not ended
        assert start(folder).wait() in codes, (folder / "stderr.txt").read_text()[-2000:]
        assert result_bytes(folder / "out") == expected
        assert not [path for path in folder.rglob("*") if path.name.endswith(".part") or path.name.startswith(".lock")]


def test_a_killed_erasure_continues_to_the_same_bytes(model: StableDiffusion, tmp_path: Path) -> None:
    """The fast version of the slow tests below: one kill, in the middle of training."""
    child = (
        "import sys; from pathlib import Path; from tests import tiny; from tests.erasure import test_killed_runs\n"
        "from erasure.families.stable_diffusion import StableDiffusion\n"
        "test_killed_runs.erase_cat(StableDiffusion(tiny.pipeline(), 'tiny', 'fp32'), Path(sys.argv[1]))"
    )
    env = {**os.environ, "ERASURE_CACHE": str(tmp_path / "cache-killed")}
    process = subprocess.Popen([sys.executable, "-c", child, str(tmp_path / "killed")], env=env, stderr=subprocess.DEVNULL)
    log = tmp_path / "killed" / "train.jsonl"
    while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") >= 30):
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert (tmp_path / "killed" / ".lock").exists()
    erase_cat(model, tmp_path / "killed")
    erase_cat(model, tmp_path / "straight")
    assert result_bytes(tmp_path / "killed") == result_bytes(tmp_path / "straight")
    assert not list((tmp_path / "killed").rglob(".*"))


def erase_cat(model: StableDiffusion, out: Path) -> None:
    erase(model, [Concept(name="cat", kind="object")], ESD(steps=120, batch=2, trajectories=4, trajectory_steps=2, lr=1e-3), out=out)


@pytest.mark.slow
@pytest.mark.parametrize("method", ERASURES)
def test_killed_erasures_end_with_the_same_bytes(tmp_path: Path, method: str) -> None:
    """Six kills each on pocket."""

    def start(folder: Path) -> "subprocess.Popen[bytes]":
        words = ["--method", method, "--concept", "neon", "--steps", str(STEPS[method]), *ERASURES[method]]
        return run(folder, "erase", "--out", str(folder / "out"), *words)

    kill_and_resume(17, 6, start, tmp_path)


def write_suite(folder: Path, **attacks: object) -> Path:
    """The small suite, with these attacks in tier smoke if there are any."""
    suite = small_suite_record()
    if attacks:
        suite["attacks"] = {"tiers": ["smoke"], "prompts": 12, "images": 2, "fresh_images": 1, "use": attacks}
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(suite, allow_unicode=True), encoding="utf-8")
    return path


@pytest.mark.slow
def test_killed_audits_end_with_the_same_bytes(tmp_path: Path) -> None:
    """Six kills of an audit with searches and a fine-tuning, the last three with two workers."""
    suite = write_suite(
        tmp_path,
        seed_search={},
        soft_prefix={"tokens": 2, "steps": 6, "batch": 2},
        again={"attack": "relearning", "data": "benign", "steps": 4, "checkpoints": 2, "batch": 2, "adapter": "full"},
    )
    model = tiny.save_pipeline(tmp_path / "model", size=16, levels=3)
    edit = tmp_path / "edit"
    assert run(tmp_path, "erase", "--method", "uce", "--concept", "neon", "--model", str(model), "--out", str(edit)).wait() == 0
    for workers in (1, 2):

        def start(folder: Path, workers: int = workers) -> "subprocess.Popen[bytes]":
            words = ["--suite", str(suite), "--tier", "smoke", "--out", str(folder / "out"), "--workers", str(workers)]
            return run(folder, "audit", str(edit), *words)

        (tmp_path / str(workers)).mkdir()
        kill_and_resume(18 + workers, 3, start, tmp_path / str(workers), (0, 3, 4))


@pytest.mark.slow
def test_killed_jobs_end_with_the_same_bytes(tmp_path: Path) -> None:
    """Six kills of a plan of two jobs: of the driver, of its child, of both."""
    suite, model = write_suite(tmp_path), tiny.save_pipeline(tmp_path / "model", size=16, levels=3)
    fields = {"steps": 60, "batch": 2, "trajectories": 4, "trajectory_steps": 3, "lr": 1e-3}
    record = {"model": str(model), "suite": str(suite), "jobs": [{"concept": ["neon", "sketch"], "fields": fields}]}
    rng = random.Random(20)

    def plan(folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        (folder / "plan.yaml").write_text(yaml.safe_dump({**record, "out": str(folder / "out")}), encoding="utf-8")
        return folder / "plan.yaml"

    straight = tmp_path / "straight"
    verdict = run(straight, "jobs", "run", str(plan(straight))).wait()
    assert verdict in (0, 3, 4), (straight / "stderr.txt").read_text()[-2000:]  # the worst verdict of its audits
    total, expected = work_done(straight), result_bytes(straight / "out")
    kills, turn = 0, 0
    while kills < 6:
        turn += 1
        folder = tmp_path / f"killed-{turn}"
        folders = [load_plan(plan(folder)).folder(spec) for spec in load_plan(plan(folder)).jobs]
        ended = False
        while not ended and kills < 6:
            driver = run(folder, "jobs", "run", str(folder / "plan.yaml"), "--retry")
            victim = ("driver", "child", "both")[kills % 3]
            hit: list[int] = []

            def kill(victim: str = victim, hit: list[int] = hit, driver: "subprocess.Popen[bytes]" = driver) -> None:
                working = [holder.process.pid for folder in folders if (holder := holder_of(folder))]  # noqa: B023
                for pid in working if victim in ("child", "both") else ():
                    with_child = psutil.Process(pid)
                    with_child.kill()
                    hit.append(pid)
                if victim != "child":
                    driver.kill()
                    hit.append(driver.pid)

            now = work_done(folder)
            kill_after(driver, rng.randint(now + 1, max(now + 2, total - 2)), rng.random() * 0.3, lambda: work_done(folder), kill)  # noqa: B023
            kills += bool(hit)
            ended = not hit
            while any(holder_of(folder) for folder in folders):  # a child ends within a second of its driver
                time.sleep(0.1)
        assert run(folder, "jobs", "run", str(folder / "plan.yaml"), "--retry").wait() == verdict, (folder / "stderr.txt").read_text()[
            -2000:
        ]
        assert result_bytes(folder / "out") == expected
        assert not [path for path in folder.rglob("*") if path.name.endswith(".part") or path.name.startswith(".lock")]
