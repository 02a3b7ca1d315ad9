"""Board tab: every audit below the runs folder, erased against retained."""

from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from app.html_templates import render_html
from app.jobs import leaderboard
from app.jobs.leaderboard import LeaderboardRow, format_rate
from app.method_words import title_of_method
from app.web import images
from app.web.events import READING
from app.web.messages import for_page
from app.web.studio import Studio
from eval.records.rates import RateName

HEADS = (
    *("Method", "Concept", "Suite", "Verdict", "Erased (UA), %", "Reworded, %", "Under attack, %"),
    *("Same kind kept (IRA), %", "Other kind kept (CRA), %", "Forward passes", "Backward passes", "Seconds"),
)
RATE_WORDS = {RateName.UA: "Erased (UA), %", RateName.IRA: "Same kind kept (IRA), %", RateName.CRA: "Other kind kept (CRA), %"}
NO_AUDIT = '<p class="empty">No audit yet. Erase something and measure it, or use the tab “Audit”. Every result appears here.</p>'
NO_DETAIL = '<p class="empty">Choose a point or a row to see its images.</p>'
PAIRS, UNREADABLE = 6, 5  # images in the detail; lines about results that cannot be read
CHOOSE_SCRIPT = """
const choose = e => {
  const p = e.target.closest('[data-row]');
  if (p) { e.preventDefault(); trigger('click', {row: Number(p.dataset.row)}); }
};
element.addEventListener('click', choose);
element.addEventListener('keydown', e => { if (e.key === 'Enter' || e.key === ' ') choose(e); });
"""


class BoardTab(NamedTuple):
    """What loads the tab, for when the page opens, with its inputs and outputs."""

    load: Any
    inputs: list[Any]
    outputs: list[Any]


def tab(studio: Studio) -> BoardTab:
    """Build the tab."""
    rows = gr.State([])
    with gr.Row(elem_id="board-filters"):
        methods = gr.Dropdown([], multiselect=True, label="Methods", elem_id="board-methods", interactive=True, min_width=180)
        concepts = gr.Dropdown([], multiselect=True, label="Concepts", elem_id="board-concepts", interactive=True, min_width=180)
        refresh = gr.Button("Read again", elem_id="board-refresh", min_width=130, scale=0)
    with gr.Row(elem_id="board-parts"):
        with gr.Column(scale=6, min_width=280):
            plot = gr.HTML(elem_id="plot", js_on_load=CHOOSE_SCRIPT)
        with gr.Column(scale=5, min_width=280):
            detail = gr.HTML(NO_DETAIL, elem_id="detail")
    table = gr.HTML(elem_id="board", js_on_load=CHOOSE_SCRIPT)

    def load(methods: list[str], concepts: list[str]) -> tuple[Any, ...]:
        """Load every audit: method, concepts, rates in percent, cost."""
        entries, unreadable = leaderboard.load_leaderboard(studio.root)
        names = sorted({row.method for row in entries}), sorted({row.concepts for row in entries})
        shown = render_plot(entries, methods, concepts) + render_unreadable(unreadable)
        return entries, shown, render_table(entries, methods, concepts), gr.Dropdown(choices=names[0]), gr.Dropdown(choices=names[1])

    inputs, outputs = [methods, concepts], [rows, plot, table, methods, concepts]
    refresh.click(load, inputs, outputs, api_name="leaderboard")
    gr.on(
        [methods.change, concepts.change],
        lambda rows, methods, concepts: (render_plot(rows, methods, concepts), render_table(rows, methods, concepts)),
        [rows, *inputs],
        [plot, table],
        **READING,
    )
    gr.on([plot.click, table.click], make_detail_handler(studio), rows, detail, **READING)
    return BoardTab(load, inputs, outputs)


def choose_rows(rows: list[LeaderboardRow], methods: list[str], concepts: list[str]) -> list[int]:
    """Return the numbers of the rows that the filters let through; an empty filter lets everything through."""
    return [i for i, row in enumerate(rows) if (not methods or row.method in methods) and (not concepts or row.concepts in concepts)]


