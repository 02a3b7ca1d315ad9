"""Fixtures for tests of the page: one studio on pocket, one browser. The tests skip where Chromium is missing."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SHOTS = os.environ.get("ERASURE_SCREENSHOTS")  # folder for screenshots
TIMEOUT_MS = 5 * 60_000  # so long that a slow machine fails no test


@dataclass
class ServedStudio:
    """A studio in a process of its own."""

    process: "subprocess.Popen[bytes]"
    url: str
    log: Path

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)

    def complaints(self) -> list[str]:
        """Return what the studio printed that nobody wants to see in a terminal."""
        return [line for line in self.log.read_text().splitlines() if re.search(r"Traceback|Error\b|Warning\b", line)]


def serve(runs: Path, cache: Path, *flags: str) -> ServedStudio:
    """Start a studio and wait for its address."""
    argv = [sys.executable, "-m", "app.cli", "studio", "--port", "0", "--runs", str(runs), *flags]
    environment = {**os.environ, "ERASURE_CACHE": str(cache), "GRADIO_TEMP_DIR": str(cache / "gradio"), "HF_HUB_OFFLINE": "1"}
    log = runs.with_name(f"{runs.name}-{len(list(runs.parent.glob('*.log')))}.log")
    with log.open("wb") as stream:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=stream, env=environment)
    assert process.stdout is not None
    for line in process.stdout:
        if match := re.search(rb"http://\S+", line):
            return ServedStudio(process, match[0].decode(), log)
    raise AssertionError(f"the studio did not start:\n{log.read_text()}")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("studio")


@pytest.fixture(scope="session")
def studio(folder: Path) -> Iterator[ServedStudio]:
    served = serve(folder / "runs", folder / "cache")
    yield served
    served.stop()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine; `make browser` installs one from system packages")
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Any, studio: ServedStudio) -> Iterator[Callable[..., Any]]:
    """A function that opens the page at a size and in a color scheme; errors in its console fail the test."""
    contexts, errors = [], list[str]()

    def open_(width: int = 1366, height: int = 768, scheme: str = "light", query: str = "") -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(TIMEOUT_MS)
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(studio.url + query)
        page.locator("#compare").wait_for()
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not errors, errors


@pytest.fixture
def page(open_page: Callable[..., Any]) -> Any:
    return open_page()


def shot(page: Any, name: str) -> None:
    """Take a screenshot if somebody asked for them."""
    if SHOTS:
        page.evaluate("scrollTo(0, 0)")
        page.screenshot(path=f"{SHOTS}/{name}.png")


def open_tab(page: Any, name: str) -> None:
    """Open a tab; on a narrow page it may be in the menu of those that did not fit."""
    tab = page.get_by_role("tab", name=name, exact=True)
    if tab.count() and tab.first.is_visible():
        tab.first.click()
    else:
        page.locator(".overflow-menu > button").first.click()
        page.locator(".overflow-dropdown button", has_text=name).click()
    page.locator(f"[role=tabpanel]:visible #{FIRST[name]}").first.wait_for()


FIRST = {"Compare": "compare", "Erase": "erase", "Queue": "queue", "Audit": "audit", "Board": "board-refresh"}  # in each tab


def choose(page: Any, list_id: str, option: str) -> None:
    """Choose an option of a list by a part of its text."""
    page.locator(f"#{list_id} input").first.click()
    page.get_by_role("option").filter(has_text=option).first.click()


def wait_until(page: Any, script: str, arg: Any = None) -> None:
    """Wait until a script is true, asking four times a second: Playwright's own waiting asks in every frame and keeps a core busy."""
    page.wait_for_function(script, arg=arg, polling=250)


def wait_for_state(page: Any, state: str) -> None:
    """Wait until the job that the page shows has a state, or failed."""
    wait_until(page, "state => document.querySelector(`#job-view .state.${state}, #job-view .state.failed`)", state)
    assert page.locator(f"#job-view .state.{state}").count(), page.locator("#job-view").inner_text()


def wait_for_pairs(page: Any, count: int, text: str = "") -> None:
    """Wait until a comparison with so many pairs is on the page, and its sentence holds a text."""
    wait_until(
        page,
        """([count, text]) => {
          const result = document.querySelector('#result .result[data-link]');
          return result && result.querySelectorAll('.tile[data-pair]').length === count && result.innerText.includes(text);
        }""",
        [count, text],
    )
