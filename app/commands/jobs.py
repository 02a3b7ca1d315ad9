"""`erasure jobs`: run plans of many erasures with audits, one after the other, each in its own process."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from app.jobs.audit_outcomes import load_outcomes, summarize_verdicts, worst_exit_code
from app.jobs.plan import JobSpec, Plan, load_plan
from app.parsing import parse_options
from erasure.errors import UserError, unknown_value_error
from erasure.storage.run import check_output_folder
from eval.scoring.gates import EXIT_INCOMPLETE

ACTIONS = {
    "run": "run the jobs of a plan; complete jobs are skipped",
    "status": "show the state of the jobs of a plan, or below a folder",
    "leaderboard": "collect every audit below a folder into a leaderboard: CSV, Markdown, HTML",
    "run-one": "run a single job from its spec.json; for schedulers",
}
EXIT_OK = 0


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Run the jobs of a plan, each in its own process. If it is killed at any point, the same command continues.

    Exit code 0: every job is done and every audit passes (or none was requested). 3: an audit fails. 2: a job is not done, or
    an audit is incomplete. 4: an audit is inconclusive.
    """

    plan: Annotated[Path, tyro.conf.Positional]  # YAML file; its lists multiply
    dry_run: bool = False  # print the jobs and their cost, and stop
    keep_going: bool = False  # do not stop at the first job that fails
    retry: bool = False  # run failed and cancelled jobs again


@dataclass(frozen=True, kw_only=True)
class StatusOptions:
    """Show the state of jobs."""

    path: Annotated[Path, tyro.conf.Positional] = Path("runs")  # a plan, or a folder with jobs below it


@dataclass(frozen=True, kw_only=True)
class LeaderboardOptions:
    """Write leaderboard.csv, leaderboard.md and leaderboard.html: one line per audit, with intervals and cost."""

    path: Annotated[Path, tyro.conf.Positional] = Path("runs")  # folder with runs below it
    out: Path | None = None  # folder for the three files; default: the same folder


@dataclass(frozen=True, kw_only=True)
class RunOneOptions:
    """Run a single job in the folder of its spec.json.

    Exit code 0 means that the job is done, because schedulers repeat jobs that end otherwise. The verdict is in the last line, and in
    the exit code of `jobs run`.
    """

    spec: Annotated[Path, tyro.conf.Positional]  # spec.json, as `erasure jobs run` writes it
    parent_pid: int = 0  # process id; this process ends when that one does


def main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"  {name:<11} {text}" for name, text in ACTIONS.items()]
        print("\n".join(["usage: erasure jobs ACTION [options]", "", *lines, "", "`erasure jobs ACTION --help` lists the options."]))
        return EXIT_OK
    action, *rest = argv
    match action:
        case "run":
            return run_plan(parse_options(RunOptions, rest, "jobs run"))
        case "status":
            return print_status(parse_options(StatusOptions, rest, "jobs status"))
        case "leaderboard":
            return export_leaderboard(parse_options(LeaderboardOptions, rest, "jobs leaderboard"))
        case "run-one":
            return run_one(parse_options(RunOneOptions, rest, "jobs run-one"))
        case _:
            raise unknown_value_error("action of erasure jobs", action, ACTIONS)


def run_one(options: RunOneOptions) -> int:
    spec = JobSpec.load(options.spec)  # fails before torch is imported
    from app.jobs.child_processes import exit_with_parent
    from app.jobs.execution import run_job

    if options.parent_pid:
        exit_with_parent(options.parent_pid)
    run_job(options.spec.parent, spec)
    print(f"{options.spec.parent}: done; {summarize_verdicts(load_outcomes(options.spec.parent))}")
    return EXIT_OK


def run_plan(options: RunOptions) -> int:
    from app.jobs import queue
    from app.jobs.tables import ProgressTable, render_forecast_table
    from erasure.storage.files import print_message
    from erasure.storage.locks import check_unlocked

    plan = load_plan(options.plan)
    if options.dry_run:
        from app.jobs.forecast import forecast_jobs

        print(render_forecast_table(plan, forecast_jobs(plan)))
        return EXIT_OK
    runnable_states = ("waiting", "interrupted", "broken", *(("failed", "cancelled") if options.retry else ()))
    pending = [spec for spec in plan.jobs if queue.read_progress(plan.folder(spec)).state in runnable_states]
    for spec in plan.jobs:
        check_unlocked(plan.folder(spec))  # fails if another process works on the job
    for spec in pending:
        check_suite(spec)
    for spec in pending:
        job_progress = queue.read_progress(plan.folder(spec))
        if job_progress.state == "broken":
            print_message(f"{spec.name}: {job_progress.error} It runs again.")
            queue.enqueue(plan.folder(spec), spec)
        if job_progress.state in queue.STOPPED_STATES:
            queue.requeue(plan.folder(spec))
    with ProgressTable(plan) as table:
        for spec in pending:
            folder = plan.folder(spec)
            queue.enqueue(folder, spec)
            check_unlocked(folder)
            if queue.read_progress(folder).state not in ("waiting", "interrupted"):
                continue  # another process has finished or cancelled it meanwhile
            child = queue.start_child(folder)
            try:
                while child.poll() is None:
                    table.update()
                    time.sleep(0.5)
            except BaseException:
                child.terminate()
                child.wait()
                raise
            table.update()
            if child.returncode:
                queue.record_exit(folder, child.returncode)
            if child.returncode == EXIT_INCOMPLETE and queue.read_progress(folder).state != "done":
                check_unlocked(folder)  # another process may have locked it first
                print(f"{spec.name}: {queue.last_log_line(folder)}", file=sys.stderr)
            if queue.read_progress(folder).state != "done" and not options.keep_going:
                break
    return print_summary(plan)


def check_suite(spec: JobSpec) -> None:
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


def print_summary(plan: Plan) -> int:
    """Print how many jobs are done, their verdicts, and one line for each that is not done or does not pass. Return the exit code."""
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


def print_status(options: StatusOptions) -> int:
    from app.jobs.queue import find_jobs, read_progress
    from app.jobs.tables import render_status_table

    if options.path.suffix in (".yaml", ".yml"):
        plan = load_plan(options.path)
        rows: Sequence[tuple[Path, JobSpec | None]] = [(plan.folder(spec), spec) for spec in plan.jobs]
    elif options.path.is_dir():
        rows = list(find_jobs(options.path))
    else:
        raise UserError(f"{options.path} is neither a plan (.yaml) nor a folder.")
    if not rows:
        raise UserError(f"no job below {options.path}; name a plan, or the folder that its jobs are in.")
    print(render_status_table(rows))
    for folder, _ in rows:
        if (job_progress := read_progress(folder)).state == "broken":
            print(f"broken: {folder}: {job_progress.error}", file=sys.stderr)
    return EXIT_OK


def export_leaderboard(options: LeaderboardOptions) -> int:
    from app.jobs.leaderboard import load_leaderboard, write_leaderboard

    if not options.path.is_dir():
        raise UserError(f"{options.path} is not a folder; name the one your runs are in.")
    if options.out:
        check_output_folder(options.out)
    rows, unreadable = load_leaderboard(options.path)
    for line in unreadable:
        print(f"left out: {line}", file=sys.stderr)
    if not rows:
        raise UserError(f"no audit below {options.path}; run `erasure audit` or a plan with a suite first.")
    for path in write_leaderboard(rows, options.out or options.path):
        print(path)
    return EXIT_OK
