"""Measure a stranger's path through the studio in a real browser and write docs/results/performance.md.

    python scripts/bench_studio.py --work runs/studio    # half an hour of two idle cores

Playwright and a Chromium are needed. Every round uses a folder of runs and a cache of its own; a first visit of the studio has prepared
its first erasure, and the studio has run for a quarter of a minute, before the clock starts.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench_cpu import spread
from fill_docs import fill_section
from playwright.sync_api import sync_playwright

from app.child_command import ROOT

sys.path.insert(0, str(ROOT))
from tests.app.web.browser.conftest import (
    CHROMIUM,
    FLAGS,
    TIMEOUT_MS,
    choose,
    open_tab,
    serve,
    wait_for_pairs,
    wait_for_state,
)

ROUNDS = 5
SETTLE_SECONDS = 15  # after its start the studio loads a spare process; a stranger meets one that runs already


def page(docs: Path) -> Path:
    return docs / "results" / "performance.md"


def open_first(visit: Any, url: str) -> None:
    """From the request of the page to its first pair of images."""
    visit.goto(url)
    visit.locator("#result .frame img").first.wait_for()


def erase(page: Any, concept: str, method: str, suite: str) -> None:
    """Type a concept, choose method and suite by what the page calls them, start, and wait for the end of the job."""
    open_tab(page, "Erase")
    page.locator("#concept textarea, #concept input").first.fill(concept)
    choose(page, "method", method)
    choose(page, "suite", suite)
    page.locator("#erase").click()
    page.locator("#job-view h3", has_text=f"{concept} by {method}").wait_for()
    wait_for_state(page, "done")


def erase_and_compare(page: Any, concept: str) -> None:
    """From typing a concept to its erasure by UCE, compared with four seeds."""
    erase(page, concept, "UCE", "no, only erase")
    page.locator("#compare-edit:not([disabled])").click()
    wait_for_pairs(page, 4, f"{concept} (UCE)")


def erase_and_measure(page: Any, concept: str) -> None:
    """From typing a concept to its erasure by ESD with the verdict of a smoke audit."""
    erase(page, concept, "ESD", "pocket")
    page.locator("#job-view .verdict").first.wait_for()


def measure(work: Path, browser: Any, parts: dict[str, Callable[[Any, str], None]]) -> dict[str, list[float]]:
    """Return the seconds of every part in every round; a part gets the page and its address."""
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for i in range(ROUNDS):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        served = serve(work / "runs", work / "cache")
        visit = browser.new_page(viewport={"width": 1366, "height": 768})
        visit.set_default_timeout(2 * TIMEOUT_MS)
        visit.goto(served.url)
        wait_for_pairs(visit, 4)
        time.sleep(SETTLE_SECONDS)
        for name, part in parts.items():
            started = time.perf_counter()
            part(visit, served.url)
            seconds[name].append(time.perf_counter() - started)
            print(f"round {i + 1}, {name}: {seconds[name][-1]:.1f} s", file=sys.stderr, flush=True)
        visit.close()
        served.stop()
    return seconds


def report_path(args: argparse.Namespace, browser: Any) -> None:
    """The page, and an erasure by UCE."""
    parts: dict[str, Callable[[Any, str], None]] = {
        "page to its first images": open_first,
        "concept typed to UCE compared": lambda visit, url: erase_and_compare(visit, "sketch"),
    }
    rows = [f"| {name} | {spread(values)} |" for name, values in measure(args.work, browser, parts).items()]
    fill_section(page(args.docs), "studio", ["| on pocket | seconds, median of 5 (range) |", "|---|---|", *rows])


def report_verdict(args: argparse.Namespace, browser: Any) -> None:
    """An erasure by ESD with a smoke audit."""
    parts = {"concept typed to ESD with verdict": lambda visit, url: erase_and_measure(visit, "neon")}
    rows = [f"| {name} | {spread(values)} |" for name, values in measure(args.work, browser, parts).items()]
    fill_section(page(args.docs), "verdict", ["| on pocket | seconds, median of 5 (range) |", "|---|---|", *rows])


PARTS = {"path": report_path, "verdict": report_verdict}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/studio"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--part", choices=tuple(PARTS), action="append", help="run this part only; may be repeated")
    args = parser.parse_args()
    args.work = args.work.absolute()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for part in args.part or PARTS:
            PARTS[part](args, browser)
        browser.close()


if __name__ == "__main__":
    main()
