"""Measure the fleet and write docs/results/fleet.md: its overhead on real jobs, how an audit scales, and a simulation of a large plan.

    python scripts/measure_fleet.py --work runs/fleet                    # every part: about an hour of two idle cores
    python scripts/measure_fleet.py --work runs/fleet --part simulation

Every comparison is made in pairs, one after the other in this run, and is given as the ratio of the medians.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import yaml
from fill_docs import fill_section

from app.child_command import child_argv
from app.jobs import queue
from app.jobs.fleet import Fleet, FleetWorkerSlot
from app.jobs.fleet_tasks import Task
from app.jobs.plan import JobSpec
from erasure.concept import Concept
from erasure.storage.files import write_checksummed_json
from erasure.storage.locks import lock_folder

PAIRS = 5
JOBS, WORKERS = 10_000, 64  # of the simulation
TOKEN = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}


def page(docs: Path) -> Path:
    return docs / "results" / "fleet.md"


def run_command(folder: Path, *words: str) -> float:
    """Run a command with the cache of a folder, and return its seconds. Exit codes of verdicts count as success."""
    environment = {**os.environ, "ERASURE_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    started = time.perf_counter()
    done = subprocess.run(child_argv("app.cli", *words), env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3, 4):
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return time.perf_counter() - started


def write_plan(folder: Path) -> Path:
    """A plan of four short erasures on pocket: two by ESD, two by UCE."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    esd = {"concept": "neon", "method": "esd", "seed": [0, 1], "fields": {"steps": 40}}
    record = {"out": str(folder / "out"), "jobs": [esd, {"concept": ["neon", "sketch"], "method": "uce"}]}
    (folder / "plan.yaml").write_text(yaml.safe_dump(record))
    return folder / "plan.yaml"


