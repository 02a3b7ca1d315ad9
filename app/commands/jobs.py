"""`erasure jobs`: plans of many erasures with audits, their state, and a leaderboard. Its action `run` has a module of its own."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import tyro

from app.commands.jobs_run import EXIT_OK, RunCommand, run_plan
from erasure.errors import UserError

if TYPE_CHECKING:
    from app.jobs.plan import JobSpec


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
        if (job_progress := read_progress(folder)).state in ("failed", "broken"):
            print(f"{job_progress.state}: {folder}: {job_progress.error}", file=sys.stderr)
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
