"""Erase tab: a concept, the options of a method, progress while it runs, and the finished edit for download."""

import typing
from collections.abc import Callable
from dataclasses import fields
from html import escape
from pathlib import Path
from typing import Any, Literal, get_args

import gradio as gr

from app.jobs import queue
from app.jobs.plan import JobSpec
from app.jobs.queue import JobProgress
from app.jobs.tables import format_clock
from app.web import downloads, images
from app.web.studio import MAX_PROMPT_LENGTH, Studio
from erasure import export
from erasure.concept import Concept, ConceptKind
from erasure.config.registry import field_help_of, list_modules, load_class, read_summary
from erasure.config.seeds import parse_seed
from erasure.errors import UserError
from erasure.methods.base import Method
from erasure.recipes import configure_method
from eval.suites.suite import suite_names

PATH_FIELDS = ("images", "retain_images", "generator")  # fields that are paths of this machine


def tab(studio: Studio) -> tuple[Any, gr.Dropdown]:
    """Build the tab. Return the handler that finds the newest job and the list that shows it, for when the page loads."""
    job_list = job_names(studio)
    job = gr.Dropdown(
        job_list,
        value=job_list[0] if job_list else None,
        label="Job",
        elem_id="job",
        allow_custom_value=True,
        interactive=True,
        render=False,
    )  # a custom value is a job that appeared later; it is checked where it is used
    with gr.Row():
        with gr.Column(scale=5, min_width=320):
            concept, kind, anchor, seed = build_concept_inputs(studio)
            method = gr.Dropdown(
                [(f"{n} · {describe_method(n)}", n) for n in list_modules("erasure.methods")],
                value="esd",
                label="Method",
                elem_id="method",
                interactive=True,
            )
            suite = gr.Dropdown(
                [("no audit", ""), *suite_names(complete=True)],
                value="pocket" if studio.is_pocket else "",
                label="Audit afterwards, tier smoke",
                interactive=True,
            )
            note = gr.HTML(elem_id="erase-note")
            hinted_concept = gr.State("")  # the concept whose hints were shown; a second press confirms it

            @gr.render(inputs=[method, kind])  # type: ignore[untyped-decorator]  # gradio has no types for it
            def render_form(name: str, of_kind: ConceptKind) -> None:
                build_form(studio, name, of_kind, [concept, kind, anchor, seed, suite, hinted_concept], [note, job, hinted_concept])

        with gr.Column(scale=6, min_width=320):
            job.render()  # type: ignore[no-untyped-call]  # gradio has no types for it
            build_job_panel(studio, job)

    def select_newest() -> Any:
        names = job_names(studio)
        return gr.Dropdown(choices=names, value=names[0] if names else None)

    return select_newest, job


def build_concept_inputs(studio: Studio) -> tuple[Any, ...]:
    """Build the inputs for concept, kind, anchor and seed."""
    concept = gr.Textbox(
        "neon" if studio.is_pocket else "",
        label="Concept",
        info="several: a; b",
        max_length=MAX_PROMPT_LENGTH,
        elem_id="concept",
        interactive=True,
    )
    with gr.Row():
        kind = gr.Dropdown(list(get_args(ConceptKind)), value="style", label="Kind", min_width=110, interactive=True)
        anchor = gr.Textbox("", label="Becomes", placeholder="nothing", min_width=140, max_length=MAX_PROMPT_LENGTH, interactive=True)
        seed = gr.Textbox("0", label="Seed", max_lines=1, max_length=20, min_width=80, interactive=True)
    return concept, kind, anchor, seed


def describe_method(name: str) -> str:
    """Describe a method in a few words."""
    return read_summary("erasure.methods", name).partition(": ")[2].split("(")[0].rstrip(" .")[:52]


