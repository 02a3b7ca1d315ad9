"""The page: four tabs over one studio."""

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from app.web import tab_audit, tab_board, tab_compare, tab_erase
from app.web.studio import QUEUED, Studio

STYLE = Path(__file__).parent / "style.css"
DAY = 86_400


def build(studio: Studio) -> gr.Blocks:
    """All tabs; takes what it needs, so that tests pass a tiny model."""
    with gr.Blocks(title="Erasure Studio", analytics_enabled=False, fill_width=True, delete_cache=(DAY, DAY)) as page:
        gr.HTML(f"<h1>Erasure Studio</h1><span>{'the pocket model' if studio.is_pocket else escape(studio.source)}</span>", elem_id="head")
        with gr.Tabs():
            with gr.Tab("Compare", id="compare"):
                edits = tab_compare.tab(studio)
            with gr.Tab("Erase", id="erase"):
                newest, job = tab_erase.tab(studio)
            with gr.Tab("Audit", id="audit") as auditing:
                audited = tab_audit.tab(studio)
            with gr.Tab("Board", id="board") as boarding:
                fill, outputs = tab_board.tab(studio)
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        for event, target in ((edits.focus, edits), (auditing.select, audited), (audited.focus, audited)):
            event(lambda: gr.Dropdown(choices=list(studio.edits())), None, target, **quiet)
        page.load(newest, None, job, **quiet)
        gr.on([page.load, boarding.select], fill, None, outputs, **quiet)
    return page.queue(max_size=QUEUED, default_concurrency_limit=4)


def launch(page: gr.Blocks, *, host: str = "127.0.0.1", port: int | None = None, auth: tuple[str, str] | None = None) -> str:
    """Serve the page and return its address; nothing is fetched from elsewhere, and no folder is opened to the file routes."""
    _, url, _ = page.launch(
        server_name=host,
        server_port=port,
        auth=auth,
        share=False,
        quiet=True,
        show_error=True,
        max_file_size="5mb",
        footer_links=["api"],
        enable_monitoring=False,
        ssr_mode=False,
        prevent_thread_lock=True,
        css_paths=STYLE,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    )
    return url
