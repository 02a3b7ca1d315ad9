"""The page below a path, behind a proxy that takes the path away."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from tests.app.web.browser.conftest import TIMEOUT_MS, open_tab, serve, wait_for_pairs, wait_until
from tests.app.web.proxy import make_proxy


@pytest.fixture
def proxied(folder: Path, browser: Any) -> Iterator[str]:
    """The address of a studio below /erasure, with a login."""
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/erasure/"
    served = serve(folder / "runs", folder / "cache", "--root-path", "/erasure", "--auth", "ada:a-long-password")
    server = uvicorn.Server(uvicorn.Config(make_proxy("/erasure", served.url.rstrip("/")), log_level="warning"))
    threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True).start()
    while not server.started:
        time.sleep(0.05)
    yield address
    server.should_exit = True
    served.stop()


def test_the_page_works_below_a_path(browser: Any, proxied: str) -> None:
    page, failed = browser.new_page(), []
    page.set_default_timeout(TIMEOUT_MS)
    page.on("response", lambda response: failed.append((response.status, response.url)) if response.status >= 400 else None)
    page.goto(proxied)
    page.locator("input[name=username]").fill("ada")
    page.locator("input[name=password]").fill("a-long-password")
    page.get_by_role("button").click()
    page.locator("#compare").wait_for()
    wait_for_pairs(page, 4, "a watercolor picture of a house")
    assert page.url.startswith(proxied)
    wait_until(page, "[...document.querySelectorAll('#result .view:not([hidden]) img')].every(i => i.complete && i.naturalWidth === 64)")
    with page.expect_download():
        page.get_by_role("link", name="Download").first.click()
    open_tab(page, "Board")
    assert not failed, failed
    page.close()
