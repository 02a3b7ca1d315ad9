"""Tables of jobs for the terminal."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from app.jobs.audit_outcomes import load_outcomes
from app.jobs.plan import JobSpec, Plan
from app.jobs.queue import JobProgress, read_progress

if TYPE_CHECKING:
    from app.jobs.fleet import Fleet, FleetJob
    from app.jobs.forecast import JobForecast

STATE_COLORS = {
    "done": "green",
    "running": "cyan",
    "failed": "red",
    "interrupted": "yellow",
    "cancelled": "yellow",
    "broken": "red",
    "waiting": "dim",
}


class ProgressTable:
    """The running jobs of a plan: a live table on a terminal, elsewhere one line per change of state."""

    def __init__(self, plan: Plan) -> None:
        self.rows = [(plan.folder(spec), spec) for spec in plan.jobs]
        self.console = Console(stderr=True)
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self.printed_states: dict[Path, str] = {}
        self.start_time = time.monotonic()

    def __enter__(self) -> "ProgressTable":
        if self.live:
            self.live.start()
        self.update()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def update(self) -> None:
        if self.live:
            self.live.update(build_job_table(self.rows), refresh=True)
            return
        for folder, spec in self.rows:
            job_progress = read_progress(folder)
            state = job_progress.phase if job_progress.state == "running" else job_progress.state
            if self.printed_states.get(folder, "waiting") != state:
                print(
                    f"[{format_clock(time.monotonic() - self.start_time)}] {spec.name}, seed {spec.seed}: {state}",
                    file=sys.stderr,
                    flush=True,
                )
            self.printed_states[folder] = state


class FleetTable:
    """The workers of a fleet and what each runs: a live table on a terminal, elsewhere one line per job that starts or ends."""

    def __init__(self, fleet: "Fleet", total: int, done: int) -> None:
        self.fleet, self.total, self.done, self.failed = fleet, total, done, 0
        self.console = Console(stderr=True)
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self.started_jobs: set[Path] = set()
        self.start_time = time.monotonic()

    def __enter__(self) -> "FleetTable":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def update(self, ended: "Sequence[FleetJob]") -> None:
        """Show what has changed since the last call."""
        for job in ended:
            self.done, self.failed = self.done + (job.error is None), self.failed + (job.error is not None)
            self._print_line(
                f"{job.spec.name}, seed {job.spec.seed}: {f'{job.error.outcome}: {job.error.message}' if job.error else 'done'}"
            )
        for worker in self.fleet.running:
            if worker.job and worker.info and worker.job.folder not in self.started_jobs:
                self.started_jobs.add(worker.job.folder)
                where = f"{worker.info.process.host}, {worker.info.device}"
                if not self.live:
                    self._print_line(f"{worker.job.spec.name}, seed {worker.job.spec.seed}: running on {where}")
        if self.live:
            self.live.update(self._build(), refresh=True)

    def _print_line(self, text: str) -> None:
        clock = format_clock(time.monotonic() - self.start_time)
        self.console.print(f"[{clock}] {text}", markup=False, highlight=False, soft_wrap=True)

    def _build(self) -> Table:
        waiting = self.fleet.unfinished - len({id(worker.job) for worker in self.fleet.running})
        caption = f"{self.done} of {self.total} done, {waiting} waiting" + f", {self.failed} not done" * bool(self.failed)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=caption, caption_justify="left")
        for name in ("worker", "process", "device", "model", "job", "seed", "state", "progress", "time", "ETA"):
            table.add_column(name, justify="right" if name in ("process", "seed", "time", "ETA") else "left")
        for worker in self.fleet.workers:
            identity = [worker.info.process.host, str(worker.info.process.pid), worker.info.device] if worker.info else ["starting", "", ""]
            if worker.job is None or worker.task is None:
                table.add_row(*identity, worker.model, style="dim")
                continue
            name, seed, _, state, *rest = row_cells(worker.job.spec, read_progress(worker.job.folder), worker.job.folder)
            part = f" {worker.task.shard[0] + 1}/{worker.task.shard[1]}" if worker.task.stage == "shard" else ""
            table.add_row(*identity, worker.model, name, seed, state + part, *rest)
        return table


def build_job_table(rows: Sequence[tuple[Path, JobSpec | None]], verdicts: bool = False) -> Table:
    """Build a table with state, progress, time and ETA of every job, and with the verdicts of its audits."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("job", "seed", "fields", "state", "progress", "time", "ETA", *(["audits"] if verdicts else [])):
        table.add_column(name, justify="right" if name in ("seed", "time", "ETA") else "left")
    for folder, spec in rows:
        job_progress = read_progress(folder)
        verdict_cells = [", ".join(outcome.state for outcome in load_outcomes(folder))] if verdicts else []
        table.add_row(
            *row_cells(spec, job_progress, folder),
            *verdict_cells,
            style=STATE_COLORS[job_progress.state] if job_progress.state != "done" else "",
        )
    return table


def row_cells(spec: JobSpec | None, job_progress: JobProgress, folder: Path) -> list[str]:
    if spec is None:
        return [folder.name, "", "", job_progress.state, "", "", ""]
    fields = ", ".join(f"{k}={v}" for k, v in spec.fields.items())
    done_of_total = f"{job_progress.done}/{job_progress.total}" if job_progress.total else ""
    state = job_progress.phase if job_progress.state == "running" else job_progress.state
    return [
        spec.name,
        str(spec.seed),
        fields,
        state,
        done_of_total,
        format_clock(job_progress.seconds) if job_progress.seconds else "",
        format_clock(job_progress.eta),
    ]


def render_status_table(rows: Sequence[tuple[Path, JobSpec | None]]) -> str:
    return render_table(build_job_table(rows, verdicts=True))


def render_forecast_table(plan: Plan, forecasts: "Sequence[JobForecast]") -> str:
    """Render every job of a plan with its predicted cost, and the number of teacher caches."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("job", "seed", "fields", "denoiser forwards", "backwards", "images", "state", "folder"):
        table.add_column(name, justify="right" if name in ("seed", "denoiser forwards", "backwards", "images") else "left")
    for spec, f in zip(plan.jobs, forecasts, strict=True):
        fields = ", ".join(f"{k}={v}" for k, v in spec.fields.items())
        state = read_progress(plan.folder(spec)).state
        table.add_row(
            spec.name, str(spec.seed), fields, f"{f.forwards:,}", f"{f.backwards:,}", str(f.images or ""), state, plan.folder(spec).name
        )
    cache_keys = [f.cache_key for f in forecasts if f.cache_key]
    sharing_text = (
        f"; {pluralize(len(cache_keys), 'job')} trained from {pluralize(len(set(cache_keys)), 'teacher cache')}" if cache_keys else ""
    )
    lines = [
        render_table(table).rstrip(),
        f"{pluralize(len(forecasts), 'job')} in {plan.out}; {sum(f.forwards for f in forecasts):,} denoiser forwards and "
        f"{sum(f.backwards for f in forecasts):,} backwards{sharing_text}.",
    ]
    return "\n".join(lines)


def pluralize(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def format_clock(seconds: float | None) -> str:
    """Format seconds as 1:05 or 2:03:04; empty while unknown."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def render_table(table: Any) -> str:
    console = Console(width=None if sys.stdout.isatty() else 200)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
