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

from app.jobs import leaderboard, queue
from app.jobs.execution import run_job
from app.jobs.plan import JobSpec, load_plan
from app.web.job_panel import job_choices
from app.web.job_view import render_job
from app.web.models import StudioModels
from app.web.queue_worker import QueueWorker
from app.web.studio import Studio
from app.web.tab_board import render_unreadable
from app.web.tab_queue import render_queue
from erasure.concept import Concept
from erasure.errors import Unfinished, UserError
from erasure.export import export_edit
from erasure.families.stable_diffusion import StableDiffusion
from erasure.storage.files import read_json, write_checksummed_json
from erasure.storage.locks import FolderLocked, holder_of, lock_folder
from erasure.storage.processes import this_process
from tests.command_line import run_words
from tests.damage import DAMAGE
from tests.factories import write_small_plan
from tests.lock_holders import hold_lock_in_child, plant_lock
from tests.stopped_runs import run_salun

FILES = {
    "spec.json": None,
    "claim.json": {"phase": "erasing", "total": 5, "started_at": 1.0, "done_before": 0},
    "done.json": {"edits": ["x"], "audits": [], "seconds": 1.0},
    "error.json": {"error": "too bad", "trace": ""},
}


def enqueue_job(root: Path, name: str = "neon") -> Path:
    spec = JobSpec(concepts=(Concept(name=name),))
    queue.enqueue(root / spec.folder_name, spec)
    return root / spec.folder_name


def write_wrong_record(path: Path) -> None:
    """A whole file with the right checksum and nothing in it."""
    write_checksummed_json(path, {"seconds": "long"})


@pytest.mark.parametrize("damage", [*DAMAGE, write_wrong_record])
@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_makes_a_broken_job_and_nothing_else(
    model: StableDiffusion, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: Callable[[Path], None]
) -> None:
    root = tmp_path / "runs" / "jobs"
    folder, other = enqueue_job(root), enqueue_job(root, "sketch")
    if record := FILES[name]:
        write_checksummed_json(folder / name, record)
    damage(folder / name)
    p = queue.read_progress(folder)
    assert p.state == "broken" and name in p.error and "\n" not in p.error
    assert queue.read_progress(other).state == "waiting"

    studio = Studio(StudioModels.of(model), tmp_path / "runs")
    assert {choice for _, choice in job_choices(studio)} == {folder.name, other.name}
    assert "broken" in render_job(studio, folder.name) and name in render_job(studio, folder.name)
    assert "broken" in render_queue(studio) and "waiting" in render_queue(studio)
    _, lines = leaderboard.load_leaderboard(tmp_path / "runs")
    assert len(lines) == 1 and name in render_unreadable(lines)
    assert run_words("jobs", "status", str(tmp_path / "runs")) == 0
    output = capsys.readouterr()
    assert "broken" in output.out and output.err.count("broken: ") == 1 and name in output.err

    with pytest.raises(UserError, match="is broken"):
        queue.cancel(folder)
    if name == "spec.json":
        with pytest.raises(UserError, match=r"spec\.json"):
            studio.jobs.resume(folder.name)
        queue.enqueue(folder, JobSpec(concepts=(Concept(name="neon"),)))  # a plan knows what belongs there
        assert "written again" in capsys.readouterr().err
    else:
        studio.jobs.resume(folder.name)
    assert queue.read_progress(folder).state == "waiting"


def test_the_queue_goes_on_beside_broken_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    broken, good = enqueue_job(tmp_path), enqueue_job(tmp_path, "sketch")
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

    monkeypatch.setattr(queue, "start_child", start)
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


def test_the_leaderboard_leaves_broken_results_out_and_names_them(tmp_path: Path) -> None:
    for i, text in enumerate(("{", "[]", '{"job": {"task": "audit"}}', '{"job": 3}', '{"sha256": "0"}')):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "result.json").write_text(text)
    rows, broken = leaderboard.load_leaderboard(tmp_path)
    assert rows == [] and len(broken) == 5
    assert all(str(tmp_path / str(i)) in " ".join(broken) for i in range(5))


def test_an_export_is_not_a_second_edit(model: StableDiffusion, tmp_path: Path) -> None:
    studio = Studio(StudioModels.of(model), tmp_path / "runs")
    run = tmp_path / "runs" / "jobs" / "x" / "edit"
    edit = run_salun(model, run)
    export_edit(model, edit, "edit", tmp_path / "runs" / "jobs" / "x" / "downloads" / "edit")
    export_edit(model, edit, "edit", tmp_path / "runs" / "exported")
    assert [edit.folder for edit in studio.edits(model.source).values()] == [run]
    (run / "job.json").unlink()
    (run / "edit.json").unlink()  # an export whose run was deleted counts itself; what was prepared for a download does not
    assert len(studio.edits(model.source)) == 1


# two processes for one job --------------------------------------------------------------------------------------------------------


def test_a_job_that_another_process_has_is_refused_and_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = load_plan(write_small_plan(tmp_path))
    folder = plan.folder(plan.jobs[0])
    queue.enqueue(folder, plan.jobs[0])
    other = hold_lock_in_child(folder)
    try:
        with pytest.raises(FolderLocked, match=f"process {other.pid} on"):
            run_job(folder, plan.jobs[0])
        with pytest.raises(FolderLocked, match=f"process {other.pid} on"):
            run_words("jobs", "run", str(tmp_path / "plan.yaml"))
        assert queue.read_progress(folder).state == "running"
        assert sorted(path.name for path in folder.iterdir()) == [".lock", "spec.json"]
    finally:
        other.kill()
        other.wait()
    queue.record_exit(folder, queue.EXIT_UNFINISHED)  # as a driver does after a child that was refused
    assert queue.read_progress(folder).state == "waiting"


