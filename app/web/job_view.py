"""One job as HTML: what it does now, how long it still takes, images, and in the end before and after, rates, gates and the verdict."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from app.html_templates import render_html
from app.jobs import queue
from app.jobs.plan import JobSpec
from app.jobs.queue import JobProgress
from app.jobs.tables import format_clock
from app.web import images
from app.web.job_estimate import JobEstimate, estimate_job
from app.web.messages import for_page
from app.web.studio import Studio
from app.web.studio_jobs import title_of
from erasure.errors import UserError
from eval.records.audit_result import AuditResult
from eval.records.gates import Gate
from eval.records.rates import RateName
from eval.records.result_files import audit_gates, read_report_head, read_result
from eval.report.numbers import format_percent, format_percent_span
from eval.report.verdict_summary import describe_gate
from eval.scoring.gates import decide_verdict
from eval.suites.suite import load_suite

DOING = {
    "starting": "Loading the model",
    "caching": "Asking the original model for its answers",
    "solving": "Solving for the new weights",
    "distilling": "Making a one-step generator first",
    "erasing": "Training",
    "auditing": "Making and reading test images",
}
UNITS = {"erasing": "step", "auditing": "image"}
RATE_WORDS = {
    RateName.UA: "Erased (UA)",
    RateName.IRA: "Same kind kept (IRA)",
    RateName.CRA: "Other kind kept (CRA)",
    RateName.IPA: "Rest of the prompt kept (IPA)",
}
NO_JOB = '<p class="empty">No job yet. Name a concept and press Erase.</p>'
NEWEST_IMAGES = 12


@dataclass(frozen=True)
class JobParts:
    """What the buttons beside a job can do with it."""

    can_cancel: bool = False
    can_continue: bool = False
    has_edit: bool = False


def parts_of(folder: Path | None) -> JobParts:
    """Return what can be done with the job in a folder."""
    if folder is None:
        return JobParts()
    state = queue.read_progress(folder).state
    return JobParts(
        can_cancel=state in ("waiting", "running", "interrupted"),
        can_continue=state in (*queue.STOPPED_STATES, "interrupted"),
        has_edit=(folder / "edit" / "result.json").exists(),
    )


def render_job(studio: Studio, name: str | None) -> str:
    """Render one job in full."""
    jobs = {folder.name: (folder, spec) for folder, spec in studio.jobs.all()}
    if name not in jobs:
        return NO_JOB
    folder, spec = jobs[name]
    progress = queue.read_progress(folder)
    is_running = progress.state == "running"
    estimate = find_estimate(studio, spec) if is_running and spec else None
    left, bar = None, None
    if is_running:
        left, bar = studio.estimates.update(name, estimate.left(progress), estimate.share(progress)) if estimate else (None, -1.0)
    else:
        studio.estimates.forget(name)
    preview = folder / "preview.png"
    shows_preview = is_running and progress.phase in ("erasing", "distilling") and preview.exists()
    return render_html(
        "job",
        title=title_of(folder, spec),
        sensitive=spec is None or any(concept.kind == "nsfw" for concept in spec.concepts),
        state=progress.state,
        state_words=describe_state(studio, folder, progress),
        bar=bar,
        doing=describe_progress(progress, left),
        error=for_page(progress.error) if progress.error else "",
        curve=Markup(images.render_curve(progress.loss, "loss")) if progress.loss else "",
        preview=images.data_url(preview) if shows_preview else "",
        ends=[images.data_url(path) for path in sorted((folder / "edit").glob("before-after-*.png"))[:2]],
        audits=[describe_audit(studio, path) for path in sorted(folder.glob("audit-*")) if (path / "report.html").exists()],
        gates_ahead=gates_ahead(spec) if spec and progress.state in ("running", "waiting") else [],
        strip=newest_images(folder) if is_running else [],
    )


def find_estimate(studio: Studio, spec: JobSpec) -> JobEstimate | None:
    """Return the estimate of a job; None while the model is not loaded or nothing was timed on it."""
    pass_seconds = studio.sampler.pass_seconds.get(spec.model)
    if pass_seconds is None or not studio.models.is_loaded(spec.model):
        return None
    key = spec.folder_name
    if key not in studio.estimates.made:
        try:
            studio.estimates.made[key] = estimate_job(studio.models.get(spec.model), spec, pass_seconds)
        except UserError:
            studio.estimates.made[key] = None  # the job itself will say why
    return studio.estimates.made[key]


def describe_state(studio: Studio, folder: Path, progress: JobProgress) -> str:
    """Return the state in words; of a waiting job its place in the queue."""
    if progress.state != "waiting":
        return progress.state
    waiting = studio.jobs.waiting()
    place = waiting.index(folder) + 1 if folder in waiting else 1
    return "waiting, next" if place == 1 else f"waiting, number {place} in the queue"


def describe_progress(progress: JobProgress, left: float | None) -> str:
    """Say what a job does now, how far it is, and how long it still takes; of a finished one how long it took."""
    if progress.state == "done":
        return f"It took {format_clock(progress.seconds)}."
    if progress.state == "interrupted":
        return "Its process ended before it was done. Continue takes it up where it stopped."
    if progress.state != "running":
        return ""
    text = DOING.get(progress.phase, progress.phase)
    if progress.total:
        text += f", {UNITS.get(progress.phase, 'part')} {progress.done} of {progress.total}"
    return f"{text}. " + ("How long it takes is not known yet." if left is None else f"About {format_seconds(left)} left.")


def format_seconds(seconds: float) -> str:
    """Return a duration as one would say it."""
    if seconds < 10:
        return "10 seconds"
    if seconds < 90:
        return f"{10 * round(seconds / 10):.0f} seconds"
    minutes = seconds / 60
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"


@dataclass(frozen=True)
class AuditView:
    """What the template shows of a finished audit."""

    state: str
    summary: str
    link: str  # of its report
    rates: Sequence[tuple[str, str]] = ()
    gates: Sequence[tuple[str, str]] = ()  # state and sentence


def describe_audit(studio: Studio, folder: Path) -> AuditView:
    """Return the verdict, rates and gates of a finished audit."""
    link = folder.relative_to(studio.root).as_posix()
    try:
        result, report = read_result(folder), read_report_head(folder)
        verdict = decide_verdict(audit_gates(folder, result), result)
    except UserError as error:
        return AuditView("UNREADABLE", for_page(str(error)), link)
    rates = [(text, describe_rate(name, result)) for name, text in RATE_WORDS.items() if result.erased and name in result.erased.rates]
    gates = [(str(gate.state), for_page(describe_gate(gate).partition(", ")[2])) for gate in verdict.gates]
    return AuditView(report.verdict.state, for_page(report.verdict.summary), link, rates, gates)


def describe_rate(name: RateName, result: AuditResult) -> str:
    """Return a rate of the edited model with its interval, and the base's where it was measured."""
    assert result.erased
    rate = result.erased.rates[name]
    base = result.base.rates.get(name) if result.base else None
    before = f", before {format_percent(base.estimate)}%" if base else ""
    return f"{format_percent(rate.estimate)}% ({format_percent_span(rate.low, rate.high)}%){before}"