def build_form(studio: Studio, name: str, kind: ConceptKind, common: list[Any], outputs: list[Any]) -> None:
    """Build the options of a method, filled with its recipe, and the button that starts it."""
    cls = load_class("erasure.methods", name, Method)
    method, _, _ = configure_method(cls, [Concept(name="concept", kind=kind)], studio.model.family, {})
    gr.HTML(f'<p class="small">{escape(cls.when)}. It changes {escape(cls.changes)}.</p>')
    start = gr.Button("Erase", variant="primary", elem_id="erase", key="erase")
    widgets: dict[str, Any] = {}
    with gr.Accordion("Options", open=False):
        help_, types = field_help_of(cls), typing.get_type_hints(cls)
        for f in fields(cls):
            if studio.is_local or f.name not in PATH_FIELDS:
                widgets[f.name] = make_widget(f.name, types[f.name], getattr(method, f.name), help_.get(f.name, ""))

    def run(concept: str, kind: ConceptKind, anchor: str, seed: str, suite: str, hinted: str, *values: Any) -> tuple[str, Any, str]:
        try:
            if concept != hinted and (hints := studio.hints(concept)):
                lines = "".join(f"<p>{escape(hint)}</p>" for hint in hints)
                return f"{lines}<p>Press Erase again to erase it anyway.</p>", gr.skip(), concept
            changed_fields = {k: v for k, v in read_fields(widgets, values, types).items() if v != getattr(method, k)}
            folder = studio.queue_erasure(concept, kind, anchor, name, changed_fields, parse_seed(seed or "0"), suite)
        except UserError as error:
            raise gr.Error(str(error), duration=12) from None
        note = f"<p>Queued as <b>{escape(folder.name)}</b>. It continues when this page is closed.</p>"
        return note, gr.Dropdown(choices=job_names(studio), value=folder.name), ""

    start.click(run, [*common, *widgets.values()], outputs, api_visibility="private")


def make_widget(name: str, kind: Any, value: Any, help_: str) -> Any:
    """Return the input for one field of a method."""
    shared: dict[str, Any] = {
        "label": name.replace("_", " "),
        "info": help_ or None,
        "interactive": True,
    }  # gradio does not infer it inside a render
    if typing.get_origin(kind) is Literal:
        return gr.Dropdown(list(get_args(kind)), value=value, **shared)
    if kind is bool:
        return gr.Checkbox(value, **shared)
    if kind in (int, float):
        return gr.Number(value, precision=0 if kind is int else None, **shared)
    if isinstance(value, tuple):
        return gr.Textbox("\n".join(value), lines=3, max_lines=8, max_length=20_000, **shared)
    return gr.Textbox(str(value), max_length=MAX_PROMPT_LENGTH, **shared)


def read_fields(widgets: dict[str, Any], values: tuple[Any, ...], types: dict[str, Any]) -> dict[str, Any]:
    """Convert the values of the form to field values.

    Raises:
        UserError: A number is missing.
    """
    field_values: dict[str, Any] = {}
    for name, value in zip(widgets, values, strict=True):
        if types[name] in (int, float) and value is None:
            raise UserError(f"{name.replace('_', ' ')} needs a number.")
        if typing.get_origin(types[name]) is tuple:
            field_values[name] = tuple(line.strip() for line in value.splitlines() if line.strip())
        else:
            field_values[name] = types[name](value) if types[name] in (int, float, bool, str) else value
    return field_values


def job_names(studio: Studio) -> list[str]:
    """Return the names of all jobs, newest first."""
    return [folder.name for folder, _ in studio.jobs()][::-1]


def build_job_panel(studio: Studio, job: gr.Dropdown) -> None:
    """Build the panel with one job in full and all jobs in short. It reads the folders, so every tab shows the same."""
    view = gr.HTML(render_job(studio, job.value), elem_id="job-view")
    with gr.Row():
        cancel_button = gr.Button("Cancel", elem_id="cancel", min_width=90)
        continue_button = gr.Button("Continue", elem_id="continue", min_width=90)
        export_format = gr.Dropdown(list(export.EXPORT_FORMATS), value="edit", label="Download as", min_width=140)
        download_button = gr.Button("Prepare download", elem_id="prepare-download", min_width=120)
    file = gr.File(label="Download", visible=False, elem_id="file")
    queue_html = gr.HTML(render_queue(studio), elem_id="queue")

    def tick(name: str | None, seen: list[str]) -> tuple[Any, ...]:
        current_names = job_names(studio)
        job_update = gr.Dropdown(choices=current_names) if current_names != seen else gr.skip()
        return job_update, render_job(studio, name), render_queue(studio), current_names

    seen = gr.State(job_names(studio))
    private_event: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": 8}
    gr.Timer(1.0).tick(tick, [job, seen], [job, view, queue_html, seen], **private_event)
    job.change(lambda name: render_job(studio, name), job, view, **private_event)
    cancel_button.click(make_job_handler(studio, lambda folder: queue.cancel(folder)), job, view, api_name="cancel")
    continue_button.click(make_job_handler(studio, resume_job), job, view, api_name="resume")
    download_button.click(downloads.make_download_handler(studio), [job, export_format], file, api_name="download", concurrency_id="model")


