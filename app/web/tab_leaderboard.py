"""Board: every audit below the runs folder, erased against kept."""

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from app.jobs import leaderboard as board
from app.jobs.leaderboard import LeaderboardRow, format_rate
from app.web import images as pictures
from app.web.studio import Studio

RATE_HEADS = ["UA %", "in other words %", "under attack %", "IRA %", "CRA %"]
TABLE_HEADS = ["method", "concepts", "suite", "verdict", *RATE_HEADS, "forwards", "backwards", "seconds"]
POINT_SCRIPT = """
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
            plot = gr.HTML(elem_id="plot", js_on_load=POINT_SCRIPT)
            refresh = gr.Button("Refresh", size="sm", elem_id="board-refresh")
        with gr.Column(scale=5, min_width=320):
            detail = gr.HTML('<p class="empty">Click a point, or a line of the table, to see its pictures.</p>', elem_id="detail")
    table = gr.Dataframe(headers=TABLE_HEADS, interactive=False, elem_id="board", show_search="filter", max_height=420)

    def load() -> tuple[Any, ...]:
        """Every audit: method, concepts, rates in percent, cost."""
        entries, unreadable = board.load_leaderboard(studio.root)
        return entries, render_plot(entries) + format_unreadable(unreadable), [to_table_row(e) for e in entries]

    outputs = [rows, plot, table]
    refresh.click(load, None, outputs, api_name="board")
    plot.click(show_point, rows, detail, api_visibility="private", show_progress="hidden")
    table.select(show_table_row, rows, detail, api_visibility="private", show_progress="hidden")
    return load, outputs


def to_table_row(e: LeaderboardRow) -> list[Any]:
    ua, *retained = (round(100 * e.rates[name]["estimate"], 1) for name in board.RATES)
    reworded, attacked = (round(100 * rate["estimate"], 1) if rate else "" for rate in (e.reworded, e.attacked))
    name = e.method + (f" ×{e.strength:g}" if e.strength != 1 else "")
    return [name, e.concepts, f"{e.suite}, {e.tier}", e.verdict, ua, reworded, attacked, *retained, e.forwards, e.backwards, e.seconds]


def render_plot(rows: list[LeaderboardRow]) -> str:
    if not rows:
        return '<p class="empty">No audit yet. Erase something with an audit, or use the Audit tab; every result appears here.</p>'
    return board.render_scatter(rows)


def format_unreadable(unreadable: list[str], limit: int = 5) -> str:
    """What cannot be read, so that nobody takes the board for complete."""
    rest = [f"and {len(unreadable) - limit} more"] if len(unreadable) > limit else []
    return "".join(f'<p class="error">left out: {escape(text)}</p>' for text in [*unreadable[:limit], *rest])


def show_point(rows: list[LeaderboardRow], event: gr.EventData) -> str:
    return render_detail(rows, int(event.row))


def show_table_row(rows: list[LeaderboardRow], event: gr.SelectData) -> str:
    """The table may be sorted, so that a line is found by what it says."""
    matching = [i for i, e in enumerate(rows) if [str(v) for v in to_table_row(e)[:9]] == [str(v) for v in event.row_value[:9]]]
    return render_detail(rows, matching[0]) if matching else ""


def render_detail(rows: list[LeaderboardRow], i: int) -> str:
    """One audit: rates, and pictures of the concept before and after."""
    if not 0 <= i < len(rows):
        return ""
    e = rows[i]
    values = {name: format_rate(e, name) for name in board.RATES} | {
        "under attack": board.format_attacked(e),
        "verdict": e.verdict or "no report",
    }
    rates = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in values.items())
    return f'<h3>{escape(e.method)} · {escape(e.concepts)}</h3><dl class="rates">{rates}</dl>{render_pairs(e.folder, e.sensitive)}'


def render_pairs(folder: Path, sensitive: bool, limit: int = 6) -> str:
    """Evenly spaced pictures in the fixed order of the audit, before above after."""
    before = sorted((folder / "images" / "base").glob("*.png"))
    sampled = [before[round(k * (len(before) - 1) / max(1, limit - 1))] for k in range(min(limit, len(before)))]
    figures = []
    for path in sampled:
        after, name = folder / "images" / "erased" / path.name, escape(path.stem)
        img_tags = "".join(
            f'<img alt="{side}: {name}" src="{pictures.data_url(p)}">' for side, p in (("before", path), ("after", after)) if p.exists()
        )
        figures.append(f"<figure>{img_tags}<figcaption>{name}</figcaption></figure>")
    blur_class = " veiled" if sensitive else ""
    note = '<p class="small">before above, after below; evenly spaced, not chosen</p>'
    return f'<div class="pairs{blur_class}" tabindex="0">{"".join(figures)}</div>{note}'
