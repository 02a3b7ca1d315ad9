"""`erasure jobs run`: the jobs of a plan, each in its own process, or on the workers of a fleet."""

import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import tyro

from app.parsing import Switch
from erasure.errors import UserError

if TYPE_CHECKING:
    from app.jobs.plan import JobSpec, Plan
    from app.jobs.tables import ProgressTable

EXIT_OK, EXIT_INCOMPLETE = 0, 2
POLL_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class RunCommand:
    """Run the jobs of a plan, each in its own process; complete jobs are skipped. Killed at any point, the same command continues.

    With --fleet the jobs run on the workers of a Ray cluster, several at a time.

    Exit code 0: every job is done and every audit passes (or none was requested). 3: an audit fails. 2: a job is not done, or
    an audit is incomplete. 4: an audit is inconclusive.
    """

    words: ClassVar[str] = "jobs run"

    plan: Annotated[Path, tyro.conf.Positional]  # YAML file; its lists multiply
    dry_run: Switch = False  # print the jobs and their cost, and stop
    keep_going: Switch = False  # do not stop at the first job that fails
    retry: Switch = False  # run failed and cancelled jobs again
    fleet: str | None = None  # run them on Ray: local (this machine), auto (the cluster here, or of RAY_ADDRESS), or its HOST:PORT
    worker_cores: int = 1  # with --fleet, cores of each worker where the cluster has no GPU; otherwise one GPU each


def run_plan(command: RunCommand) -> int:
    """Run the jobs of a plan, or print what they would cost, and return the exit code.

    Raises:
        UserError: The plan or a suite cannot be used.
        FolderLocked: Another process works on a job.
    """
    from app.jobs import queue
    from app.jobs.plan import load_plan
    from app.jobs.tables import ProgressTable, render_forecast_table
    from erasure.storage.locks import check_unlocked

    plan = load_plan(command.plan)
    check_fleet(command)
    if command.dry_run:
        check_jobs(plan.jobs)
        from app.jobs.forecast import forecast_jobs

        print(render_forecast_table(plan, forecast_jobs(plan)))
        return EXIT_OK
    runnable_states = ("waiting", "interrupted", "broken", *(("failed", "cancelled") if command.retry else ()))
    if command.fleet is not None:  # workers outlive a killed driver for a moment, so a fleet waits for jobs that others work on
        runnable_states += ("running",)
    pending = [spec for spec in plan.jobs if queue.read_progress(plan.folder(spec)).state in runnable_states]
    for spec in plan.jobs if command.fleet is None else ():
        check_unlocked(plan.folder(spec))  # fails if another process works on the job
    check_jobs(pending)
    for spec in pending:
        enqueue_again(plan.folder(spec), spec)
    if command.fleet is not None:
        run_on_fleet(command, command.fleet, plan, pending)
        return print_summary(plan, command.keep_going)
    with ProgressTable(plan) as table:
        for spec in pending:
            is_done = run_in_child(plan.folder(spec), spec, table)
            if not is_done and not command.keep_going:
                break
    return print_summary(plan, command.keep_going)


def check_fleet(command: RunCommand) -> None:
    """Check the address of the fleet and the cores of its workers, without a connection.

    Raises:
        UserError: One of them cannot be used.
    """
    from app.jobs import cluster

    if command.worker_cores < 1:
        raise UserError(f"--worker-cores must be at least 1, got {command.worker_cores}.")
    if command.fleet is None:
        if command.worker_cores > 1:
            raise UserError("--worker-cores is for --fleet; without one, a job takes all cores.")
        return
    cluster.check_address(command.fleet)
    if command.fleet == cluster.LOCAL and command.worker_cores > (cores := os.cpu_count() or 1):
        raise UserError(f"--worker-cores {command.worker_cores} is more than this machine has; it has {cores}.")


def run_on_fleet(command: RunCommand, address: str, plan: "Plan", pending: "Sequence[JobSpec]") -> None:
    """Run jobs on the workers of a Ray cluster; after one that is not done no other begins, unless asked to keep going.

    Raises:
        UserError: Ray is missing, the cluster cannot be reached, or no worker can start.
    """
    from app.jobs import cluster, fleet, queue
    from app.jobs.tables import FleetTable
    from erasure.storage.files import print_message

    cluster.connect(address)
    try:
        running = fleet.Fleet(cores=command.worker_cores)
        for spec in pending:
            queue.enqueue(plan.folder(spec), spec)
            running.submit(plan.folder(spec), spec)
        with FleetTable(running, total=len(plan.jobs), done=len(plan.jobs) - len(pending)) as table:
            while running.unfinished and not running.is_stuck():
                ended = running.step(POLL_SECONDS)
                table.update(ended)
                if not command.keep_going and any(job.error for job in ended):
                    running.drop_waiting()
        for message in running.lock_messages() if running.unfinished else ():
            print_message(message)
    finally:
        cluster.disconnect()