def test_a_child_that_comes_second_finds_the_job_done(tmp_path: Path) -> None:
    folder = enqueue_job(tmp_path)
    write_checksummed_json(folder / "done.json", FILES["done.json"] or {})
    run_job(folder, JobSpec.load(folder / "spec.json"))
    assert not (folder / "edit").exists() and not (folder / "claim.json").exists()


# cancels --------------------------------------------------------------------------------------------------------------------------------


def test_a_cancel_before_the_child_begins_is_not_lost(tmp_path: Path) -> None:
    plan = load_plan(write_small_plan(tmp_path))
    folder = plan.folder(plan.jobs[0])
    queue.enqueue(folder, plan.jobs[0])
    child = queue.start_child(folder)
    queue.cancel(folder)
    assert child.wait(120) in (queue.EXIT_UNFINISHED, -signal.SIGTERM)
    assert queue.read_progress(folder).state == "cancelled"
    assert not (folder / "edit").exists()


def test_a_cancel_between_lock_and_claim_is_not_lost(tmp_path: Path) -> None:
    folder = enqueue_job(tmp_path)
    other = hold_lock_in_child(folder)  # it has the lock and no claim
    assert (queue.read_progress(folder).state, queue.read_progress(folder).phase) == ("running", "starting")
    queue.cancel(folder)
    assert other.wait(60) == -signal.SIGTERM
    assert queue.read_progress(folder).state == "cancelled" and holder_of(folder) is None
    queue.requeue(folder)
    (folder / "cancelled").touch()  # and the other way round: the mark is there when the child takes the lock
    with pytest.raises(Unfinished, match="was cancelled before it began"):
        run_job(folder, JobSpec.load(folder / "spec.json"))
    assert not (folder / "claim.json").exists() and not (folder / "error.json").exists()


def test_a_cancel_meets_a_start_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every order of the two processes' four steps one of them sees the other: a child is stopped, or never begins."""
    for order in range(4):
        folder = enqueue_job(tmp_path / str(order))
        killed: list[int] = []

        class Killed:
            def __init__(self, pid: int, killed: list[int] = killed) -> None:
                killed.append(pid)

            def terminate(self) -> None: ...

            kill = resume = terminate

        monkeypatch.setattr("app.jobs.queue.psutil.Process", Killed)
        if order == 0:
            queue.cancel(folder, 0)
        with lock_folder(folder, "erasure jobs"):
            if order == 1:
                queue.cancel(folder, 0)
            state = queue.read_progress(folder).state
            if order == 2:
                queue.cancel(folder, 0)
            if state != "cancelled":
                queue.write_claim(folder, "starting", 0)
                if order == 3:
                    queue.cancel(folder, 0)
            assert (state == "cancelled") == (order < 2) and killed == ([os.getpid()] if order else [])
        assert queue.read_progress(folder).state == "cancelled"


def test_a_cancel_of_another_machines_job_is_refused(tmp_path: Path) -> None:
    folder = enqueue_job(tmp_path)
    holder = plant_lock(folder / ".lock", replace(this_process(), machine_id="0" * 8, host="elsewhere"))
    with pytest.raises(UserError, match=r"worked on by .* on elsewhere.*delete"):
        queue.cancel(folder)
    assert not (folder / "cancelled").exists()
    assert read_json(folder / ".lock")["token"] == holder.token


def test_a_driver_whose_child_came_second_names_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both drivers saw a free job; the lock decides between their children."""
    path = write_small_plan(tmp_path)
    (spec,) = load_plan(path).jobs
    folder = load_plan(path).folder(spec)
    start, first = queue.start_child, []

    def start_after_another(folder: Path) -> "subprocess.Popen[bytes]":
        first.append(hold_lock_in_child(folder))
        return start(folder)

    monkeypatch.setattr(queue, "start_child", start_after_another)
    try:
        with pytest.raises(FolderLocked, match="being written by `a test`, process "):
            run_words("jobs", "run", str(path))
    finally:
        for process in first:
            process.kill()
            process.wait()
    assert queue.read_progress(folder).state == "waiting"


@pytest.mark.slow
def test_two_drivers_of_one_plan_run_every_job_once(tmp_path: Path) -> None:
    path = write_small_plan(tmp_path, concepts=("neon", "sketch"))
    environment = {**os.environ, "ERASURE_CACHE": str(tmp_path / "cache")}
    argv = [sys.executable, "-m", "app.cli", "jobs", "run", str(path)]
    drivers = [subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    output: dict[int, str] = {}
    threads = [threading.Thread(target=lambda i=i: output.update({i: drivers[i].communicate()[1]})) for i in range(2)]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(900)
    codes = [driver.returncode for driver in drivers]
    assert sorted(codes) in ([0, 2], [2, 2]), output
    refused = codes.index(2)
    assert "is being written by `erasure jobs`" in output[refused] and "Traceback" not in output[refused]
    subprocess.run(argv, env=environment, check=True, stderr=subprocess.DEVNULL)
    plan = load_plan(path)
    for spec in plan.jobs:
        folder = plan.folder(spec)
        assert len((folder / "edit" / "train.jsonl").read_text().splitlines()) == 40
        assert queue.read_progress(folder).state == "done"
    assert not list(tmp_path.rglob("*.part")) and not list(tmp_path.rglob(".lock*"))