def report_overhead(work: Path, docs: Path) -> None:
    """The same plan without a fleet, with one worker, and with two."""
    ways: dict[str, tuple[str, ...]] = {
        "without a fleet": (),
        "fleet of one worker": ("--fleet", "local", "--worker-cores", str(os.cpu_count())),
        "fleet of a worker per core": ("--fleet", "local"),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for pair in range(PAIRS):
        for way, flags in ways.items():
            folder = work / "overhead"
            plan = write_plan(folder)
            seconds[way].append(run_command(folder, "jobs", "run", str(plan), *flags))
            print(f"overhead, run {pair + 1}, {way}: {seconds[way][-1]:.1f} s", flush=True)
    base = statistics.median(seconds["without a fleet"])
    rows = ["| a plan of 4 jobs; one thread a process | seconds, median of 5 (range) | ratio |", "|---|---|---|"]
    rows += [f"| {way} | {spread(values)} | {statistics.median(values) / base:.2f} |" for way, values in seconds.items()]
    fill_section(page(docs), "overhead", rows)


def report_scaling(work: Path, docs: Path) -> None:
    """One standard audit with one and with two processes; each starts with an empty cache."""
    edit = work / "scaling" / "edit"
    shutil.rmtree(work / "scaling", ignore_errors=True)
    run_command(work / "scaling", "erase", "--method", "uce", "--concept", "neon", "--out", str(edit))
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for pair in range(PAIRS):
        for workers, values in seconds.items():
            folder = work / "scaling" / f"{pair}-{workers}"
            values.append(run_command(folder, "audit", str(edit), "--workers", str(workers), "--out", str(folder / "audit")))
            print(f"scaling, run {pair + 1}, {workers} workers: {values[-1]:.1f} s", flush=True)
    ratio = statistics.median(seconds[1]) / statistics.median(seconds[2])
    rows = ["| a standard audit of neon; one thread a process | seconds, median of 5 (range) |", "|---|---|"]
    rows += [f"| {workers} worker{'s' * (workers > 1)} | {spread(values)} |" for workers, values in seconds.items()]
    fill_section(page(docs), "scaling", [*rows, "", f"Two workers are {ratio:.2f} times as fast as one."])


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def do_nothing(task: Task) -> None:
    """The work of a simulated job: its lock, its last file, and a mark for each time that it was done."""
    with lock_folder(task.folder, queue.FLEET_COMMAND):
        if (task.folder / "done.json").exists():
            return  # its worker was lost after it was done
        write_checksummed_json(task.folder / "done.json", {"edits": [], "audits": [], "seconds": 0.0})
        with (task.folder / "times").open("a") as times:
            times.write("x")


def report_simulation(work: Path, docs: Path) -> None:
    """A plan of 10,000 empty jobs on 64 workers; when half is done a third of the workers are killed."""
    root = work / "simulation"
    shutil.rmtree(root, ignore_errors=True)
    os.environ |= TOKEN
    import ray  # reads its settings when it is imported

    ray.init(address="local", num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
    driver, fleet = psutil.Process(), Fleet(work=do_nothing, has_audits=True)  # as many workers as fit, before there is a job
    before = driver.memory_info().rss
    started = time.perf_counter()
    while sum(worker.info is not None for worker in fleet.workers) < WORKERS:
        step(fleet, 0.1)
    all_started = time.perf_counter() - started
    specs = [JobSpec(concepts=(Concept(name="neon", kind="style"),), seed=i) for i in range(JOBS)]
    queued = timed(lambda: [submit(fleet, root, spec) for spec in specs])
    cpu, started = sum(driver.cpu_times()[:2]), time.perf_counter()
    while fleet.unfinished > JOBS // 2:
        step(fleet, 1.0)
    steady, cpu_job = (time.perf_counter() - started) / (JOBS // 2), (sum(driver.cpu_times()[:2]) - cpu) / (JOBS // 2)
    victims = [worker for worker in fleet.workers if worker.info][: WORKERS // 3]
    recovered, lost = kill_and_wait(fleet, victims)
    while fleet.unfinished:
        step(fleet, 1.0)
    total = time.perf_counter() - started
    peak = driver.memory_info().rss
    done = [root / spec.folder_name for spec in specs if (root / spec.folder_name / "done.json").exists()]
    again = sum(path.stat().st_size > 1 for path in root.glob("*/times"))
    ray.shutdown()
    rate = 1 / cpu_job
    lines = [
        f"{JOBS:,} jobs without work on {WORKERS} workers, all on the {os.cpu_count()} cores of one machine:",
        "",
        "| what | measured |",
        "|---|---|",
        f"| jobs done | {len(done):,} of {JOBS:,} |",
        f"| done more than once | {again} |",
        f"| to queue them: folders and specifications | {queued:.1f} s |",
        f"| to start all workers | {all_started:.0f} s |",
        f"| a job, all workers running | {1000 * steady:.1f} ms, of which the driver computes {1000 * cpu_job:.1f} ms |",
        f"| all jobs, with the kills and the recovery | {total:.0f} s |",
        f"| driver's memory: before, at the end | {before / 2**20:.0f}, {peak / 2**20:.0f} MiB |",
        f"| killed at half time | {len(victims)} workers; {lost} of their jobs ran again |",
        f"| until as many workers ran as before | {recovered:.0f} s |",
        "",
        f"The driver is one process. At {1000 * cpu_job:.1f} ms a stage it hands out at most {rate:.0f} stages a second.",
        f"1,000 GPUs with jobs of five minutes, each in three stages, need 1,000 x 3 / 300 s = 10 a second: {1000 / rate:.0f}% of that.",
    ]
    fill_section(page(docs), "simulation", lines)


def step(fleet: Fleet, timeout: float) -> None:
    """Let the fleet go on; a job that ends with an error ends the simulation."""
    for job in fleet.step(timeout):
        if job.error:
            raise SystemExit(f"{job.folder}: {job.error.message}")


def kill_and_wait(fleet: Fleet, victims: list[FleetWorkerSlot]) -> tuple[float, int]:
    """Kill workers; return the seconds until all have been replaced, and how many jobs they had."""
    dead = {worker.info.process.pid for worker in victims if worker.info}
    for pid in dead:
        psutil.Process(pid).kill()
    started, losses_before = time.perf_counter(), set(fleet.ended)
    while len(set(fleet.ended) - losses_before) < len(dead):
        step(fleet, 0.1)
        if time.perf_counter() - started > 300:
            raise SystemExit("the workers did not come back within five minutes")
    return time.perf_counter() - started, fleet.losses


def submit(fleet: Fleet, root: Path, spec: JobSpec) -> None:
    queue.enqueue(root / spec.folder_name, spec)
    fleet.submit(root / spec.folder_name, spec)


def timed(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


PARTS = {"overhead": report_overhead, "scaling": report_scaling, "simulation": report_simulation}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/fleet"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--part", choices=tuple(PARTS), action="append", help="run this part only; may be repeated")
    args = parser.parse_args()
    for part in args.part or PARTS:
        PARTS[part](
            args.work.absolute(),
            args.docs,
        )
    print(page(args.docs), file=sys.stderr)


if __name__ == "__main__":
    main()
