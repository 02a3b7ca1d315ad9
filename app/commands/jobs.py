"""`erasure jobs`: plans of many erasures with audits, run one after the other in processes of their own."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from app.jobs.outcome import counts, outcomes, worst
from app.jobs.plan import Plan, Spec, load_plan
from app.parsing import parse
from erasure.errors import UserError, unknown
from erasure.storage.run import usable
from eval.scoring.gates import INCOMPLETE

ACTIONS = {
    "run": "run what a plan asks for; what is complete is skipped",
    "status": "say how far the jobs of a plan, or below a folder, are",
    "board": "collect every audit below a folder into a leaderboard: CSV, Markdown, HTML",
    "run-one": "run a single job from its spec.json; for schedulers",
}
OK = 0


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Run the jobs of a plan, each in a process of its own; killed at any point, the same command continues.

    Exit code 0: every job is done and every audit passes (or none was asked for). 3: an audit fails. 2: a job is not done, or
    an audit lacks something. 4: an audit is inconclusive.
    """

    plan: Annotated[Path, tyro.conf.Positional]  # YAML file; its lists multiply
    dry_run: bool = False  # print the jobs and what they would cost, and stop
    keep_going: bool = False  # do not stop at the first job that fails
    retry: bool = False  # run failed and cancelled jobs again


@dataclass(frozen=True, kw_only=True)
class StatusOptions:
    """Say how far jobs are."""

    where: Annotated[Path, tyro.conf.Positional] = Path("runs")  # a plan, or a folder with jobs below it


@dataclass(frozen=True, kw_only=True)
class BoardOptions:
    """Write board.csv, board.md and board.html: one line for every audit, with intervals and cost."""

    where: Annotated[Path, tyro.conf.Positional] = Path("runs")  # folder with runs below it
    out: Path | None = None  # where the three files go; default: that folder


@dataclass(frozen=True, kw_only=True)
class OneOptions:
    """Run a single job; its folder is the one its spec.json lies in.

    Exit code 0 says that the job is done, since schedulers repeat what ends otherwise; the verdict is in the last line, and in the
    exit code of `jobs run`.
    """

    spec: Annotated[Path, tyro.conf.Positional]  # spec.json, as `erasure jobs run` writes it
    parent: int = 0  # process whose end also ends this one


def main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"  {name:<9} {text}" for name, text in ACTIONS.items()]
        print("\n".join(["usage: erasure jobs ACTION [options]", "", *lines, "", "`erasure jobs ACTION --help` lists the options."]))
        return OK
    action, *rest = argv
    match action:
        case "run":
            return run(parse(RunOptions, rest, "jobs run"))
        case "status":
            return status(parse(StatusOptions, rest, "jobs status"))
        case "board":
            return board(parse(BoardOptions, rest, "jobs board"))
        case "run-one":
            return run_one(parse(OneOptions, rest, "jobs run-one"))
        case _:
            raise unknown("action of erasure jobs", action, ACTIONS)


def run_one(options: OneOptions) -> int:
    spec = Spec.load(options.spec)  # complains before torch is imported
    from app.jobs.child_processes import die_with
    from app.jobs.execution import work

    if options.parent:
        die_with(options.parent)
    work(options.spec.parent, spec)
    print(f"{options.spec.parent}: done; {counts(outcomes(options.spec.parent))}")
    return OK