def gates_ahead(spec: JobSpec) -> list[str]:
    """Return the gates that the audit of a job will decide."""
    if not spec.suite:
        return []
    try:
        return [describe_threshold(gate) for gate in load_suite(spec.suite).gates if applies(gate, spec)]
    except UserError:
        return []


def applies(gate: Gate, spec: JobSpec) -> bool:
    """Return whether a gate will be decided; jobs erase concepts everywhere, so that the rate of the cells elsewhere is not measured."""
    return gate.tier in ("", spec.tier) and gate.rate is not RateName.FR


def describe_threshold(gate: Gate) -> str:
    if gate.at_least is not None:
        return f"{gate.name}: {gate.rate} of at least {100 * gate.at_least:g}%"
    return f"{gate.name}: {gate.rate} drops by at most {100 * (gate.drop_at_most or 0):g} points"


class NamedImage(NamedTuple):
    """An image for the template: its name and its address."""

    name: str
    url: str


def newest_images(folder: Path) -> list[NamedImage]:
    """Return the newest images of a running audit."""
    paths = sorted(folder.glob("audit-*/images/*/*.png"), key=lambda path: path.stat().st_mtime_ns)[-NEWEST_IMAGES:]
    return [NamedImage(path.stem, images.data_url(path)) for path in paths]
