"""The web page: tabs over one studio."""

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from app.web import compare_handlers, tab_audit, tab_board, tab_compare, tab_erase, tab_queue
from app.web.access import AccessControl
from app.web.address import LOCAL_HOSTS
from app.web.endpoints import add_endpoints
from app.web.events import PRIVATE, READING
from app.web.images_api import ImagesApi, make_images_app
from app.web.routes import add_routes
from app.web.studio import Studio
from app.web.theme import make_theme
from erasure.loading.model_source import SHIPPED_MODELS

STYLE, SCRIPT = (Path(__file__).parent / name for name in ("style.css", "page.js"))
SECONDS_PER_DAY = 86_400
MAX_REQUESTS = 32  # that wait for the model


def build_page(studio: Studio) -> gr.Blocks:
    """Build all tabs over a studio."""
    with gr.Blocks(
        title="Erasure Studio", analytics_enabled=False, fill_width=True, delete_cache=(SECONDS_PER_DAY, SECONDS_PER_DAY)
    ) as page:
        add_endpoints(studio)  # first, so that no handler of the page takes their names
        with gr.Row(elem_id="head-row"):
            gr.HTML('<h1>Erasure Studio</h1><span class="quiet">Erase a concept, see what changed, measure it.</span>', elem_id="head")
            model = build_model_choice(studio)
        timer = gr.Timer(1.0)
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Compare", id="compare") as compare_tab:
                compare = tab_compare.tab(studio, model, compare_tab)
            with gr.Tab("Erase", id="erase") as erase_tab:
                erasing = tab_erase.tab(studio, page, model, erase_tab, timer)
            with gr.Tab("Queue", id="queue") as queue_tab:
                table = tab_queue.tab(studio, queue_tab, timer)
            with gr.Tab("Audit", id="audit") as audit_tab:
                auditing = tab_audit.tab(studio, model, audit_tab, timer)
            with gr.Tab("Board", id="board") as board_tab:
                board = tab_board.tab(studio)
        table.click(tab_queue.make_action_handler(studio), None, [table, tabs, erasing.job, auditing.followed], **PRIVATE)
        list_edits, audited = make_edits_handler(studio), auditing.edits
        for event, target in ((compare.edits.focus, compare.edits), (audit_tab.select, audited), (audited.focus, audited)):
            event(list_edits, model, target, **READING)
        gr.on(
            [page.load, model.change],
            lambda source: tab_compare.render_examples(source in SHIPPED_MODELS),
            model,
            compare.examples,
            **READING,
        )
        page.load(compare_handlers.make_open(studio), None, [model, *compare.filled], **PRIVATE)
        model.input(compare_handlers.make_switch(studio), model, compare.filled, **PRIVATE)
        erasing.compare.click(compare_handlers.make_show_edit(studio), erasing.job, [tabs, model, *compare.filled], **PRIVATE)
        gr.on([page.load, board_tab.select], board.load, board.inputs, board.outputs, **READING)
    queued: gr.Blocks = page.queue(max_size=MAX_REQUESTS, default_concurrency_limit=4)
    return queued


def build_model_choice(studio: Studio) -> gr.Dropdown:
    """Build the list of models."""
    sources = list(studio.models.sources)
    return gr.Dropdown(
        sources, value=sources[0], label="Model", interactive=True, elem_id="model", scale=0, min_width=220, filterable=False
    )


def make_edits_handler(studio: Studio) -> Callable[[str], gr.Dropdown]:
    """Return the handler that lists the edits of a model anew."""
    return lambda source: gr.Dropdown(choices=list(studio.edits(source)))


def make_app(studio: Studio, login: tuple[str, str] | None = None, images_api: ImagesApi | None = None, root_path: str = "") -> ASGIApp:
    """Return the page of a studio as an application behind access control. The file routes serve no folder.

    Args:
        login: User and password that everyone must give. Without, a local studio answers only to the names of this machine.
        images_api: Answers below /v1 with a key of its own; None: nothing does.
        root_path: Where a proxy puts the page, such as /erasure, if it passes requests on without it.
    """
    site = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    add_routes(site, studio)
    if images_api is not None:
        site.mount("/v1", make_images_app(images_api))
    gr.mount_gradio_app(
        site,
        build_page(studio),
        path="/",
        show_error=True,
        max_file_size="5mb",
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        css_paths=STYLE,
        head=f"<script>{SCRIPT.read_text(encoding='utf-8')}</script>",
        theme=make_theme(),
        root_path=root_path or None,
    )
    keyed = ("/v1/",) if images_api is not None and images_api.key else ()
    return AccessControl(site, LOCAL_HOSTS if studio.is_local else (), login, keyed=keyed, root_path=root_path)


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
