"""A fleet for real: workers and drivers killed with SIGKILL, rerun until done; the bytes of a run without a fleet, each job done once."""

import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import yaml

from app.jobs import queue
from app.jobs.cluster import connect, disconnect
from app.jobs.fleet import Fleet, FleetJob
from app.jobs.plan import JobSpec, Plan, load_plan
from app.web.fleet_queue import FleetQueue
from erasure.concept import Concept
from erasure.storage.locks import holders_of
from erasure.storage.processes import this_process
from tests.factories import PLAN_FIELDS, write_small_plan
from tests.fleet_work import die, note_process, wait_for_cancel
from tests.lock_holders import hold_lock_in_child, plant_lock

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="the extra ray")  # not imported: it reads its settings once
TIMES = ("timing.json", "done.json", "log.txt", "preview.png", "report.html", "manifest.json")  # files that contain times or the folder


RUN = """
import sys
from pathlib import Path
from app.jobs import queue
from app.jobs.execution import run_job
from app.jobs.plan import load_plan
plan = load_plan(Path(sys.argv[1]))
for spec in plan.jobs:
    queue.enqueue(plan.folder(spec), spec)
    run_job(plan.folder(spec), spec)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Ray cluster of two cores that outlives the commands on it."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    command = [Path(sys.executable).with_name("ray"), "start", "--head", "--port", "0", "--num-cpus", "2", "--include-dashboard", "false"]
    started = subprocess.run([*command, "--temp-dir", "/tmp/ray-tests"], env=environment, capture_output=True, text=True, check=False)
    address = re.search(r"--address='([^']+)'", started.stdout)
    assert address, started.stdout + started.stderr
    yield address.group(1)
    for process in psutil.process_iter(["cmdline"]):  # `ray stop` would also stop clusters of other people
        if any("/tmp/ray-tests" in word for word in process.info["cmdline"] or ()):
            with suppress(psutil.NoSuchProcess):
                process.kill()


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A plan that has been run without a fleet."""
    folder = tmp_path_factory.mktemp("straight")
    plan = write_plan(folder, folder / "model", 3)
    environment = {**os.environ, "ERASURE_CACHE": str(folder / "cache")}
    subprocess.run([sys.executable, "-c", RUN, str(folder / "plan.yaml")], check=True, env=environment, capture_output=True)
    return plan


def start(folder: Path, *words: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "app.cli", "jobs", "run", str(folder / "plan.yaml"), "--retry", "--keep-going", *words],
        env={**os.environ, "ERASURE_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=(folder / "stderr.txt").open("ab"),
    )


def write_plan(folder: Path, model: Path, jobs: int) -> Plan:
    """A plan of ESD and UCE erasures with audits; its jobs have equal names in every folder."""
    if folder == model.parent:
        write_small_plan(folder)
    concepts = ["neon", "sketch", "boat", "tree"][: jobs if jobs == 3 else None]
    entries = [{"concept": concepts, "method": "esd", "fields": {**PLAN_FIELDS, "steps": 30}, "seed": [0, 1]}]
    entries += [{"concept": list(concepts), "method": "uce"}]
    suite = model.parent / "suite.yaml"
    record = {"model": str(model), "suite": str(suite), "out": str(folder / "out"), "jobs": entries if jobs == 12 else [entries[1]]}
    folder.mkdir(exist_ok=True)
    (folder / "plan.yaml").write_text(yaml.safe_dump(record), encoding="utf-8")
    return load_plan(folder / "plan.yaml")


def result_bytes(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in TIMES]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def completions(plan: Plan) -> dict[str, int]:
    """How often each job was run to its end, by its log; only of a fleet's workers."""
    logs = {spec.folder_name: plan.folder(spec) / "log.txt" for spec in plan.jobs}
    return {name: log.read_text(errors="replace").count(f"{name}: done; audits") for name, log in logs.items()}


