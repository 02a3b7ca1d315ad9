"""Board: every audit below the runs folder, erased against kept."""

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from app.jobs import leaderboard as board
from app.jobs.leaderboard import Entry, said
from app.web import pictures
from app.web.studio import Studio

RATES = ["UA %", "in other words %", "under attack %", "IRA %", "CRA %"]
HEADS = ["method", "concepts", "suite", "verdict", *RATES, "forwards", "backwards", "seconds"]
POINT = """
const choose = e => { const p = e.target.closest('[data-row]');
  if (p) { e.preventDefault(); trigger('click', {row: Number(p.dataset.row)}); } };
element.addEventListener('click', choose);
element.addEventListener('keydown', e => { if (e.key === 'Enter' || e.key === ' ') choose(e); });
"""


def tab(studio: Studio) -> tuple[Any, list[Any]]:
    """Build the tab; returns what fills it and where that goes, for when the page loads."""
    rows = gr.State([])
    with gr.Row():
        with gr.Column(scale=6, min_width=320):
            plot = gr.HTML(elem_id="plot", js_on_load=POINT)
            refresh = gr.Button("Refresh", size="sm", elem_id="board-refresh")
        with gr.Column(scale=5, min_width=320):
            detail = gr.HTML('<p class="empty">Click a point, or a line of the table, to see its pictures.</p>', elem_id="detail")
    table = gr.Dataframe(headers=HEADS, interactive=False, elem_id="board", show_search="filter", max_height=420)

    def load() -> tuple[Any, ...]:
        """Every audit: method, concepts, rates in percent, cost."""
        found, broken = board.collected(studio.root)
        return found, plotted(found) + left_out(broken), [line(e) for e in found]

    outputs = [rows, plot, table]
    refresh.click(load, None, outputs, api_name="board")
    plot.click(point_chosen, rows, detail, api_visibility="private", show_progress="hidden")
    table.select(line_chosen, rows, detail, api_visibility="private", show_progress="hidden")
    return load, outputs


def line(e: Entry) -> list[Any]:
    ua, *kept = (round(100 * e.rates[name]["estimate"], 1) for name in board.RATES)
    reworded, attacked = (round(100 * side["estimate"], 1) if side else "" for side in (e.reworded, e.attacked))
    name = e.method + (f" ×{e.strength:g}" if e.strength != 1 else "")
    return [name, e.concepts, f"{e.suite}, {e.tier}", e.verdict, ua, reworded, attacked, *kept, e.forwards, e.backwards, e.seconds]


def plotted(rows: list[Entry]) -> str:
    if not rows:
        return '<p class="empty">No audit yet. Erase something with an audit, or use the Audit tab; every result appears here.</p>'
    return board.scatter(rows)


def left_out(broken: list[str], most: int = 5) -> str:
    """What cannot be read, so that nobody takes the board for complete."""
    more = [f"and {len(broken) - most} more"] if len(broken) > most else []
    return "".join(f'<p class="error">left out: {escape(text)}</p>' for text in [*broken[:most], *more])


def point_chosen(rows: list[Entry], event: gr.EventData) -> str:
    return detail_of(rows, int(event.row))


def line_chosen(rows: list[Entry], event: gr.SelectData) -> str:
    """The table may be sorted, so that a line is found by what it says."""
    matching = [i for i, e in enumerate(rows) if [str(v) for v in line(e)[:9]] == [str(v) for v in event.row_value[:9]]]
    return detail_of(rows, matching[0]) if matching else ""


def detail_of(rows: list[Entry], i: int) -> str:
    """One audit: rates, and pictures of the concept before and after."""
    if not 0 <= i < len(rows):
        return ""
    e = rows[i]
    every = {name: said(e, name) for name in board.RATES} | {"under attack": board.said_attacked(e), "verdict": e.verdict or "no report"}
    rates = "".join(f"<dt>{name}</dt><dd>{words}</dd>" for name, words in every.items())
    return f'<h3>{escape(e.method)} · {escape(e.concepts)}</h3><dl class="rates">{rates}</dl>{pairs(e.folder, e.sensitive)}'


def pairs(folder: Path, sensitive: bool, most: int = 6) -> str:
    """Evenly spaced pictures in the fixed order of the audit, before above after."""
    before = sorted((folder / "images" / "base").glob("*.png"))
    some = [before[round(k * (len(before) - 1) / max(1, most - 1))] for k in range(min(most, len(before)))]
    figures = []
    for path in some:
        after, name = folder / "images" / "erased" / path.name, escape(path.stem)
        images = "".join(
            f'<img alt="{side}: {name}" src="{pictures.data_url(p)}">' for side, p in (("before", path), ("after", after)) if p.exists()
        )
        figures.append(f"<figure>{images}<figcaption>{name}</figcaption></figure>")
    veil = " veiled" if sensitive else ""
    note = '<p class="small">before above, after below; evenly spaced, not chosen</p>'
    return f'<div class="pairs{veil}" tabindex="0">{"".join(figures)}</div>{note}'