def enqueue_again(folder: Path, spec: "JobSpec") -> None:
    """Put a job that is broken, failed or cancelled back into the queue."""
    from app.jobs import queue
    from erasure.storage.files import print_message

    progress = queue.read_progress(folder)
    if progress.state == "broken":
        print_message(f"{spec.name}: {progress.error} It runs again.")
        queue.enqueue(folder, spec)
    if progress.state in queue.STOPPED_STATES:
        queue.requeue(folder)


def run_in_child(folder: Path, spec: "JobSpec", table: "ProgressTable") -> bool:
    """Run a job in its own process, and return whether it is done; a job that another process has ended meanwhile counts as done.

    Raises:
        FolderLocked: Another process works on the job.
    """
    from app.jobs import queue
    from erasure.storage.locks import check_unlocked

    queue.enqueue(folder, spec)
    check_unlocked(folder)
    if queue.read_progress(folder).state not in ("waiting", "interrupted"):
        return True
    child = queue.start_child(folder)
    try:
        while child.poll() is None:
            table.update()
            time.sleep(POLL_SECONDS)
    except BaseException:
        child.terminate()
        child.wait()
        raise
    table.update()
    if child.returncode:
        queue.record_exit(folder, child.returncode)
    is_done = queue.read_progress(folder).state == "done"
    if child.returncode == EXIT_INCOMPLETE and not is_done:
        check_unlocked(folder)  # another process may have locked it first
        print(f"{spec.name}: {queue.last_log_line(folder)}", file=sys.stderr)
    return is_done


def check_jobs(specs: Sequence["JobSpec"]) -> None:
    """Check every job before the first one starts: its model's name, the values of its fields, its suite. The rest needs the model.

    Raises:
        UserError: The faults of all jobs, in one message.
    """
    faults = list(dict.fromkeys(f"job {spec.name}: {fault}" for spec in specs for fault in find_faults(spec)))
    if len(faults) == 1:
        raise UserError(faults[0])
    if faults:
        raise UserError(f"the plan has {len(faults)} faults: {'; '.join(f'({i}) {fault}' for i, fault in enumerate(faults, 1))}")


def find_faults(spec: "JobSpec") -> Iterator[str]:
    """Yield what is wrong with a job, as far as that shows without its model."""
    from erasure.loading.model_source import check_model_source

    for check in (partial(check_model_source, spec.model), partial(check_fields, spec), partial(check_suite, spec)):
        try:
            check()
        except UserError as error:
            yield str(error)


def check_fields(spec: "JobSpec") -> None:
    """Check the values of a job's fields; in a plan they have no dashes.

    Raises:
        UserError: A value has the wrong type, or one that the method refuses.
    """
    if not spec.fields or not spec.concepts:
        return
    from erasure.config.registry import load_class
    from erasure.methods.base import Method
    from erasure.recipes import configure_method

    try:
        configure_method(load_class("erasure.methods", spec.method, Method), list(spec.concepts), "", spec.fields)
    except UserError as error:
        raise UserError(re.sub(r"--([a-z][a-z-]*)", lambda flag: flag[1].replace("-", "_"), str(error))) from error


def check_suite(spec: "JobSpec") -> None:
    """Check the suite of a job.

    Raises:
        UserError: The suite does not exist, or lacks a concept or its prompt list.
    """
    import eval
    from eval.suites.formats import check_has_prompts

    if not spec.suite:
        return
    suite = eval.load_suite(spec.suite)
    for concept in spec.concepts:
        suite.find_concept(concept.name)
    check_has_prompts(suite)


def print_summary(plan: "Plan", kept_going: bool) -> int:
    """Print how many jobs are done, their verdicts, and one line for each that is not done or does not pass. Return the exit code."""
    from app.jobs.audit_outcomes import load_outcomes, summarize_verdicts, worst_exit_code
    from app.jobs.queue import read_progress

    progresses = [(spec, read_progress(plan.folder(spec))) for spec in plan.jobs]
    done = sum(job_progress.state == "done" for _, job_progress in progresses)
    audits = [(spec, outcome) for spec, _ in progresses for outcome in load_outcomes(plan.folder(spec))]
    print(f"{plan.out}: {done} of {len(progresses)} jobs done; {summarize_verdicts([outcome for _, outcome in audits])}")
    for spec, outcome in audits:
        if outcome.code:
            prefix = "incomplete, " if outcome.code == EXIT_INCOMPLETE else ""
            print(f"  {prefix}{outcome.state}: {spec.name}, seed {spec.seed} ({outcome.folder / 'report.html'})", file=sys.stderr)
    for spec, job_progress in progresses:
        if job_progress.state != "done":
            reason = ": " + job_progress.error.rstrip(".") if job_progress.error else ""
            retry_hint = "; --retry runs it again" if job_progress.state in ("failed", "cancelled") else ""
            print(f"  {job_progress.state}: {spec.name}, seed {spec.seed} ({plan.folder(spec)}){reason}{retry_hint}", file=sys.stderr)
    states = [job_progress.state for _, job_progress in progresses]
    if "failed" in states and "waiting" in states and not kept_going:
        print("  the first failure stopped the plan; --keep-going runs the jobs behind it", file=sys.stderr)
    return worst_exit_code([*(outcome.code for _, outcome in audits), *[EXIT_INCOMPLETE] * (done < len(progresses))])
