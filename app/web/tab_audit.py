"""Audit tab: measure how much of a concept was erased and what else changed."""

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from app.jobs import queue
from app.web.studio import Studio
from app.web.tab_erase import render_job
from erasure.errors import UserError
from eval.records.gates import TIERS
from eval.suites.suite import suite_names


def tab(studio: Studio) -> gr.Dropdown:
    """Build the tab and return its list of edits."""
    with gr.Row():
        with gr.Column(scale=3, min_width=280):
            edit_names = list(studio.edits())
            edits = gr.Dropdown(
                edit_names, value=edit_names[-1:], multiselect=True, allow_custom_value=True, label="Edits", elem_id="audit-edits"
            )
            suite = gr.Dropdown(suite_names(complete=True), value="pocket", label="Suite")
            tier = gr.Dropdown(
                list(TIERS),
                value="smoke",
                label="Tier",
                info="smoke: a first look; standard: narrow intervals; full: attacks too, most of an hour on two cores",
            )
            start = gr.Button("Audit", variant="primary", elem_id="audit")
            report_choice = gr.Dropdown(report_names(studio), value=None, label="Report", allow_custom_value=True, elem_id="report-choice")
            job_html = gr.HTML(elem_id="audit-job")
            running_job = gr.State("")
        with gr.Column(scale=8, min_width=320):
            report = gr.HTML(
                '<p class="empty">Choose a report, or press Audit: images appear here while they are generated.</p>', elem_id="report"
            )

    start.click(make_audit_handler(studio), [edits, suite, tier], [running_job, job_html], api_name="audit")
    gr.Timer(1.5).tick(
        make_tick_handler(studio),
        running_job,
        [job_html, report_choice, report, running_job],
        api_visibility="private",
        show_progress="hidden",
        concurrency_limit=8,
    )
    report_choice.input(make_report_handler(studio), report_choice, report, api_visibility="private")
    report_choice.focus(
        lambda: gr.Dropdown(choices=report_names(studio)), None, report_choice, api_visibility="private", show_progress="hidden"
    )
    return edits


def make_audit_handler(studio: Studio) -> Any:
    """Return the handler of the Audit button."""

    def audit(edits: list[str], suite: str, tier: str) -> tuple[str, str]:
        """Queue an audit of edits by name; return the name of the job."""
        try:
            folder = studio.queue_audit(edits or [], suite, tier)
        except UserError as error:
            raise gr.Error(str(error), duration=12) from None
        return folder.name, render_job(studio, folder.name)

    return audit


def make_tick_handler(studio: Studio) -> Any:
    """Return the handler that updates the running audit and shows its report at the end."""

    def tick(name: str) -> tuple[Any, ...]:
        if not name:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip()
        state = queue.read_progress(studio.job_folder(name)).state
        if state != "done":
            return render_job(studio, name), gr.skip(), gr.skip(), "" if state in queue.STOPPED_STATES else name
        labels = [label for label, path in find_reports(studio).items() if path.parent.parent.name == name]
        return (
            render_job(studio, name),
            gr.Dropdown(choices=report_names(studio), value=labels[0]),
            to_iframe(find_reports(studio)[labels[0]]),
            "",
        )

    return tick


def find_reports(studio: Studio) -> dict[str, Path]:
    """Return reports below the runs folder by display name, newest first."""
    files = sorted(studio.root.glob("**/report.html"), key=lambda path: -path.stat().st_mtime_ns)
    return {str(path.parent.relative_to(studio.root)): path for path in files}


def report_names(studio: Studio) -> list[str]:
    return list(find_reports(studio))


def make_report_handler(studio: Studio) -> Any:
    """Return the handler that opens a report. The name is compared with the list, never joined to a path."""

    def handler(name: str | None) -> str:
        paths = find_reports(studio)
        if name not in paths:
            raise gr.Error(f"there is no report {name!r}.")
        return to_iframe(paths[name])

    return handler


def to_iframe(path: Path) -> str:
    """Embed a report in a sandboxed iframe."""
    page = escape(path.read_text(encoding="utf-8"), quote=True)
    return f'<iframe class="report" title="audit report" sandbox srcdoc="{page}"></iframe>'
