"""The jobs engine: states read off folders, work in child processes, killed and rerun, the leaderboard."""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from app.jobs import leaderboard, queue
from app.jobs.plan import JobSpec, load_plan
from erasure.concept import Concept
from erasure.errors import UserError
from erasure.storage import locks
from erasure.storage.run import read_json, write_json
from tests.command_line import run_words
from tests.factories import PLAN_FIELDS, write_small_plan


def test_a_plan_runs_to_its_end_and_is_then_skipped(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_small_plan(tmp_path, ("esd", "uce"))
    assert run_words("jobs", "run", str(path), "--dry-run") == 0
    output = capfd.readouterr().out
    assert "2 jobs" in output and "1 job trained from 1 teacher cache" in output
    assert run_words("jobs", "run", str(path)) == 0
    plan = load_plan(path)
    for spec in plan.jobs:
        folder = plan.folder(spec)
        assert queue.read_progress(folder).state == "done"
        (audit,) = read_json(folder / "done.json")["audits"]
        assert (folder / audit / "report.html").exists()
        assert not (folder / "claim.json").exists()
    assert (plan.folder(plan.jobs[0]) / "preview.png").exists()
    assert len(queue.read_progress(plan.folder(plan.jobs[0])).loss) == PLAN_FIELDS["steps"]
    before = (plan.folder(plan.jobs[0]) / "done.json").stat().st_mtime_ns
    assert run_words("jobs", "run", str(path)) == 0
    assert (plan.folder(plan.jobs[0]) / "done.json").stat().st_mtime_ns == before
    assert run_words("jobs", "status", str(path)) == 0
    assert run_words("jobs", "status", str(tmp_path / "out")) == 0
    assert capfd.readouterr().out.count("done") >= 4
    assert run_words("jobs", "leaderboard", str(tmp_path / "out")) == 0
    rows = list(csv.DictReader((tmp_path / "out" / "leaderboard.csv").open()))
    assert sorted(row["method"] for row in rows) == ["esd", "uce"]
    assert all(float(row["UA_low"]) <= int(row["UA_k"]) / int(row["UA_n"]) <= float(row["UA_high"]) for row in rows)
    assert all(row["bytes"] and row["seconds"] for row in rows)
    page = (tmp_path / "out" / "leaderboard.html").read_text()
    assert page.count("<g data-row") == 2 and "http://" not in page and "https://" not in page
    assert all(row["reworded_by"] in ("named", "described") and int(row["reworded_n"]) for row in rows)
    assert all(row["attacked"] == row["attacked_n"] == "" for row in rows) and not [key for key in rows[0] if "robust" in key]
    assert "ran in 0 of 2 audits; the others were not attacked" in page and page.count(">not attacked<") == 2
    assert "| esd | neon |" in (tmp_path / "out" / "leaderboard.md").read_text()


def test_a_failed_job_is_named_and_runs_again_on_request(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_small_plan(tmp_path)
    record = yaml.safe_load(path.read_text())
    record["jobs"] = [
        {"concept": "neon", "method": "esd", "fields": {**PLAN_FIELDS, "lr": 1e30}},
        {"concept": "sketch", "fields": PLAN_FIELDS},
    ]
    path.write_text(yaml.safe_dump({**record, "suite": ""}))
    assert run_words("jobs", "run", str(path)) == 2
    plan = load_plan(path)
    bad, good = (plan.folder(spec) for spec in plan.jobs)
    assert "at step" in queue.read_progress(bad).error
    assert queue.read_progress(good).state == "waiting"
    error = capfd.readouterr().err
    assert "failed: neon" in error and ".;" not in error and "--keep-going runs the jobs behind it" in error
    assert run_words("jobs", "status", str(path)) == 0
    assert f"failed: {bad}: the loss is " in capfd.readouterr().err
    assert run_words("jobs", "run", str(path), "--keep-going") == 2
    assert queue.read_progress(good).state == "done"
    assert "--keep-going" not in capfd.readouterr().err
    first = (bad / "error.json").stat().st_mtime_ns
    assert run_words("jobs", "run", str(path), "--retry") == 2
    assert (bad / "error.json").stat().st_mtime_ns > first


def test_a_running_job_shows_its_phase_and_can_be_cancelled_and_continued(tmp_path: Path) -> None:
    path = write_small_plan(tmp_path)
    plan = load_plan(path)
    spec, folder = plan.jobs[0], plan.folder(plan.jobs[0])
    assert queue.read_progress(folder).state == "waiting"
    queue.enqueue(folder, spec)
    child = queue.start_child(folder)
    assert queue.read_progress(folder).state in ("waiting", "running")
    end = time.monotonic() + 120
    while queue.read_progress(folder).phase not in ("erasing", "auditing") and time.monotonic() < end:
        time.sleep(0.05)
    assert queue.read_progress(folder).state == "running"
    queue.cancel(folder)
    assert child.wait() == -signal.SIGTERM
    assert queue.read_progress(folder).state == "cancelled"
    assert queue.start_child(folder).wait() == queue.EXIT_UNFINISHED  # a cancel that comes before the child begins is not forgotten
    assert queue.read_progress(folder).state == "cancelled"
    queue.requeue(folder)
    assert queue.start_child(folder).wait() == 0
    assert queue.read_progress(folder).state == "done"
    with pytest.raises(UserError, match="nothing to cancel"):
        queue.cancel(folder)


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    path = write_small_plan(tmp_path)
    plan = load_plan(path)
    folder = plan.folder(plan.jobs[0])
    parent = subprocess.Popen([sys.executable, "-m", "app.cli", "jobs", "run", str(path)], stderr=subprocess.DEVNULL)
    while not (folder / "claim.json").exists() and parent.poll() is None:
        time.sleep(0.01)
    assert locks.holder_of(folder)
    parent.kill()
    parent.wait()
    end = time.monotonic() + 30
    while locks.holder_of(folder) and time.monotonic() < end:
        time.sleep(0.1)
    assert not locks.holder_of(folder)
    assert queue.read_progress(folder).state in ("interrupted", "done")


def test_states_are_read_off_the_folder(tmp_path: Path) -> None:
    spec = JobSpec(concepts=(Concept(name="neon"),))
    queue.enqueue(tmp_path / "job", spec)
    queue.enqueue(tmp_path / "job", spec)
    assert queue.read_progress(tmp_path / "job").state == "waiting"
    with pytest.raises(UserError, match="holds another job"):
        queue.enqueue(tmp_path / "job", JobSpec(concepts=(Concept(name="sketch"),)))
    with locks.lock_folder(tmp_path / "job", "a test"):
        assert (queue.read_progress(tmp_path / "job").state, queue.read_progress(tmp_path / "job").phase) == ("running", "starting")
        queue.write_claim(tmp_path / "job", "erasing", 50)
        assert queue.read_progress(tmp_path / "job").state == "running"
        (tmp_path / "job" / "edit").mkdir()
        (tmp_path / "job" / "edit" / "train.jsonl").write_text('{"step": 0, "model": 0.5}\n{"step": 1, "model": 0.25}\n{"step"')
        p = queue.read_progress(tmp_path / "job")
        assert (p.done, p.total, p.loss) == (2, 50, (0.5, 0.25))
        assert p.eta is not None and p.eta >= 0
        record = read_json(tmp_path / "job" / ".lock")
    for change, state in (({"start_time": "1"}, "interrupted"), ({"host": "elsewhere", "machine_id": "0" * 8}, "running")):
        write_json(tmp_path / "job" / ".lock", {**record, "process": {**record["process"], **change}})  # the number of another process
        assert queue.read_progress(tmp_path / "job").state == state
        assert [folder.name for folder, _ in queue.find_jobs(tmp_path)] == ["job"]
    with pytest.raises(UserError, match=r"worked on by .* on elsewhere"):
        queue.cancel(tmp_path / "job")
    assert not (tmp_path / "job" / "cancelled").exists()


def test_a_leaderboard_needs_audits(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no audit below"):
        run_words("jobs", "leaderboard", str(tmp_path))
    with pytest.raises(UserError, match="Did you mean 'status'"):
        run_words("jobs", "statsu")
    assert leaderboard.load_rows(tmp_path) == []


@pytest.mark.slow
def test_a_killed_plan_ends_like_an_undisturbed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ESD and FIA with smoke audits on pocket, killed while training and while auditing."""
    text = "suite: pocket\njobs:\n  - {concept: neon, method: [esd, fia]}\n"
    hashes = []
    for run in ("straight", "killed"):
        path = tmp_path / f"{run}.yaml"
        path.write_text(f"out: {tmp_path / run}\n" + text)
        environment = {**os.environ, "ERASURE_CACHE": str(tmp_path / f"cache-{run}")}
        argv = [sys.executable, "-m", "app.cli", "jobs", "run", str(path)]
        for phase in ("erasing", "auditing") if run == "killed" else ():
            parent = subprocess.Popen(argv, env=environment, stderr=subprocess.DEVNULL)
            while not any(read_json(c)["phase"] == phase for c in (tmp_path / run).glob("*/claim.json")):
                time.sleep(0.2)
            time.sleep(random.uniform(0, 8))
            parent.kill()
            parent.wait()
            time.sleep(3)  # its child ends within a second
        assert subprocess.run(argv, env=environment, check=False).returncode in (3, 4)  # the verdicts of smoke audits
        plan = load_plan(path)
        kinds = ("edit/edit.safetensors", "audit-pocket-smoke/samples.jsonl", "audit-pocket-smoke/result.json")
        hashes.append([(plan.folder(spec) / kind).read_bytes() for spec in plan.jobs for kind in kinds])
    assert hashes[0] == hashes[1]