def render_plot(rows: list[LeaderboardRow], methods: list[str], concepts: list[str]) -> str:
    numbers = choose_rows(rows, methods, concepts)
    if not numbers:
        return NO_AUDIT if not rows else '<p class="empty">No audit fits these filters.</p>'
    return leaderboard.scatter_of([rows[i] for i in numbers], numbers)


def render_table(rows: list[LeaderboardRow], methods: list[str], concepts: list[str]) -> str:
    numbers = choose_rows(rows, methods, concepts)
    if not numbers:
        return ""
    entries = [{"number": i, "cells": to_cells(rows[i])} for i in numbers]
    return render_html("board", heads=HEADS, rows=entries, chosen=-1, note=describe_table([rows[i] for i in numbers]))


def describe_table(rows: list[LeaderboardRow]) -> str:
    """Explain the columns, and count the audits that were attacked."""
    attacked = sum(row.attacked is not None for row in rows)
    return (
        "Estimates; a row opens their intervals. Reworded: the lowest UA among synonyms, descriptions, misspellings and replayed prompts. "
        f"Under attack: UA left by the most successful prompt attack. Attacks ran in {attacked} of {len(rows)} audits."
    )


def to_cells(row: LeaderboardRow) -> list[Any]:
    """Return the cells of a row; empty where nothing was measured."""

    def percent(rate: Any) -> Any:
        return round(100 * rate.estimate, 1) if rate else ""

    name = " + ".join(title_of_method(part) for part in row.method.split(" + ")) + (f" ×{row.strength:g}" if row.strength != 1 else "")
    rewording = row.reworded.rate if row.reworded else None
    rates = (row.rates[RateName.UA], rewording, row.attacked, row.rates[RateName.IRA], row.rates[RateName.CRA])
    costs = ("" if value is None else value for value in (row.forwards, row.backwards, row.seconds))
    return [name, row.concepts, f"{row.suite}, {row.tier}", row.verdict, *(percent(rate) for rate in rates), *costs]


def render_unreadable(unreadable: list[str]) -> str:
    """Render what cannot be read, so that nobody takes the board for complete."""
    rest = [f"and {len(unreadable) - UNREADABLE} more"] if len(unreadable) > UNREADABLE else []
    return "".join(f'<p class="error">Left out: {escape(for_page(text))}</p>' for text in [*unreadable[:UNREADABLE], *rest])


def make_detail_handler(studio: Studio) -> Any:
    """Return the handler that shows the audit of a point or a row."""

    def show(rows: list[LeaderboardRow], event: gr.EventData) -> Any:
        number = int(event.row)
        return render_detail(rows[number], studio.root) if 0 <= number < len(rows) else gr.skip()

    return show


def render_detail(row: LeaderboardRow, root: Path) -> str:
    """Render one audit: rates, and images before and after."""
    values = [(text, format_rate(row, name)) for name, text in RATE_WORDS.items()]
    values += [("Under attack, %", leaderboard.format_attacked(row)), ("Verdict", row.verdict or "no report")]
    report = row.folder.relative_to(root).as_posix() if (row.folder / "report.html").exists() else ""
    return render_html(
        "board_detail",
        title=f"{to_cells(row)[0]}, {row.concepts}",
        values=values,
        report=report,
        sensitive=row.sensitive,
        pairs=sample_pairs(row.folder),
    )


class ImagePair(NamedTuple):
    """Images before and after for the template: the name of their sample, and sides with addresses."""

    name: str
    images: list[tuple[str, str]]


def sample_pairs(folder: Path) -> list[ImagePair]:
    """Return evenly spaced images in the fixed order of the audit, before and after."""
    before = sorted((folder / "images" / "base").glob("*.png"))
    sampled = [before[round(k * (len(before) - 1) / max(1, PAIRS - 1))] for k in range(min(PAIRS, len(before)))]
    pairs = []
    for path in sampled:
        sides = (("before", path), ("after", folder / "images" / "erased" / path.name))
        pairs.append(ImagePair(path.stem, [(side, images.data_url(file)) for side, file in sides if file.exists()]))
    return pairs
