"""Queue tab: every job with its place, its state and its size; open, move, cancel, continue, rename and delete; and disk space."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr

from app.cleanup import find_removable, iterate_files, remove_files, size_of
from app.html_templates import render_html
from app.jobs import queue
from app.jobs.tables import format_clock
from app.web.events import PRIVATE, READING
from app.web.job_panel import job_choices
from app.web.messages import page_error
from app.web.studio import Studio
from erasure.config.choices import Removable
from erasure.errors import UserError
from erasure.storage.locks import FolderLocked

SHOWN = 100  # rows
SCRIPT = """
element.addEventListener('click', e => {
  const b = e.target.closest('[data-do]');
  if (!b) return;
  const {do: action, job, title} = b.dataset;
  if (action === 'delete' && !confirm(`Delete “${title}” with its edit, its audits and its downloads?`)) return;
  const name = action === 'rename' ? prompt('A name for this job. Leave it empty to use the concept and the method.', title) : '';
  if (name === null) return;
  trigger('click', {action, job, title: name});
});
"""
CLEANABLE: dict[str, tuple[Removable, ...]] = {
    "Remove prepared downloads": ("downloads",),
    "Remove what was never finished": ("incomplete",),
    "Empty the cache of images and training data": ("caches",),
}


def tab(studio: Studio, queue_tab: gr.Tab, timer: gr.Timer) -> gr.HTML:
    """Build the tab and return its table, whose rows open jobs in other tabs."""
    table = gr.HTML(elem_id="queue", js_on_load=SCRIPT)
    last = gr.State("")
    with gr.Accordion("Disk space", open=False):
        disk = gr.HTML(elem_id="disk")
        with gr.Row(elem_classes="buttons"):
            buttons = {text: gr.Button(text, size="sm") for text in CLEANABLE}

    def tick(last: str) -> tuple[Any, Any]:
        html = render_queue(studio)
        return (gr.skip(), gr.skip()) if html == last else (html, html)

    gr.on([timer.tick, queue_tab.select], tick, last, [table, last], trigger_mode="once", **READING)
    queue_tab.select(lambda: describe_disk(studio), None, disk, **READING)
    for text, kinds in CLEANABLE.items():
        buttons[text].click(make_cleaner(studio, kinds), None, disk, **PRIVATE)
    return table


def render_queue(studio: Studio) -> str:
    """Render the newest jobs, those that run and wait first."""
    jobs, titles = studio.jobs.all(), {name: title for title, name in job_choices(studio)}
    progress = {folder: queue.read_progress(folder) for folder, _ in jobs}
    running = [job for job in jobs if progress[job[0]].state == "running"]
    waiting_jobs = [job for job in jobs if progress[job[0]].state == "waiting"]
    others = [job for job in reversed(jobs) if progress[job[0]].state not in ("running", "waiting")]
    waiting = [folder for folder, _ in waiting_jobs]
    rows = []
    for folder, _ in [*running, *waiting_jobs, *others][:SHOWN]:
        state, place = progress[folder].state, waiting.index(folder) if folder in waiting else -1
        rows.append(
            {
                "name": folder.name,
                "title": titles[folder.name],
                "state": state,
                "words": f"{progress[folder].phase}"
                if state == "running"
                else "next"
                if place == 0
                else f"number {place + 1}"
                if place > 0
                else state,
                "time": format_clock(progress[folder].seconds) if progress[folder].seconds else "",
                "size": format_size(_cached_size(folder, state, size_stamp(folder))) if state != "running" else "",
                "actions": list_actions(state, place, len(waiting)),
            }
        )
    summary = f"{len(running)} running, {len(waiting)} waiting, {len(jobs)} in all. Short jobs go before long ones."
    return render_html("queue", rows=rows, summary=summary, hidden=max(0, len(jobs) - SHOWN))


def list_actions(state: str, place: int, waiting: int) -> list[tuple[str, str]]:
    """Return what can be done with a job, and the text of each button."""
    actions = [("up", "Up")] if place > 0 else []
    actions += [("down", "Down")] if 0 <= place < waiting - 1 else []
    actions += [("cancel", "Cancel")] if state in ("waiting", "running", "interrupted") else []
    actions += [("continue", "Continue")] if state in (*queue.STOPPED_STATES, "interrupted") else []
    actions += [("rename", "Rename")]
    return [*actions, ("delete", "Delete")] if state != "running" else actions


def make_action_handler(studio: Studio) -> Any:
    """Return the handler of the buttons in the table: it returns the table, the tab, the erasure and the audit to show."""

    def act(event: gr.EventData) -> tuple[Any, Any, Any, Any]:
        action, name = str(event.action), str(event.job)
        try:
            if action == "open":
                spec = queue.spec_of(studio.jobs.folder(name))
                if spec is not None and spec.edits:
                    return gr.skip(), gr.Tabs(selected="audit"), gr.skip(), name
                return gr.skip(), gr.Tabs(selected="erase"), gr.Dropdown(value=name), gr.skip()
            if action == "cancel":
                queue.cancel(studio.jobs.folder(name))
            elif action == "continue":
                studio.jobs.resume(name)
            elif action == "rename":
                studio.jobs.rename(name, str(event.title or ""))
            elif action == "delete":
                studio.jobs.delete(name)
            elif action in ("up", "down"):
                studio.jobs.move(name, "up" if action == "up" else "down")
        except UserError as error:
            raise page_error(error) from None
        return render_queue(studio), gr.skip(), gr.skip(), gr.skip()

    return act


def make_cleaner(studio: Studio, kinds: tuple[Removable, ...]) -> Any:
    """Return the handler that removes files of some kinds and says how much that freed."""

    def clean() -> str:
        freed, locked = 0, 0
        for entry in find_removable(studio.root, kinds):
            try:
                freed += remove_files(entry)
            except FolderLocked:
                locked += 1
        note = f" {locked} folders are in use and were left alone." if locked else ""
        return f"{describe_disk(studio)}<p>{format_size(freed)} freed.{note}</p>"

    return clean


def describe_disk(studio: Studio) -> str:
    """Say what the runs take, and what of it could be removed."""
    lines = [f"All runs of this studio take {format_size(folder_size(studio.root))}."]
    for text, kinds in CLEANABLE.items():
        lines.append(f"{text}: {format_size(sum(entry.size for entry in find_removable(studio.root, kinds)))}.")
    return render_html("advice", lines=lines)


@lru_cache(maxsize=4096)
def _cached_size(folder: Path, state: str, stamp: int) -> int:
    return folder_size(folder)


def size_stamp(folder: Path) -> int:
    """Return what changes when a folder gets or loses an entry."""
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0


def folder_size(folder: Path) -> int:
    return sum(size_of(path) for path in iterate_files(folder))


def format_size(size: int) -> str:
    """Return a size in the unit that people use for it."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"
