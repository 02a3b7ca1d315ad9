"""Jobs with broken files, jobs that two processes want, and cancels that come while a job is starting."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from app.commands.jobs import main
from app.jobs import leaderboard as board
from app.jobs import queue as jobs
from app.jobs.execution import run_job
from app.jobs.plan import JobSpec, load_plan
from app.web.queue_worker import QueueWorker
from app.web.studio import Studio
from app.web.tab_erase import job_names, render_job, render_queue, resume_job
from app.web.tab_leaderboard import format_unreadable
from erasure.concept import Concept
from erasure.errors import Unfinished, UserError
from erasure.export import export_edit
from erasure.families.stable_diffusion import StableDiffusion
from erasure.storage.files import read_json, write_checksummed_json
from erasure.storage.locks import FolderLocked, holder_of, lock_folder
from erasure.storage.processes import this_process
from tests.app.jobs.test_queue import small_plan
from tests.erasure.storage.test_locks import other_process, plant
from tests.erasure.test_damaged_files import DAMAGE, salun

FILES = {
    "spec.json": None,
    "claim.json": {"phase": "erasing", "total": 5, "since": 1.0, "first": 0},
    "done.json": {"edits": ["x"], "audits": [], "seconds": 1.0},
    "error.json": {"error": "too bad", "trace": ""},
}


def job(root: Path, name: str = "neon") -> Path:
    spec = JobSpec(concepts=(Concept(name=name),))
    jobs.enqueue(root / spec.folder_name, spec)
    return root / spec.folder_name


def shape(path: Path) -> None:
    """A whole file with the right checksum and nothing in it."""
    write_checksummed_json(path, {"seconds": "long"})


@pytest.mark.parametrize("damage", [*DAMAGE, shape])
@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_makes_a_broken_job_and_nothing_else(
    model: StableDiffusion, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: Callable[[Path], None]
) -> None:
    root = tmp_path / "runs" / "jobs"
    folder, other = job(root), job(root, "sketch")
    if record := FILES[name]:
        write_checksummed_json(folder / name, record)
    damage(folder / name)
    p = jobs.read_progress(folder)
    assert p.state == "broken" and name in p.error and "\n" not in p.error
    assert jobs.read_progress(other).state == "waiting"

    studio = Studio(model, tmp_path / "runs")
    assert set(job_names(studio)) == {folder.name, other.name}
    assert "broken" in render_job(studio, folder.name) and name in render_job(studio, folder.name)
    assert "broken" in render_queue(studio) and "waiting" in render_queue(studio)
    _, lines = board.load_leaderboard(tmp_path / "runs")
    assert len(lines) == 1 and name in format_unreadable(lines)
    assert main(["status", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr()
    assert "broken" in said.out and said.err.count("broken: ") == 1 and name in said.err

    with pytest.raises(UserError, match="is broken"):
        jobs.cancel(folder)
    if name == "spec.json":
        with pytest.raises(UserError, match=r"spec\.json"):
            resume_job(folder)
        jobs.enqueue(folder, JobSpec(concepts=(Concept(name="neon"),)))  # a plan knows what belongs there
        assert "written anew" in capsys.readouterr().err
    else:
        resume_job(folder)
    assert jobs.read_progress(folder).state == "waiting"


def test_the_queue_goes_on_beside_broken_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    broken, good = job(tmp_path), job(tmp_path, "sketch")
    (broken / "spec.json").write_text("{")
    (tmp_path / "stray").mkdir()
    (tmp_path / "stray" / "spec.json").symlink_to(tmp_path / "nowhere")
    started: list[Path] = []

    def start(folder: Path) -> "subprocess.Popen[bytes]":
        if not started:
            started.append(tmp_path)
            raise OSError("no room")
        started.append(folder)
        return subprocess.Popen([sys.executable, "-c", ""])

    monkeypatch.setattr(jobs, "start_child", start)
    worker = QueueWorker(tmp_path)
    worker.start()
    end = time.monotonic() + 60
    while good not in started and time.monotonic() < end:
        time.sleep(0.05)
    assert worker.is_alive()
    worker.stop()
    worker.join(60)
    assert set(started) == {tmp_path, good}
    assert capsys.readouterr().err.count("the queue waits: no room") == 1


def test_broken_results_are_left_out_of_the_board_by_name(tmp_path: Path) -> None:
    for i, text in enumerate(("{", "[]", '{"job": {"task": "audit"}}', '{"job": 3}', '{"sha256": "0"}')):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "result.json").write_text(text)
    rows, broken = board.load_leaderboard(tmp_path)
    assert rows == [] and len(broken) == 5
    assert all(str(tmp_path / str(i)) in " ".join(broken) for i in range(5))


def test_an_export_is_no_second_edit(model: StableDiffusion, tmp_path: Path) -> None:
    studio = Studio(model, tmp_path / "runs")
    run = tmp_path / "runs" / "jobs" / "x" / "edit"
    edit = salun(model, run)
    export_edit(model, edit, tmp_path / "runs" / "jobs" / "x" / "downloads" / "edit", "edit")
    export_edit(model, edit, tmp_path / "runs" / "exported", "edit")
    assert list(studio.edits().values()) == [run]
    (run / "job.json").unlink()
    (run / "edit.json").unlink()  # an export whose run is gone stands for itself
    assert len(studio.edits()) == 2


# two that want one job ------------------------------------------------------------------------------------------------------------------


def test_a_job_that_another_process_has_is_refused_and_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = load_plan(small_plan(tmp_path))
    folder = plan.folder(plan.jobs[0])
    jobs.enqueue(folder, plan.jobs[0])
    other = other_process(folder)
    try:
        with pytest.raises(FolderLocked, match=f"process {other.pid} on"):
            run_job(folder, plan.jobs[0])
        with pytest.raises(FolderLocked, match=f"process {other.pid} on"):
            main(["run", str(tmp_path / "plan.yaml")])
        assert jobs.read_progress(folder).state == "running"
        assert sorted(path.name for path in folder.iterdir()) == [".lock", "spec.json"]
    finally:
        other.kill()
        other.wait()
    jobs.record_exit(folder, jobs.EXIT_UNFINISHED)  # as a driver does after a child that was refused
    assert jobs.read_progress(folder).state == "waiting"


def test_a_child_that_comes_second_finds_the_job_done(tmp_path: Path) -> None:
    folder = job(tmp_path)
    write_checksummed_json(folder / "done.json", FILES["done.json"] or {})
    run_job(folder, JobSpec.load(folder / "spec.json"))
    assert not (folder / "edit").exists() and not (folder / "claim.json").exists()


# cancels --------------------------------------------------------------------------------------------------------------------------------


def test_a_cancel_before_the_child_begins_is_not_lost(tmp_path: Path) -> None:
    plan = load_plan(small_plan(tmp_path))
    folder = plan.folder(plan.jobs[0])
    jobs.enqueue(folder, plan.jobs[0])
    child = jobs.start_child(folder)
    jobs.cancel(folder)
    assert child.wait(120) in (jobs.EXIT_UNFINISHED, -signal.SIGTERM)
    assert jobs.read_progress(folder).state == "cancelled"
    assert not (folder / "edit").exists()


def test_a_cancel_between_lock_and_claim_is_not_lost(tmp_path: Path) -> None:
    folder = job(tmp_path)
    other = other_process(folder)  # it has the lock and no claim
    assert (jobs.read_progress(folder).state, jobs.read_progress(folder).phase) == ("running", "starting")
    jobs.cancel(folder)
    assert other.wait(60) == -signal.SIGTERM
    assert jobs.read_progress(folder).state == "cancelled" and holder_of(folder) is None
    jobs.requeue(folder)
    (folder / "cancelled").touch()  # and the other way round: the mark is there when the child takes the lock
    with pytest.raises(Unfinished, match="was cancelled before it began"):
        run_job(folder, JobSpec.load(folder / "spec.json"))
    assert not (folder / "claim.json").exists() and not (folder / "error.json").exists()


def test_a_cancel_meets_a_start_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every order of the two processes' four steps one of them sees the other: a child is stopped, or never begins."""
    for order in range(4):
        folder = job(tmp_path / str(order))
        killed: list[int] = []

        class Killed:
            def __init__(self, pid: int, killed: list[int] = killed) -> None:
                killed.append(pid)

            def terminate(self) -> None: ...

            kill = terminate

        monkeypatch.setattr("app.jobs.queue.psutil.Process", Killed)
        if order == 0:
            jobs.cancel(folder, 0)
        with lock_folder(folder, "erasure jobs"):
            if order == 1:
                jobs.cancel(folder, 0)
            state = jobs.read_progress(folder).state
            if order == 2:
                jobs.cancel(folder, 0)
            if state != "cancelled":
                jobs.write_claim(folder, "starting", 0)
                if order == 3:
                    jobs.cancel(folder, 0)
            assert (state == "cancelled") == (order < 2) and killed == ([os.getpid()] if order else [])
        assert jobs.read_progress(folder).state == "cancelled"