def kill_at_random(plan: Plan, folder: Path, address: str, kills: int, rng: random.Random) -> int:
    """Kill one of the working workers, or every second time the driver; return how many kills hit before all jobs were done."""
    hits = 0
    driver = start(folder, "--fleet", address)
    while hits < kills and driver.poll() is None:
        done = sum((plan.folder(spec) / "done.json").exists() for spec in plan.jobs)
        target = rng.randint(0, 3)
        while driver.poll() is None and not [h for spec in plan.jobs for h in holders_of(plan.folder(spec))]:
            time.sleep(0.05)
        with suppress(subprocess.TimeoutExpired):
            driver.wait(0.2 + 0.5 * target * rng.random())
        if driver.poll() is not None or done >= len(plan.jobs) - 1:
            break
        if hits % 2:
            driver.kill()
            driver.wait()
            driver = start(folder, "--fleet", address)
            hits += 1
            continue
        holders = [holder.process.pid for spec in plan.jobs for holder in holders_of(plan.folder(spec))]
        if holders:
            with suppress(psutil.NoSuchProcess):
                psutil.Process(rng.choice(holders)).kill()
                hits += 1
    assert driver.wait() == 0, (folder / "stderr.txt").read_text()[-3000:]
    return hits


@pytest.fixture
def connected(cluster: str) -> Iterator[None]:
    """This process as the driver of a fleet on the cluster."""
    connect(cluster)
    yield
    disconnect()


def drive(fleet: Fleet, seconds: float = 120.0) -> list[FleetJob]:
    """Step until all jobs have ended, and return them."""
    ended: list[FleetJob] = []
    deadline = time.monotonic() + seconds
    while fleet.unfinished and not fleet.is_stuck():
        assert time.monotonic() < deadline
        ended += fleet.step(0.2)
    return ended


def queue_jobs(root: Path, count: int, models: tuple[str, ...] = ("pocket",)) -> list[tuple[Path, JobSpec]]:
    """Jobs without audits, for workers that do not really erase."""
    specs = [JobSpec(concepts=(Concept(name="neon", kind="style"),), seed=i, model=models[i % len(models)]) for i in range(count)]
    for spec in specs:
        queue.enqueue(root / spec.folder_name, spec)
    return [(root / spec.folder_name, spec) for spec in specs]


def check_killed(plan: Plan, straight: Plan) -> None:
    """All jobs are done, with the bytes of a run without a fleet; none was run to its end twice, and nothing of the dead is left."""
    assert all((plan.folder(spec) / "done.json").exists() for spec in plan.jobs)
    assert result_bytes(plan.out) == result_bytes(straight.out)
    assert set(completions(plan).values()) <= {0, 1}  # 0 where the worker was killed before it could print
    assert not [path for path in plan.out.rglob("*") if path.name.endswith(".part") or path.name.startswith(".lock")]


def test_a_killed_worker_and_a_killed_driver_lose_nothing(cluster: str, straight: Plan, tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "killed", straight.out.parent / "model", 3)
    assert kill_at_random(plan, tmp_path / "killed", cluster, 2, random.Random(4)) == 2
    check_killed(plan, straight)


@pytest.mark.slow
def test_ten_kills_of_workers_and_drivers_lose_nothing(cluster: str, tmp_path: Path) -> None:
    folder = tmp_path / "straight"
    folder.mkdir()
    straight = write_plan(folder, folder / "model", 12)
    assert start(folder).wait() == 0, (folder / "stderr.txt").read_text()[-2000:]
    plan = write_plan(tmp_path / "killed", folder / "model", 12)
    assert kill_at_random(plan, tmp_path / "killed", cluster, 10, random.Random(12)) == 10
    assert len(plan.jobs) == 12
    check_killed(plan, straight)


def test_an_audit_is_split_where_workers_would_idle(connected: None, straight: Plan, tmp_path: Path) -> None:
    split = Plan(straight.jobs[:1], tmp_path / "split")
    (spec,) = split.jobs
    queue.enqueue(split.folder(spec), spec)
    fleet, stages = Fleet(), set()
    fleet.submit(split.folder(spec), spec)
    while fleet.unfinished:
        assert not [job.error for job in fleet.step(0.05) if job.error]
        stages |= {(worker.task.stage, worker.task.shard) for worker in fleet.running if worker.task}
    assert stages == {("erasure", (0, 1)), ("shard", (0, 2)), ("shard", (1, 2)), ("job", (0, 1))}
    assert result_bytes(split.folder(spec)) == result_bytes(straight.folder(spec))


