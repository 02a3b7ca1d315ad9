"""The panel of one job: its view, what can be done with it, and its download."""

from typing import Any

import gradio as gr

from app.jobs import queue
from app.web import downloads
from app.web.events import READING
from app.web.job_view import parts_of, render_job
from app.web.messages import page_error
from app.web.studio import Studio
from app.web.studio_jobs import title_of
from erasure import export
from erasure.errors import UserError

FORMATS = {
    "edit": "Edit, for this studio",
    "lora": "LoRA",
    "checkpoint": "Checkpoint, one file",
    "folder": "Diffusers folder",
    "text-encoder": "Text encoder",
}


def job_choices(studio: Studio) -> list[tuple[str, str]]:
    """Return the titles and names of all jobs, newest first; equal titles are told apart by their folders."""
    jobs = [(title_of(folder, spec), folder.name) for folder, spec in studio.jobs.all()][::-1]
    titles = [title for title, _ in jobs]
    return [(title if titles.count(title) == 1 else f"{title} ({name[-4:]})", name) for title, name in jobs]


def build_job_panel(studio: Studio, job: gr.Dropdown, erase_tab: gr.Tab, timer: gr.Timer) -> gr.Button:
    """Build the view of one job and its buttons. It reads folders, so every open page shows the same."""
    view = gr.HTML(elem_id="job-view")
    with gr.Row(elem_classes="buttons"):
        cancel = gr.Button("Cancel", elem_id="cancel", min_width=80, interactive=False)
        resume = gr.Button("Continue", elem_id="continue", min_width=80, interactive=False)
        compare = gr.Button("Compare", elem_id="compare-edit", min_width=80, interactive=False)
    with gr.Row(elem_classes="buttons"):
        formats = [(FORMATS.get(name, name), name) for name in export.EXPORT_FORMATS]
        export_format = gr.Dropdown(formats, value="edit", label="Download as", min_width=160, elem_id="format", interactive=True)
        download = gr.Button("Prepare the download", elem_id="prepare-download", min_width=120, interactive=False)
    file = gr.File(label="Download", visible=False, elem_id="file")
    last = gr.State(())  # what the page shows already: nothing is sent twice, so that a reader is not disturbed
    outputs = [job, view, cancel, resume, compare, download, last]

    def tick(name: str | None, last: tuple[Any, ...]) -> list[Any]:
        choices = job_choices(studio)
        known = {other for _, other in choices}
        is_known = name in known
        name = name if is_known else choices[0][1] if choices else None
        html, parts = render_job(studio, name), parts_of(studio.jobs.folder(name) if name else None)
        now = (choices, name, html, parts)
        if now == last:
            return [gr.skip() for _ in outputs]
        # the value is left alone while it is a job: the visitor, or a new erasure, may have chosen another one meanwhile
        dropdown = gr.Dropdown(choices=choices) if is_known else gr.Dropdown(choices=choices, value=name)
        flags = (parts.can_cancel, parts.can_continue, parts.has_edit, parts.has_edit)
        return [dropdown, html, *(gr.Button(interactive=flag) for flag in flags), now]

    gr.on([timer.tick, erase_tab.select], tick, [job, last], outputs, trigger_mode="once", **READING)
    job.change(lambda *shown: [*tick(*shown), gr.File(visible=False)], [job, last], [*outputs, file], trigger_mode="always_last", **READING)
    cancel.click(
        make_job_handler(studio, lambda name: queue.cancel(studio.jobs.folder(name))), job, view, api_name="cancel", show_progress="hidden"
    )
    resume.click(make_job_handler(studio, studio.jobs.resume), job, view, api_name="resume", show_progress="hidden")
    download.click(downloads.make_download_handler(studio), [job, export_format], file, api_name="download", concurrency_id="model")
    return compare


def make_job_handler(studio: Studio, action: Any) -> Any:
    """Return a handler that applies an action to a job by name and renders it. Errors become messages on the page."""

    def handler(job: str | None) -> str:
        try:
            if not job:
                raise UserError("no job is chosen; start one first.")
            action(job)
        except UserError as error:
            raise page_error(error) from None
        return render_job(studio, job)

    return handler