def run(options: RunOptions) -> int:
    from app.jobs import queue as jobs
    from app.jobs.table import Table, forecast_table
    from erasure.storage.files import tell
    from erasure.storage.locks import check

    plan = load_plan(options.plan)
    if options.dry_run:
        from app.jobs.forecast import forecasts

        print(forecast_table(plan, forecasts(plan)))
        return OK
    again = ("waiting", "interrupted", "broken", *(("failed", "cancelled") if options.retry else ()))
    todo = [spec for spec in plan.jobs if jobs.progress(plan.folder(spec)).state in again]
    for spec in plan.jobs:
        check(plan.folder(spec))  # complains about a job that another process works on
    for spec in todo:
        checked(spec)
    for spec in todo:
        p = jobs.progress(plan.folder(spec))
        if p.state == "broken":
            tell(f"{spec.name}: {p.error} It is run again.")
            jobs.enqueue(plan.folder(spec), spec)
        if p.state in jobs.STOPPED:
            jobs.requeue(plan.folder(spec))
    with Table(plan) as table:
        for spec in todo:
            folder = plan.folder(spec)
            jobs.enqueue(folder, spec)
            check(folder)
            if jobs.progress(folder).state not in ("waiting", "interrupted"):
                continue  # somebody else has done or cancelled it meanwhile
            child = jobs.start(folder)
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
                jobs.explain(folder, child.returncode)
            if child.returncode == INCOMPLETE and jobs.progress(folder).state != "done":
                check(folder)  # another one's child may have been first
                print(f"{spec.name}: {jobs.last_words(folder)}", file=sys.stderr)
            if jobs.progress(folder).state != "done" and not options.keep_going:
                break
    return summary(plan)


def checked(spec: Spec) -> None:
    """Complain about a job's suite before the first job is started; what needs the model is checked when the job begins.

    Raises:
        UserError: no such suite, or one without the concepts or without a list.
    """
    from eval.suites.cases import listed
    from eval.suites.suite import load_suite

    if not spec.suite:
        return
    try:
        suite = load_suite(spec.suite)
        for concept in spec.concepts:
            suite.find(concept.name)
        listed(suite, spec.tier, 1)
    except UserError as error:
        raise UserError(f"job {spec.name}: {error}") from error


def summary(plan: Plan) -> int:
    """How many jobs are done and what their audits say, one line for each that is not done or does not pass, and the exit code."""
    from app.jobs.queue import progress

    found = [(spec, progress(plan.folder(spec))) for spec in plan.jobs]
    done = sum(p.state == "done" for _, p in found)
    audits = [(spec, outcome) for spec, _ in found for outcome in outcomes(plan.folder(spec))]
    print(f"{plan.out}: {done} of {len(found)} jobs done; {counts([outcome for _, outcome in audits])}")
    for spec, outcome in audits:
        if outcome.code:
            lacks = "incomplete, " if outcome.code == INCOMPLETE else ""
            print(f"  {lacks}{outcome.state}: {spec.name}, seed {spec.seed} ({outcome.folder / 'report.html'})", file=sys.stderr)
    for spec, p in found:
        if p.state != "done":
            why = ": " + p.error if p.error else ""
            again = "; --retry runs it again" if p.state in ("failed", "cancelled") else ""
            print(f"  {p.state}: {spec.name}, seed {spec.seed} ({plan.folder(spec)}){why}{again}", file=sys.stderr)
    return worst([*(outcome.code for _, outcome in audits), *[INCOMPLETE] * (done < len(found))])


def status(options: StatusOptions) -> int:
    from app.jobs.queue import found, progress
    from app.jobs.table import status_table

    if options.where.suffix in (".yaml", ".yml"):
        plan = load_plan(options.where)
        rows: Sequence[tuple[Path, Spec | None]] = [(plan.folder(spec), spec) for spec in plan.jobs]
    elif options.where.is_dir():
        rows = list(found(options.where))
    else:
        raise UserError(f"{options.where} is neither a plan (.yaml) nor a folder.")
    if not rows:
        raise UserError(f"no job below {options.where}; name a plan, or the folder that its jobs are in.")
    print(status_table(rows))
    for folder, _ in rows:
        if (p := progress(folder)).state == "broken":
            print(f"broken: {folder}: {p.error}", file=sys.stderr)
    return OK


def board(options: BoardOptions) -> int:
    from app.jobs.leaderboard import collected, write

    if not options.where.is_dir():
        raise UserError(f"{options.where} is not a folder; name the one your runs are in.")
    if options.out:
        usable(options.out)
    rows, broken = collected(options.where)
    for line in broken:
        print(f"left out: {line}", file=sys.stderr)
    if not rows:
        raise UserError(f"no audit below {options.where}; run `erasure audit` or a plan with a suite first.")
    for path in write(rows, options.out or options.where):
        print(path)
    return OK
