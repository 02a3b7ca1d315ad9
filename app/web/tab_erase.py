"""Erase: a concept, a method with its own form, progress while it runs, the finished edit for download."""

import typing
from collections.abc import Callable
from dataclasses import fields
from html import escape
from pathlib import Path
from typing import Any, Literal, get_args

import gradio as gr

from app.jobs import queue as jobs
from app.jobs.plan import Spec
from app.jobs.queue import Progress
from app.jobs.table import clock
from app.web import downloads, pictures
from app.web.studio import PROMPT_LIMIT, Studio
from erasure import export
from erasure.concept import Concept, Kind
from erasure.config.registry import field_help, load, names, summary
from erasure.config.seeds import read_seed
from erasure.erasing import configure
from erasure.errors import UserError
from erasure.methods.base import Method
from eval.suites.suite import suite_names

FOLDERS = ("images", "retain_images", "generator")  # fields that name paths of this machine


def tab(studio: Studio) -> tuple[Any, gr.Dropdown]:
    """Build the tab; returns what finds the newest job, and the list that shows it, for when the page loads."""
    known = job_names(studio)
    job = gr.Dropdown(
        known, value=known[0] if known else None, label="Job", elem_id="job", allow_custom_value=True, interactive=True, render=False
    )  # a custom value is one that appeared since; it is checked where it is used
    with gr.Row():
        with gr.Column(scale=5, min_width=320):
            concept = gr.Textbox(
                "neon" if studio.is_pocket else "",
                label="Concept",
                info="several: a; b",
                max_length=PROMPT_LIMIT,
                elem_id="concept",
                interactive=True,
            )
            with gr.Row():
                kind = gr.Dropdown(list(get_args(Kind)), value="style", label="Kind", min_width=110, interactive=True)
                anchor = gr.Textbox("", label="Becomes", placeholder="nothing", min_width=140, max_length=PROMPT_LIMIT, interactive=True)
                seed = gr.Textbox("0", label="Seed", max_lines=1, max_length=20, min_width=80, interactive=True)
            method = gr.Dropdown(
                [(f"{n} · {about(n)}", n) for n in names("erasure.methods")],
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
            said = gr.HTML(elem_id="erase-note")
            doubted = gr.State("")  # the concept whose oddities were shown; a second press means it

            @gr.render(inputs=[method, kind])
            def form(name: str, of_kind: Kind) -> None:
                build_form(studio, name, of_kind, [concept, kind, anchor, seed, suite, doubted], [said, job, doubted])

        with gr.Column(scale=6, min_width=320):
            job.render()
            watch(studio, job)

    def newest() -> Any:
        names_ = job_names(studio)
        return gr.Dropdown(choices=names_, value=names_[0] if names_ else None)

    return newest, job


def about(name: str) -> str:
    """A method in a few words."""
    return summary("erasure.methods", name).partition(": ")[2].split("(")[0].rstrip(" .")[:52]


def build_form(studio: Studio, name: str, kind: Kind, common: list[Any], outputs: list[Any]) -> None:
    """The method's own options, filled with its recipe, and the button that starts it."""
    cls = load("erasure.methods", name, Method)
    method, _, _ = configure(cls, [Concept(name="concept", kind=kind)], studio.model.family, {})
    gr.HTML(f'<p class="small">{escape(cls.when)}. It changes {escape(cls.changes)}.</p>')
    start = gr.Button("Erase", variant="primary", elem_id="erase", key="erase")
    widgets: dict[str, Any] = {}
    with gr.Accordion("Options", open=False):
        help_, types = field_help(cls), typing.get_type_hints(cls)
        for f in fields(cls):
            if studio.local or f.name not in FOLDERS:
                widgets[f.name] = widget(f.name, types[f.name], getattr(method, f.name), help_.get(f.name, ""))

    def run(concept: str, kind: Kind, anchor: str, seed: str, suite: str, doubted: str, *values: Any) -> tuple[str, Any, str]:
        try:
            if concept != doubted and (odd := studio.doubts(concept)):
                lines = "".join(f"<p>{escape(doubt)}</p>" for doubt in odd)
                return f"{lines}<p>Press Erase again to erase it all the same.</p>", gr.skip(), concept
            given = {k: v for k, v in read(widgets, values, types).items() if v != getattr(method, k)}
            folder = studio.start_erasing(concept, kind, anchor, name, given, read_seed(seed or "0"), suite)
        except UserError as error:
            raise gr.Error(str(error), duration=12) from None
        note = f"<p>Queued as <b>{escape(folder.name)}</b>. It goes on when this page is closed.</p>"
        return note, gr.Dropdown(choices=job_names(studio), value=folder.name), ""

    start.click(run, [*common, *widgets.values()], outputs, api_visibility="private")


def widget(name: str, kind: Any, value: Any, help_: str) -> Any:
    """An input for one field of a method."""
    shared: dict[str, Any] = {"label": name.replace("_", " "), "info": help_ or None, "interactive": True}  # not inferred inside a render
    if typing.get_origin(kind) is Literal:
        return gr.Dropdown(list(get_args(kind)), value=value, **shared)
    if kind is bool:
        return gr.Checkbox(value, **shared)
    if kind in (int, float):
        return gr.Number(value, precision=0 if kind is int else None, **shared)
    if isinstance(value, tuple):
        return gr.Textbox("\n".join(value), lines=3, max_lines=8, max_length=20_000, **shared)
    return gr.Textbox(str(value), max_length=PROMPT_LIMIT, **shared)


def read(widgets: dict[str, Any], values: tuple[Any, ...], types: dict[str, Any]) -> dict[str, Any]:
    """Field values from what stands in the form.

    Raises:
        UserError: an empty number.
    """
    found: dict[str, Any] = {}
    for name, value in zip(widgets, values, strict=True):
        if types[name] in (int, float) and value is None:
            raise UserError(f"{name.replace('_', ' ')} needs a number.")
        if typing.get_origin(types[name]) is tuple:
            found[name] = tuple(line.strip() for line in value.splitlines() if line.strip())
        else:
            found[name] = types[name](value) if types[name] in (int, float, bool, str) else value
    return found


def job_names(studio: Studio) -> list[str]:
    """Newest first."""
    return [folder.name for folder, _ in studio.jobs()][::-1]


def watch(studio: Studio, job: gr.Dropdown) -> None:
    """One job in full and all jobs in short; read off the folders, so that any tab and any restart shows the same."""
    view = gr.HTML(job_view(studio, job.value), elem_id="job-view")
    with gr.Row():
        stop = gr.Button("Cancel", elem_id="cancel", min_width=90)
        again = gr.Button("Continue", elem_id="continue", min_width=90)
        form = gr.Dropdown(list(export.FORMS), value="edit", label="Download as", min_width=140)
        take = gr.Button("Prepare download", elem_id="take", min_width=120)
    file = gr.File(label="Download", visible=False, elem_id="file")
    queue = gr.HTML(queue_view(studio), elem_id="queue")

    def tick(name: str | None, seen: list[str]) -> tuple[Any, ...]:
        known = job_names(studio)
        fresh = gr.Dropdown(choices=known) if known != seen else gr.skip()
        return fresh, job_view(studio, name), queue_view(studio), known

    seen = gr.State(job_names(studio))
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": 8}
    gr.Timer(1.0).tick(tick, [job, seen], [job, view, queue, seen], **quiet)
    job.change(lambda name: job_view(studio, name), job, view, **quiet)
    stop.click(told(studio, lambda folder: jobs.cancel(folder)), job, view, api_name="cancel")
    again.click(told(studio, resume), job, view, api_name="resume")
    take.click(downloads.prepare(studio), [job, form], file, api_name="download", concurrency_id="model")


def told(studio: Studio, act: Callable[[Path], None]) -> Callable[[str | None], str]:
    """A handler that does something to a job and shows it; mistakes become messages."""

    def handler(job: str | None) -> str:
        try:
            if not job:
                raise UserError("there is no job yet.")
            act(studio.job(job))
        except UserError as error:
            raise gr.Error(str(error)) from None
        return job_view(studio, job)

    return handler


def resume(folder: Path) -> None:
    """Let a stopped job wait for its turn again."""
    state = jobs.progress(folder).state
    if state not in (*jobs.STOPPED, "interrupted"):
        raise UserError(f"{folder.name} is {state}; only a stopped job can be continued.")
    jobs.requeue(folder)


def job_view(studio: Studio, name: str | None) -> str:
    """One job in full: state, progress, loss, preview, error."""
    found = {folder.name: (folder, spec) for folder, spec in studio.jobs()}
    if name not in found:
        return '<p class="empty">No job yet. Choose a concept and press Erase; the first finishes in about a minute on two cores.</p>'
    folder, spec = found[name]
    p = jobs.progress(folder)
    veil = " veiled" if spec is None or any(c.kind == "nsfw" for c in spec.concepts) else ""
    parts = [
        f'<div class="job{veil}" tabindex="0"><b>{escape(called(folder, spec))}</b> <span class="state {p.state}">{p.state}</span>',
        progress_line(p),
    ]
    if p.loss:
        parts.append(pictures.curve(p.loss, "loss"))
    preview = folder / "preview.png"
    if preview.exists() and p.state == "running" and p.phase in ("erasing", "distilling"):
        parts.append(
            f'<img class="preview" alt="what the model draws now: the concept, nothing, the name alone" src="{pictures.data_url(preview)}">'
        )
    parts.append(filling(folder) if p.state in ("running", "done") else "")
    if p.error:
        parts.append(f'<p class="error">{escape(p.error)}</p>')
    return "".join(parts) + "</div>"


def called(folder: Path, spec: Spec | None) -> str:
    """A job's name for people; a broken one has its folder's alone."""
    return spec.name if spec else folder.name


def progress_line(p: Progress) -> str:
    if p.state == "done":
        return f'<p class="small">took {clock(p.seconds)}</p>'
    if p.state != "running":
        return ""
    rate = f" · {p.rate:.1f} a second" if p.rate else ""
    eta = f" · {clock(p.eta)} left" if p.eta is not None else ""
    counted = f"{p.done} of {p.total}" if p.total else ""
    return (
        f'{pictures.bar(p.done / p.total if p.total else 0)}<p class="small">{p.phase} {counted}{rate}{eta} · {clock(p.seconds)} so far</p>'
    )


def filling(folder: Path, most: int = 12) -> str:
    """The newest pictures of an audit that is being drawn, or its headline."""
    drawn = sorted(folder.glob("audit-*/images/erased/*.png"), key=lambda path: path.stat().st_mtime_ns)[-most:]
    if not drawn:
        return ""
    images = "".join(f'<img alt="{escape(path.stem)}" title="{escape(path.stem)}" src="{pictures.data_url(path)}">' for path in drawn)
    return f'<div class="strip">{images}</div>'


def queue_view(studio: Studio) -> str:
    """All jobs, newest first, one line each."""
    rows: list[tuple[Path, Spec | None]] = studio.jobs()[::-1][:20]
    if not rows:
        return ""
    lines = []
    for folder, spec in rows:
        p = jobs.progress(folder)
        done = f"{p.phase} {p.done}/{p.total}" if p.state == "running" and p.total else p.state
        time = clock(p.seconds) if p.seconds else ""
        name = escape(called(folder, spec))
        lines.append(f'<tr><td>{name}</td><td class="state {p.state}">{done}</td><td>{time}</td></tr>')
    return f'<table class="queue"><thead><tr><th>job</th><th>state</th><th>time</th></tr></thead><tbody>{"".join(lines)}</tbody></table>'
