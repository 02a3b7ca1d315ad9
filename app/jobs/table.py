"""Jobs as tables on a terminal."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table as Grid

from app.jobs.outcome import outcomes
from app.jobs.plan import Plan, Spec
from app.jobs.queue import Progress, progress

if TYPE_CHECKING:
    from app.jobs.forecast import Forecast

COLOURS = {
    "done": "green",
    "running": "cyan",
    "failed": "red",
    "interrupted": "yellow",
    "cancelled": "yellow",
    "broken": "red",
    "waiting": "dim",
}


class Table:
    """The jobs of a plan while they run: live on a terminal, one line per change elsewhere."""

    def __init__(self, plan: Plan) -> None:
        self.rows = [(plan.folder(spec), spec) for spec in plan.jobs]
        self.console = Console(stderr=True)
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self.told: dict[Path, str] = {}
        self.begun = time.monotonic()

    def __enter__(self) -> "Table":
        if self.live:
            self.live.start()
        self.update()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def update(self) -> None:
        if self.live:
            self.live.update(grid(self.rows), refresh=True)
            return
        for folder, spec in self.rows:
            p = progress(folder)
            word = p.phase if p.state == "running" else p.state
            if self.told.get(folder, "waiting") != word:
                print(f"[{clock(time.monotonic() - self.begun)}] {spec.name}, seed {spec.seed}: {word}", file=sys.stderr, flush=True)
            self.told[folder] = word


def grid(rows: Sequence[tuple[Path, Spec | None]], verdicts: bool = False) -> Grid:
    """State, phase, progress, rate and ETA of every job; and what its audits say."""
    found = Grid(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("job", "seed", "fields", "state", "progress", "time", "ETA", *(["audits"] if verdicts else [])):
        found.add_column(name, justify="right" if name in ("seed", "time", "ETA") else "left")
    for folder, spec in rows:
        p = progress(folder)
        said = [", ".join(outcome.state for outcome in outcomes(folder))] if verdicts else []
        found.add_row(*cells(spec, p, folder), *said, style=COLOURS[p.state] if p.state != "done" else "")
    return found


def cells(spec: Spec | None, p: Progress, folder: Path) -> list[str]:
    if spec is None:
        return [folder.name, "", "", p.state, "", "", ""]
    fields = ", ".join(f"{k}={v}" for k, v in spec.fields.items())
    counted = f"{p.done}/{p.total}" if p.total else ""
    state = f"{p.phase}" if p.state == "running" else p.state
    return [spec.name, str(spec.seed), fields, state, counted, clock(p.seconds) if p.seconds else "", clock(p.eta)]


def status_table(rows: Sequence[tuple[Path, Spec | None]]) -> str:
    return printed(grid(rows, verdicts=True))


def forecast_table(plan: Plan, forecasts: "Sequence[Forecast]") -> str:
    """Every job of a plan with its predicted cost, and how many recordings are shared."""
    found = Grid(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("job", "seed", "fields", "UNet forwards", "backwards", "pictures", "state", "folder"):
        found.add_column(name, justify="right" if name in ("seed", "UNet forwards", "backwards", "pictures") else "left")
    for spec, f in zip(plan.jobs, forecasts, strict=True):
        fields = ", ".join(f"{k}={v}" for k, v in spec.fields.items())
        state = progress(plan.folder(spec)).state
        found.add_row(
            spec.name, str(spec.seed), fields, f"{f.forwards:,}", f"{f.backwards:,}", str(f.pictures or ""), state, plan.folder(spec).name
        )
    asked = [f.recording for f in forecasts if f.recording]
    shared = f"; {plural(len(asked), 'job')} trained from {plural(len(set(asked)), 'recording')}" if asked else ""
    lines = [
        printed(found).rstrip(),
        f"{plural(len(forecasts), 'job')} in {plan.out}; {sum(f.forwards for f in forecasts):,} UNet forwards and "
        f"{sum(f.backwards for f in forecasts):,} backwards{shared}.",
    ]
    return "\n".join(lines)


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def clock(seconds: float | None) -> str:
    """1:05 or 2:03:04; nothing while unknown."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def printed(table: Any) -> str:
    console = Console(width=None if sys.stdout.isatty() else 200)
    with console.capture() as caught:
        console.print(table)
    return "\n".join(line.rstrip() for line in caught.get().splitlines())
