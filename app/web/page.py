"""The web page: four tabs over one studio."""

import socket
import threading
import time
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from app.web import tab_audit, tab_compare, tab_erase, tab_leaderboard
from app.web.access import AccessControl
from app.web.address import LOCAL_HOSTS
from app.web.studio import MAX_QUEUED, Studio

STYLE = Path(__file__).parent / "style.css"
SECONDS_PER_DAY = 86_400
PREPARATION_SECONDS = 60.0  # how long a page that has been opened waits for the first erasure


def build_page(studio: Studio) -> gr.Blocks:
    """Build all tabs over a studio."""
    with gr.Blocks(
        title="Erasure Studio", analytics_enabled=False, fill_width=True, delete_cache=(SECONDS_PER_DAY, SECONDS_PER_DAY)
    ) as page:
        gr.HTML(
            f"<h1>Erasure Studio</h1><span>{f'the {studio.source} model' if studio.is_pocket else escape(studio.source)}</span>",
            elem_id="head",
        )
        with gr.Tabs():
            with gr.Tab("Compare", id="compare"):
                edits = tab_compare.tab(studio)
            with gr.Tab("Erase", id="erase"):
                newest_job, job = tab_erase.tab(studio)
            with gr.Tab("Audit", id="audit") as audit_tab:
                audit_edits = tab_audit.tab(studio)
            with gr.Tab("Leaderboard", id="leaderboard") as leaderboard_tab:
                load_leaderboard, outputs = tab_leaderboard.tab(studio)
        private_event: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        for event, target in ((edits.focus, edits), (audit_tab.select, audit_edits), (audit_edits.focus, audit_edits)):
            event(lambda: gr.Dropdown(choices=list(studio.edits())), None, target, **private_event)
        page.load(newest_job, None, job, **private_event)
        page.load(make_edits_loader(studio), None, [edits, audit_edits], **private_event)
        gr.on([page.load, leaderboard_tab.select], load_leaderboard, None, outputs, **private_event)
    queued: gr.Blocks = page.queue(max_size=MAX_QUEUED, default_concurrency_limit=4)
    return queued


def make_edits_loader(studio: Studio) -> Callable[[], list[gr.Dropdown]]:
    """Return the handler that fills both lists of edits once the studio is prepared."""

    def load() -> list[gr.Dropdown]:
        studio.ready.wait(PREPARATION_SECONDS)
        names = list(studio.edits())
        return [gr.Dropdown(choices=names, value=names[-1:]) for _ in range(2)]

    return load


def make_app(page: gr.Blocks, *, local: bool = True, login: tuple[str, str] | None = None) -> ASGIApp:
    """Return the page as an application behind access control. The file routes serve no folder.

    Args:
        local: Whether only this machine can reach the page. If so, the Host header must be one of its names.
        login: User and password that everyone must give.
    """
    site = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="/",
        show_error=True,
        max_file_size="5mb",
        footer_links=["api"],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        css_paths=STYLE,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    )
    return AccessControl(site, LOCAL_HOSTS if local else (), login)


def start_server(app: ASGIApp, listener: socket.socket) -> str:
    """Start serving in a thread of this process and return the URL.

    Raises:
        RuntimeError: The server ended before it started.
    """
    # proxy headers are not trusted: wrong passwords are counted by address
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", proxy_headers=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the server ended before it started")
        time.sleep(0.05)
    host, port = listener.getsockname()[:2]
    host = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{host}:{port}/"