def test_a_cancel_of_another_machines_job_is_refused(tmp_path: Path) -> None:
    folder = job(tmp_path)
    found = plant(folder / ".lock", replace(this_process(), machine_id="0" * 8, host="elsewhere"))
    with pytest.raises(UserError, match=r"worked on by .* on elsewhere.*delete"):
        jobs.cancel(folder)
    assert not (folder / "cancelled").exists()
    assert read_json(folder / ".lock")["token"] == found.token


def test_a_driver_whose_child_came_second_says_who_was_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both drivers saw a free job; the lock decides between their children."""
    path = small_plan(tmp_path)
    (spec,) = load_plan(path).jobs
    folder = load_plan(path).folder(spec)
    start, first = jobs.start_child, []

    def beaten(folder: Path) -> "subprocess.Popen[bytes]":
        first.append(other_process(folder))
        return start(folder)

    monkeypatch.setattr(jobs, "start_child", beaten)
    try:
        with pytest.raises(FolderLocked, match="being written by `a test`, process "):
            main(["run", str(path)])
    finally:
        for process in first:
            process.kill()
            process.wait()
    assert jobs.read_progress(folder).state == "waiting"


@pytest.mark.slow
def test_two_drivers_of_one_plan_run_every_job_once(tmp_path: Path) -> None:
    path = small_plan(tmp_path, concepts=("neon", "sketch"))
    environment = {**os.environ, "ERASURE_CACHE": str(tmp_path / "cache")}
    argv = [sys.executable, "-m", "app.cli", "jobs", "run", str(path)]
    drivers = [subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said: dict[int, str] = {}
    threads = [threading.Thread(target=lambda i=i: said.update({i: drivers[i].communicate()[1]})) for i in range(2)]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(900)
    codes = [driver.returncode for driver in drivers]
    assert sorted(codes) in ([0, 2], [2, 2]), said
    refused = codes.index(2)
    assert "is being written by `erasure jobs`" in said[refused] and "Traceback" not in said[refused]
    subprocess.run(argv, env=environment, check=True, stderr=subprocess.DEVNULL)
    plan = load_plan(path)
    for spec in plan.jobs:
        folder = plan.folder(spec)
        assert len((folder / "edit" / "train.jsonl").read_text().splitlines()) == 40
        assert jobs.read_progress(folder).state == "done"
    assert not list(tmp_path.rglob("*.part")) and not list(tmp_path.rglob(".lock*"))
