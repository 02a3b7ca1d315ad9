"""Leaderboard tab: every audit below the runs folder, erased against retained."""

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from app.jobs import leaderboard
from app.jobs.leaderboard import LeaderboardRow, format_rate
from app.web import images
from app.web.studio import Studio

RATE_HEADS = ["UA %", "rephrased %", "under attack %", "IRA %", "CRA %"]
TABLE_HEADS = ["method", "concepts", "suite", "verdict", *RATE_HEADS, "forwards", "backwards", "seconds"]
POINT_SCRIPT = """
const choose = e => { const p = e.target.closest('[data-row]');
  if (p) { e.preventDefault(); trigger('click', {row: Number(p.dataset.row)}); } };
element.addEventListener('click', choose);
element.addEventListener('keydown', e => { if (e.key === 'Enter' || e.key === ' ') choose(row); });
"""


def tab(studio: Studio) -> tuple[Any, list[Any]]:
    """Build the tab. Return the handler that loads it and the outputs of that handler, for when the page loads."""
    rows = gr.State([])
    with gr.Row():
        with gr.Column(scale=6, min_width=320):
            plot = gr.HTML(elem_id="plot", js_on_load=POINT_SCRIPT)
            refresh = gr.Button("Refresh", size="sm", elem_id="leaderboard-refresh")
        with gr.Column(scale=5, min_width=320):
            detail = gr.HTML('<p class="empty">Click a point or a table row to see its images.</p>', elem_id="detail")
    table = gr.Dataframe(headers=TABLE_HEADS, interactive=False, elem_id="leaderboard", show_search="filter", max_height=420)

    def load() -> tuple[Any, ...]:
        """Load every audit: method, concepts, rates in percent, cost."""
        entries, unreadable = leaderboard.load_leaderboard(studio.root)
        return entries, render_plot(entries) + format_unreadable(unreadable), [to_table_row(row) for row in entries]

    outputs = [rows, plot, table]
    refresh.click(load, None, outputs, api_name="leaderboard")
    plot.click(show_point, rows, detail, api_visibility="private", show_progress="hidden")
    table.select(show_table_row, rows, detail, api_visibility="private", show_progress="hidden")
    return load, outputs


def to_table_row(row: LeaderboardRow) -> list[Any]:
    ua, *retained = (round(100 * row.rates[name].estimate, 1) for name in leaderboard.RATES)
    reworded_rate = row.reworded.rate if row.reworded else None
    reworded, attacked = (round(100 * rate.estimate, 1) if rate else "" for rate in (reworded_rate, row.attacked))
    name = row.method + (f" ×{row.strength:g}" if row.strength != 1 else "")
    return [
        name,
        row.concepts,
        f"{row.suite}, {row.tier}",
        row.verdict,
        ua,
        reworded,
        attacked,
        *retained,
        row.forwards,
        row.backwards,
        row.seconds,
    ]


def render_plot(rows: list[LeaderboardRow]) -> str:
    if not rows:
        return '<p class="empty">No audit yet. Erase something with an audit, or use the Audit tab; every result appears here.</p>'
    return leaderboard.render_scatter(rows)


def format_unreadable(unreadable: list[str], limit: int = 5) -> str:
    """Render what cannot be read, so that nobody takes the leaderboard for complete."""
    rest = [f"and {len(unreadable) - limit} more"] if len(unreadable) > limit else []
    return "".join(f'<p class="error">left out: {escape(text)}</p>' for text in [*unreadable[:limit], *rest])


def show_point(rows: list[LeaderboardRow], event: gr.EventData) -> str:
    return render_detail(rows, int(event.row))


def show_table_row(rows: list[LeaderboardRow], event: gr.SelectData) -> str:
    """Render the audit of a selected table row. The table may be sorted, so the row is found by its values."""
    matching = [i for i, row in enumerate(rows) if [str(v) for v in to_table_row(row)[:9]] == [str(v) for v in event.row_value[:9]]]
    return render_detail(rows, matching[0]) if matching else ""


def render_detail(rows: list[LeaderboardRow], i: int) -> str:
    """Render one audit: rates, and images before and after."""
    if not 0 <= i < len(rows):
        return ""
    row = rows[i]
    values = {name: format_rate(row, name) for name in leaderboard.RATES} | {
        "under attack": leaderboard.format_attacked(row),
        "verdict": row.verdict or "no report",
    }
    rates = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in values.items())
    return f'<h3>{escape(row.method)} · {escape(row.concepts)}</h3><dl class="rates">{rates}</dl>{render_pairs(row.folder, row.sensitive)}'


def render_pairs(folder: Path, sensitive: bool, limit: int = 6) -> str:
    """Render evenly spaced images in the fixed order of the audit, before above after."""
    before = sorted((folder / "images" / "base").glob("*.png"))
    sampled = [before[round(k * (len(before) - 1) / max(1, limit - 1))] for k in range(min(limit, len(before)))]
    figures = []
    for path in sampled:
        after, name = folder / "images" / "erased" / path.name, escape(path.stem)
        img_tags = "".join(
            f'<img alt="{side}: {name}" src="{images.data_url(p)}">' for side, p in (("before", path), ("after", after)) if p.exists()
        )
        figures.append(f"<figure>{img_tags}<figcaption>{name}</figcaption></figure>")
    blur_class = " blurred" if sensitive else ""
    note = '<p class="small">before above, after below; evenly spaced, not chosen</p>'
    return f'<div class="pairs{blur_class}" tabindex="0">{"".join(figures)}</div>{note}'
