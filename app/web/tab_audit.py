"""Audit tab: measure how much of a concept was erased and what else changed, watch it, and read the report."""

from html import escape
from typing import Any, NamedTuple

import gradio as gr

from app.html_templates import render_html
from app.jobs import queue
from app.web.edit_list import list_reports
from app.web.events import PRIVATE, READING
from app.web.job_estimate import SAMPLING_STEPS
from app.web.job_view import format_seconds, render_job
from app.web.messages import for_page, page_error
from app.web.studio import Studio
from erasure.errors import UserError
from eval.auditing.plan import AuditPlan
from eval.records.gates import TIERS
from eval.scoring.judge_scores import available_judges
from eval.suites.suite import load_suite, suite_names

TIER_WORDS = {
    "smoke": "smoke: a first look",
    "standard": "standard: narrow intervals",
    "full": "full: narrow intervals, and attacks",
}
NO_REPORT = '<p class="empty">Choose a report, or press Audit. Images appear here as they are made, and then the report.</p>'


class AuditTab(NamedTuple):
    """What the page needs of the tab: its list of edits, and the name of the audit that it follows."""

    edits: gr.Dropdown
    followed: gr.State


def tab(studio: Studio, model: gr.Dropdown, audit_tab: gr.Tab, timer: gr.Timer) -> AuditTab:
    """Build the tab for the model that is chosen on the page."""
    with gr.Row(elem_classes="split"):
        with gr.Column(elem_classes="ask", min_width=280):
            edits = gr.Dropdown(
                [], multiselect=True, allow_custom_value=True, label="Edits to test together", elem_id="audit-edits", interactive=True
            )
            suite = gr.Dropdown(
                suite_names(complete=True),
                value="pocket",
                label="Test suite",
                elem_id="audit-suite",
                interactive=True,
            )
            tier = gr.Radio(
                [(TIER_WORDS[name], name) for name in TIERS], value="smoke", label="How much", elem_id="audit-tier", interactive=True
            )
            expected = gr.HTML(elem_id="audit-expected")
            with gr.Row(elem_classes="buttons"):
                start = gr.Button("Audit", variant="primary", elem_id="audit", min_width=120)
                cancel = gr.Button("Cancel", elem_id="cancel-audit", min_width=80, interactive=False)
        with gr.Column(elem_classes="found", min_width=280):
            choice = gr.Dropdown(
                report_choices(studio), value=None, label="Report", allow_custom_value=True, elem_id="report-choice", interactive=True
            )
            shown = gr.HTML(NO_REPORT, elem_id="report")
    followed, last = gr.State(""), gr.State("")
    start.click(make_audit_handler(studio), [model, edits, suite, tier], [followed, shown], api_name="audit")
    cancel.click(make_cancel_handler(studio), followed, shown, **PRIVATE)
    timer.tick(make_tick(studio), [followed, last], [shown, choice, cancel, followed, last], trigger_mode="once", **READING)
    choice.input(make_report_handler(studio), choice, shown, **PRIVATE)
    audit_tab.select(make_first_handler(studio), [choice, followed], [choice, shown], **READING)
    choice.focus(lambda: gr.Dropdown(choices=report_choices(studio)), None, choice, **READING)
    gr.on([edits.change, suite.change, tier.change], make_forecast(studio), [model, edits, suite, tier], expected, **READING)
    return AuditTab(edits, followed)


def make_forecast(studio: Studio) -> Any:
    """Return the handler that says how many images an audit makes and about how long that takes."""

    def forecast(source: str, names: list[str], suite: str, tier: str) -> str:
        if not names:
            return render_html("advice", lines=["Choose an edit."])
        try:
            plans = AuditPlan.for_edits(studio.load_edits(source, names), load_suite(suite), tier)
        except UserError as error:
            return render_html("advice", lines=[for_page(str(error))])
        images = sum(2 * len(plan.samples) for plan in plans)
        pass_seconds = studio.sampler.pass_seconds.get(source)
        time = ""
        if pass_seconds is not None:
            seconds = images * SAMPLING_STEPS * studio.models.get(source).model.forwards_per_step * pass_seconds
            time = f" About {format_seconds(seconds)}" + (" for these; the attacks come on top." if tier == "full" else ".")
        lines = [f"{images:,} images with and without the edits, from the same noise.{time}"]
        if missing := available_judges(load_suite(suite))[1]:
            lines.append(f"Not judged on this machine: {', '.join(missing)}. {next(iter(missing.values()))}")
        return render_html("advice", lines=[for_page(line) for line in lines])

    return forecast


def make_audit_handler(studio: Studio) -> Any:
    """Return the handler of the Audit button."""

    def audit(source: str, edits: list[str], suite: str, tier: str) -> tuple[str, str]:
        """Queue an audit of edits by name; return the name of the job."""
        try:
            folder = studio.jobs.queue_audit(source, edits or [], suite, tier)
        except UserError as error:
            raise page_error(error) from None
        return folder.name, render_job(studio, folder.name)

    return audit


def make_cancel_handler(studio: Studio) -> Any:
    """Return the handler that cancels the audit that the tab follows."""

    def cancel(name: str) -> str:
        try:
            queue.cancel(studio.jobs.folder(name))
        except UserError as error:
            raise page_error(error) from None
        return render_job(studio, name)

    return cancel


def make_tick(studio: Studio) -> Any:
    """Return the handler that follows an audit, started here or opened from the queue, and opens its report at the end."""

    def tick(name: str, last: str) -> tuple[Any, ...]:
        nothing, idle = tuple(gr.skip() for _ in range(5)), gr.Button(interactive=False)
        if not name:
            return nothing
        try:
            state = queue.read_progress(studio.jobs.folder(name)).state
        except UserError:
            return NO_REPORT, gr.skip(), idle, "", ""  # deleted meanwhile
        if state == "done":
            report = next((path for path in studio.reports() if f"/{name}/" in f"/{path}/"), None)
            html = render_report(studio, report) if report else render_job(studio, name)
            return html, gr.Dropdown(choices=report_choices(studio), value=report), idle, "", ""
        html = render_job(studio, name)
        if html == last:
            return nothing
        is_over = state in queue.STOPPED_STATES
        return html, gr.skip(), gr.Button(interactive=not is_over), "" if is_over else name, html

    return tick


def report_choices(studio: Studio) -> list[tuple[str, str]]:
    """Return reports by what people call them, newest first."""
    return [(title, name) for name, title in list_reports(studio.root).items()]


def make_first_handler(studio: Studio) -> Any:
    """Return the handler that shows the newest report to a visitor who has chosen none and follows no audit."""

    def first(name: str | None, followed: str) -> tuple[Any, Any]:
        choices = report_choices(studio)
        if name or followed or not choices:
            return gr.skip(), gr.skip()
        return gr.Dropdown(choices=choices, value=choices[0][1]), render_report(studio, choices[0][1])

    return first


def make_report_handler(studio: Studio) -> Any:
    """Return the handler that opens a report."""

    def handler(name: str | None) -> str:
        try:
            return render_report(studio, name or "")
        except UserError as error:
            raise page_error(error) from None

    return handler


def render_report(studio: Studio, name: str) -> str:
    """Embed a report; nothing in it can run, and it reaches nothing."""
    studio.report(name)
    return (
        f'<iframe class="report" title="audit report" sandbox src="studio/reports/{escape(name)}"></iframe>'
        f'<p><a class="panel-button" href="studio/reports/{escape(name)}" target="_blank" rel="noopener">Open it alone</a></p>'
    )
