"""`erasure jobs`: plans of many erasures with audits, run one after the other in processes of their own."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from app.parsing import parse
from app.plan import Plan, Spec, load_plan
from erasure.errors import UserError, unknown
from erasure.run import usable

ACTIONS = {
    "run": "run what a plan asks for; what is complete is skipped",
    "status": "say how far the jobs of a plan, or below a folder, are",
    "board": "collect every audit below a folder into a leaderboard: CSV, Markdown, HTML",
    "run-one": "run a single job from its spec.json; for schedulers",
}
OK, INCOMPLETE = 0, 2


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Run the jobs of a plan, each in a process of its own; killed at any point, the same command continues."""

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
    """Run a single job; its folder is the one its spec.json lies in."""

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
    from app.work import work
    from app.workers import die_with

    if options.parent:
        die_with(options.parent)
    work(options.spec.parent, spec)
    return OK


def run(options: RunOptions) -> int:
    from app import jobs
    from app.table import Table, forecast_table
    from eval.suites import load_suite

    plan = load_plan(options.plan)
    if options.dry_run:
        from app.forecast import forecasts

        print(forecast_table(plan, forecasts(plan)))
        return OK
    suites = {name: load_suite(name) for name in {spec.suite for spec in plan.jobs} if name}
    for spec in plan.jobs:
        for concept in spec.concepts if spec.suite else ():
            suites[spec.suite].find(concept.name)  # complains now, not after the erasure
    states = [(spec, jobs.progress(plan.folder(spec)).state) for spec in plan.jobs]
    again = ("waiting", "interrupted", *(("failed", "cancelled") if options.retry else ()))
    todo = [spec for spec, state in states if state in again]
    if busy := [spec for spec, state in states if state == "running"]:
        place = plan.folder(busy[0]) / "claim.json"
        raise UserError(f"another process works on {busy[0].name}, see {place}; wait for it, or delete that file if its machine is gone.")
    with Table(plan) as table:
        for spec in todo:
            folder = plan.folder(spec)
            jobs.enqueue(folder, spec)
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
            if child.returncode and not options.keep_going:
                break
    return summary(plan)


def summary(plan: Plan) -> int:
    """One line per job that is not done, and the exit code."""
    from app.jobs import progress

    found = [(spec, progress(plan.folder(spec))) for spec in plan.jobs]
    done = sum(p.state == "done" for _, p in found)
    print(f"{plan.out}: {done} of {len(found)} jobs done")
    for spec, p in found:
        if p.state != "done":
            why = ": " + p.error if p.error else ""
            again = "; --retry runs it again" if p.state in ("failed", "cancelled") else ""
            print(f"  {p.state}: {spec.name}, seed {spec.seed} ({plan.folder(spec)}){why}{again}", file=sys.stderr)
    return OK if done == len(found) else INCOMPLETE


def status(options: StatusOptions) -> int:
    from app.jobs import found
    from app.table import status_table

    if options.where.suffix in (".yaml", ".yml"):
        plan = load_plan(options.where)
        rows: Sequence[tuple[Path, Spec]] = [(plan.folder(spec), spec) for spec in plan.jobs]
    elif options.where.is_dir():
        rows = list(found(options.where))
    else:
        raise UserError(f"{options.where} is neither a plan (.yaml) nor a folder.")
    print(status_table(rows) if rows else f"no jobs below {options.where}")
    return OK


def board(options: BoardOptions) -> int:
    from app.board import entries, write

    if not options.where.is_dir():
        raise UserError(f"{options.where} is not a folder; name the one your runs are in.")
    if options.out:
        usable(options.out)
    rows: list[Any] = entries(options.where)
    if not rows:
        raise UserError(f"no audit below {options.where}; run `erasure audit` or a plan with a suite first.")
    for path in write(rows, options.out or options.where):
        print(path)
    return OK