def make_job_handler(studio: Studio, action: Callable[[Path], None]) -> Callable[[str | None], str]:
    """Return a handler that applies an action to a job and renders it. Errors become messages on the page."""

    def handler(job: str | None) -> str:
        try:
            if not job:
                raise UserError("there is no job yet.")
            action(studio.job_folder(job))
        except UserError as error:
            raise gr.Error(str(error)) from None
        return render_job(studio, job)

    return handler


def resume_job(folder: Path) -> None:
    """Queue a stopped job again.

    Raises:
        UserError: The job is not stopped.
    """
    state = queue.read_progress(folder).state
    if state not in (*queue.STOPPED_STATES, "interrupted"):
        raise UserError(f"{folder.name} is {state}; only a stopped job can be continued.")
    queue.requeue(folder)


def render_job(studio: Studio, name: str | None) -> str:
    """Render one job in full: state, progress, loss, preview, error."""
    jobs_by_name = {folder.name: (folder, spec) for folder, spec in studio.jobs()}
    if name not in jobs_by_name:
        return '<p class="empty">No job yet. Choose a concept and press Erase; the first finishes in about a minute on two cores.</p>'
    folder, spec = jobs_by_name[name]
    job_progress = queue.read_progress(folder)
    blur_class = " blurred" if spec is None or any(c.kind == "nsfw" for c in spec.concepts) else ""
    parts = [
        f'<div class="job{blur_class}" tabindex="0"><b>{escape(job_label(folder, spec))}</b> '
        f'<span class="state {job_progress.state}">{job_progress.state}</span>',
        render_progress(job_progress),
    ]
    if job_progress.loss:
        parts.append(images.render_curve(job_progress.loss, "loss"))
    preview = folder / "preview.png"
    if preview.exists() and job_progress.state == "running" and job_progress.phase in ("erasing", "distilling"):
        alt = "images of the model now: the concept, an empty prompt, the name alone"
        parts.append(f'<img class="preview" alt="{alt}" src="{images.data_url(preview)}">')
    parts.append(render_newest_images(folder) if job_progress.state in ("running", "done") else "")
    if job_progress.error:
        parts.append(f'<p class="error">{escape(job_progress.error)}</p>')
    return "".join(parts) + "</div>"


def job_label(folder: Path, spec: JobSpec | None) -> str:
    """Return the display name of a job; of a broken one its folder's name."""
    return spec.name if spec else folder.name


def render_progress(job_progress: JobProgress) -> str:
    if job_progress.state == "done":
        return f'<p class="small">took {format_clock(job_progress.seconds)}</p>'
    if job_progress.state != "running":
        return ""
    rate = f" · {job_progress.rate:.1f} a second" if job_progress.rate else ""
    eta = f" · {format_clock(job_progress.eta)} left" if job_progress.eta is not None else ""
    done_of_total = f"{job_progress.done} of {job_progress.total}" if job_progress.total else ""
    bar = images.render_bar(job_progress.done / job_progress.total if job_progress.total else 0)
    elapsed = f"{format_clock(job_progress.seconds)} so far"
    return f'{bar}<p class="small">{job_progress.phase} {done_of_total}{rate}{eta} · {elapsed}</p>'


def render_newest_images(folder: Path, limit: int = 12) -> str:
    """Render the newest images of an audit; empty where there are none."""
    paths = sorted(folder.glob("audit-*/images/erased/*.png"), key=lambda path: path.stat().st_mtime_ns)[-limit:]
    if not paths:
        return ""
    img_tags = "".join(f'<img alt="{escape(path.stem)}" title="{escape(path.stem)}" src="{images.data_url(path)}">' for path in paths)
    return f'<div class="strip">{img_tags}</div>'


def render_queue(studio: Studio) -> str:
    """Render the newest 20 jobs, one line each."""
    rows: list[tuple[Path, JobSpec | None]] = studio.jobs()[::-1][:20]
    if not rows:
        return ""
    lines = []
    for folder, spec in rows:
        job_progress = queue.read_progress(folder)
        status = (
            f"{job_progress.phase} {job_progress.done}/{job_progress.total}"
            if job_progress.state == "running" and job_progress.total
            else job_progress.state
        )
        elapsed = format_clock(job_progress.seconds) if job_progress.seconds else ""
        name = escape(job_label(folder, spec))
        lines.append(f'<tr><td>{name}</td><td class="state {job_progress.state}">{status}</td><td>{elapsed}</td></tr>')
    return f'<table class="queue"><thead><tr><th>job</th><th>state</th><th>time</th></tr></thead><tbody>{"".join(lines)}</tbody></table>'
