"""`erasure jobs`: run plans of many erasures with audits, one after the other, each in its own process."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
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

    Exit code 0: every job is done and every audit passes (or none was requested). 3: an audit fails. 2: a job is not done, or
    an audit is incomplete. 4: an audit is inconclusive.
    """

    words: ClassVar[str] = "jobs run"

    plan: Annotated[Path, tyro.conf.Positional]  # YAML file; its lists multiply
    dry_run: Switch = False  # print the jobs and their cost, and stop
    keep_going: Switch = False  # do not stop at the first job that fails
    retry: Switch = False  # run failed and cancelled jobs again


@dataclass(frozen=True, kw_only=True)
class StatusCommand:
    """Show the state of the jobs of a plan, or below a folder."""

    words: ClassVar[str] = "jobs status"

    path: Annotated[Path, tyro.conf.Positional] = Path("runs")  # a plan, or a folder with jobs below it


@dataclass(frozen=True, kw_only=True)
class LeaderboardCommand:
    """Collect every audit below a folder into leaderboard.csv, .md and .html: one line per audit, with intervals and cost."""

    words: ClassVar[str] = "jobs leaderboard"

    path: Annotated[Path, tyro.conf.Positional] = Path("runs")  # folder with runs below it
    out: Path | None = None  # folder for the three files; default: the same folder


@dataclass(frozen=True, kw_only=True)
class RunOneCommand:
    """Run a single job in the folder of its spec.json; for schedulers.

    Exit code 0 means that the job is done, because schedulers repeat jobs that end otherwise. The verdict is in the last line, and in
    the exit code of `jobs run`.
    """

    words: ClassVar[str] = "jobs run-one"

    spec: Annotated[Path, tyro.conf.Positional]  # spec.json, as `erasure jobs run` writes it
    parent_pid: int = 0  # process id; this process ends when that one does


JobsAction = (
    Annotated[RunCommand, tyro.conf.subcommand("run")]
    | Annotated[StatusCommand, tyro.conf.subcommand("status")]
    | Annotated[LeaderboardCommand, tyro.conf.subcommand("leaderboard")]
    | Annotated[RunOneCommand, tyro.conf.subcommand("run-one")]
)


@dataclass(frozen=True, kw_only=True)
class JobsCommand:
    """Run plans of many erasures and audits, each job in its own process; show their state and a leaderboard."""

    words: ClassVar[str] = "jobs"

    action: JobsAction


def run_jobs(command: JobsCommand) -> int:
    """Run an action and return its exit code."""
    match command.action:
        case RunCommand():
            return run_plan(command.action)
        case StatusCommand():
            return print_status(command.action)
        case LeaderboardCommand():
            return export_leaderboard(command.action)
        case RunOneCommand():
            return run_one(command.action)


def run_one(command: RunOneCommand) -> int:
    """Run a job. Return 0 when it is done, whatever its verdict.

    Raises:
        UserError: The spec cannot be read, or as the erasure and the audit.
    """
    from app.jobs.audit_outcomes import load_outcomes, summarize_verdicts
    from app.jobs.plan import JobSpec

    spec = JobSpec.load(command.spec)  # fails before torch is imported
    from app.jobs.child_processes import exit_with_parent
    from app.jobs.execution import run_job

    if command.parent_pid:
        exit_with_parent(command.parent_pid)
    run_job(command.spec.parent, spec)
    print(f"{command.spec.parent}: done; {summarize_verdicts(load_outcomes(command.spec.parent))}")
    return EXIT_OK


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
    if command.dry_run:
        from app.jobs.forecast import forecast_jobs

        print(render_forecast_table(plan, forecast_jobs(plan)))
        return EXIT_OK
    runnable_states = ("waiting", "interrupted", "broken", *(("failed", "cancelled") if command.retry else ()))
    pending = [spec for spec in plan.jobs if queue.read_progress(plan.folder(spec)).state in runnable_states]
    for spec in plan.jobs:
        check_unlocked(plan.folder(spec))  # fails if another process works on the job
    for spec in pending:
        check_suite(spec)
    for spec in pending:
        enqueue_again(plan.folder(spec), spec)
    with ProgressTable(plan) as table:
        for spec in pending:
            is_done = run_in_child(plan.folder(spec), spec, table)
            if not is_done and not command.keep_going:
                break
    return print_summary(plan)


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


def check_suite(spec: "JobSpec") -> None:
    """Check the suite of a job before the first job starts. What needs the model is checked when the job begins.

    Raises:
        UserError: The suite does not exist, or lacks a concept or its prompt list.
    """
    from eval.suites.formats import check_has_prompts
    from eval.suites.suite import load_suite

    if not spec.suite:
        return
    try:
        suite = load_suite(spec.suite)
        for concept in spec.concepts:
            suite.find_concept(concept.name)
        check_has_prompts(suite)
    except UserError as error:
        raise UserError(f"job {spec.name}: {error}") from error


def print_summary(plan: "Plan") -> int:
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
            reason = ": " + job_progress.error if job_progress.error else ""
            retry_hint = "; --retry runs it again" if job_progress.state in ("failed", "cancelled") else ""
            print(f"  {job_progress.state}: {spec.name}, seed {spec.seed} ({plan.folder(spec)}){reason}{retry_hint}", file=sys.stderr)
    return worst_exit_code([*(outcome.code for _, outcome in audits), *[EXIT_INCOMPLETE] * (done < len(progresses))])


def print_status(command: StatusCommand) -> int:
    """Print the state of jobs as a table.

    Raises:
        UserError: Neither a plan nor a folder, or one without a job.
    """
    from app.jobs.plan import load_plan
    from app.jobs.queue import find_jobs, read_progress
    from app.jobs.tables import render_status_table

    if command.path.suffix in (".yaml", ".yml"):
        plan = load_plan(command.path)
        rows: Sequence[tuple[Path, JobSpec | None]] = [(plan.folder(spec), spec) for spec in plan.jobs]
    elif command.path.is_dir():
        rows = list(find_jobs(command.path))
    else:
        raise UserError(f"{command.path} is neither a plan (.yaml) nor a folder.")
    if not rows:
        raise UserError(f"no job below {command.path}; name a plan, or the folder that its jobs are in.")
    print(render_status_table(rows))
    for folder, _ in rows:
        if (job_progress := read_progress(folder)).state == "broken":
            print(f"broken: {folder}: {job_progress.error}", file=sys.stderr)
    return EXIT_OK


def export_leaderboard(command: LeaderboardCommand) -> int:
    """Write the leaderboard of the audits below a folder.

    Raises:
        UserError: Not a folder, one without an audit, or a folder that cannot be written.
    """
    from app.jobs.leaderboard import load_leaderboard, write_leaderboard
    from erasure.storage.run import check_output_folder

    if not command.path.is_dir():
        raise UserError(f"{command.path} is not a folder; name the one your runs are in.")
    if command.out:
        check_output_folder(command.out)
    rows, unreadable = load_leaderboard(command.path)
    for line in unreadable:
        print(f"left out: {line}", file=sys.stderr)
    if not rows:
        raise UserError(f"no audit below {command.path}; run `erasure audit` or a plan with a suite first.")
    for path in write_leaderboard(rows, command.out or command.path):
        print(path)
    return EXIT_OK
