"""Board: every audit below the runs folder, erased against kept."""

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from app import board
from app.board import Entry, said
from app.web import pictures
from app.web.studio import Studio

COLOURS = ("#2f6feb", "#d9480f", "#1f7a4d", "#9c36b5", "#c2255c", "#0b7285", "#846000", "#495057", "#5f3dc4")
HEADS = ["method", "concepts", "suite", "UA %", "IRA %", "CRA %", "forwards", "backwards", "seconds"]
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
        found = board.entries(studio.root)
        return found, scatter(found), [line(e) for e in found]

    outputs = [rows, plot, table]
    refresh.click(load, None, outputs, api_name="board")
    plot.click(point_chosen, rows, detail, api_visibility="private", show_progress="hidden")
    table.select(line_chosen, rows, detail, api_visibility="private", show_progress="hidden")
    return load, outputs


def line(e: Entry) -> list[Any]:
    rates = [round(100 * e.rates[name]["estimate"], 1) for name in board.RATES]
    name = e.method + (f" ×{e.strength:g}" if e.strength != 1 else "")
    return [name, e.concepts, f"{e.suite}, {e.tier}", *rates, e.forwards, e.backwards, e.seconds]


def scatter(rows: list[Entry]) -> str:
    """Erased against kept with intervals; every point can be clicked or reached with the keyboard."""
    if not rows:
        return '<p class="empty">No audit yet. Erase something with an audit, or use the Audit tab; every result appears here.</p>'
    methods = sorted({e.method for e in rows})
    colour = {m: COLOURS[i % len(COLOURS)] for i, m in enumerate(methods)}
    marks = []
    for tick in range(0, 101, 25):
        x, y = 46 + 5.4 * tick, 300 - 2.8 * tick
        marks.append(f'<line x1="{x}" x2="{x}" y1="20" y2="300"/><text x="{x}" y="318" text-anchor="middle">{tick}</text>')
        marks.append(f'<line x1="46" x2="586" y1="{y}" y2="{y}"/><text x="38" y="{y + 4}" text-anchor="end">{tick}</text>')
    for i, e in enumerate(rows):
        ua, x, y = e.rates["UA"], 46 + 540 * e.rates["UA"]["estimate"], 300 - 280 * e.kept
        label = escape(f"{e.method}, {e.concepts}: UA {said(e, 'UA')}, IRA {said(e, 'IRA')}, CRA {said(e, 'CRA')}", quote=True)
        low, high, tone = 46 + 540 * ua["low"], 46 + 540 * ua["high"], colour[e.method]
        marks.append(
            f'<g data-row="{i}" tabindex="0" role="button" aria-label="{label}"><title>{label}</title>'
            f'<line class="whisker" stroke="{tone}" x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{tone}"/></g>'
        )
    key = "".join(f'<span><i style="background:{colour[m]}"></i>{escape(m)}</span>' for m in methods)
    return (
        f'<div class="key">{key}</div><svg class="scatter" viewBox="0 0 600 344">{"".join(marks)}'
        '<text x="316" y="338" text-anchor="middle">erased: UA, percent</text>'
        '<text x="12" y="160" text-anchor="middle" transform="rotate(-90 12 160)">kept: mean of IRA and CRA</text></svg>'
    )


def point_chosen(rows: list[Entry], event: gr.EventData) -> str:
    return detail_of(rows, int(event.row))


def line_chosen(rows: list[Entry], event: gr.SelectData) -> str:
    """The table may be sorted, so that a line is found by what it says."""
    matching = [i for i, e in enumerate(rows) if [str(v) for v in line(e)[:6]] == [str(v) for v in event.row_value[:6]]]
    return detail_of(rows, matching[0]) if matching else ""


def detail_of(rows: list[Entry], i: int) -> str:
    """One audit: rates, and pictures of the concept before and after."""
    if not 0 <= i < len(rows):
        return ""
    e = rows[i]
    rates = "".join(f"<dt>{name}</dt><dd>{said(e, name)}</dd>" for name in board.RATES)
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