def test_workers_stay_with_their_model(connected: None, tmp_path: Path) -> None:
    jobs = queue_jobs(tmp_path, 12, ("one", "two"))
    fleet = Fleet(work=note_process)
    for job in jobs:
        fleet.submit(*job)
    assert all(job.error is None for job in drive(fleet))
    by_process: dict[str, set[str]] = {}
    for folder, spec in jobs:
        by_process.setdefault((folder / "process").read_text(), set()).add(spec.model)
    assert len(by_process) == 2
    assert sorted(map(len, by_process.values())) in ([1, 1], [1, 2])  # one may help the other at the end


def test_a_job_that_takes_its_worker_with_it_fails_alone(connected: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    jobs = queue_jobs(tmp_path, 3)
    fleet = Fleet(work=die)
    for job in jobs:
        fleet.submit(*job)
    errors = {job.folder: job.error for job in drive(fleet)}
    assert [errors[folder] is None for folder, _ in jobs] == [False, True, True]
    assert queue.read_progress(jobs[0][0]).state == "failed"
    assert "worker was lost 3 times; out of memory?" in queue.read_progress(jobs[0][0]).error
    assert capfd.readouterr().err.count("another one continues") == 2


def test_a_cancelled_job_frees_its_worker(connected: None, tmp_path: Path) -> None:
    jobs = queue_jobs(tmp_path, 3)
    fleet = Fleet(work=wait_for_cancel)
    for job in jobs:
        fleet.submit(*job)
    while queue.read_progress(jobs[0][0]).state != "running" or fleet.unfinished > 1:
        fleet.step(0.1)
    queue.cancel(jobs[0][0])
    (ended,) = drive(fleet)
    assert ended.error and "cancelled" in ended.error.message
    assert queue.read_progress(jobs[0][0]).state == "cancelled" and not holders_of(jobs[0][0])


def test_a_locked_job_waits_for_its_holder(connected: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (job,) = queue_jobs(tmp_path, 1)
    holder = hold_lock_in_child(job[0])
    fleet = Fleet(work=note_process)
    fleet.submit(*job)
    while "waiting: " not in capfd.readouterr().err:
        assert not fleet.step(0.1)
    holder.kill()
    holder.wait()
    (ended,) = drive(fleet)
    assert ended.error is None


def test_a_lock_of_another_machine_is_named_and_not_waited_for_forever(
    connected: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("app.jobs.fleet.LOCKED_SECONDS", 3.0)
    (job,) = queue_jobs(tmp_path, 1)
    plant_lock(job[0] / ".lock", replace(this_process(), machine_id="elsewhere", host="node-7"))
    fleet = Fleet(work=note_process)
    fleet.submit(*job)
    assert drive(fleet) == [] and fleet.unfinished == 1
    error = capfd.readouterr().err
    assert "on node-7" in error and "tried again" in error and "repeat the command" not in error
    assert "delete" in fleet.lock_messages()[0]
    # Ray's word that the machine is lost, as the driver passes it on
    lost = holders_of(job[0])[0].process
    fleet.ended[lost.mark], fleet.last_progress = lost, time.monotonic()
    (ended,) = drive(fleet)
    assert ended.error is None


def test_the_studio_gives_waiting_jobs_to_the_fleet(connected: None, tmp_path: Path) -> None:
    jobs = queue_jobs(tmp_path, 3)
    (jobs[2][0] / "cancelled").touch()
    worker = FleetQueue(tmp_path)
    worker.fleet.work = note_process
    worker.start()
    deadline = time.monotonic() + 60
    while not all((folder / "done.json").exists() for folder, _ in jobs[:2]) and time.monotonic() < deadline:
        time.sleep(0.1)
    queue.requeue(jobs[2][0])  # as the page's Continue does
    while not (jobs[2][0] / "done.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    worker.stop()
    assert [queue.read_progress(folder).state for folder, _ in jobs] == ["done"] * 3
