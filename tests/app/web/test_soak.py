"""A long day of a studio: 300 comparisons, 100 queued jobs, and a kill in the middle. Slow: run with `pytest -m slow`."""

import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from gradio_client import Client

from app.jobs import queue
from app.jobs.plan import JobSpec
from erasure.concept import Concept
from erasure.edits import Edit
from tests.app.web.browser.conftest import ServedStudio, serve

JOBS, COMPARISONS = 100, 300
STYLES = ("neon", "sketch", "watercolor", "blueprint")


def queue_jobs(root: Path) -> list[Path]:
    """Queue jobs that set guidance: each starts a process, loads the model and writes an edit, without training."""
    folders = []
    for i in range(JOBS):
        concept = Concept(name=STYLES[i % len(STYLES)], kind="style")
        spec = JobSpec(concepts=(concept,), method="negative_prompt", seed=i, model="pocket")
        queue.enqueue(root / spec.folder_name, spec)
        folders.append(root / spec.folder_name)
    return folders


def compare(studio: ServedStudio, first: int, count: int) -> int:
    """Compare with seeds of its own each time, so that nothing comes from a cache; return the memory of the studio in bytes."""
    client = Client(studio.url, verbose=False)
    for seed in range(first, first + count):
        (pair,) = client.predict("a boat", ["watercolor (UCE)"], seed, 1, 4, 4, 1, api_name="/compare")
        assert pair["before"] and pair["before"] != pair["after"]
    return int(psutil.Process(studio.process.pid).memory_info().rss)


def wait_for_first_erasure(runs: Path) -> None:
    """The studio answers before its first erasure is there."""
    deadline = time.monotonic() + 120
    while not list(runs.glob("ready/*/result.json")):
        assert time.monotonic() < deadline, "the studio prepared no erasure"
        time.sleep(0.5)


@pytest.mark.slow
def test_nothing_is_lost_and_memory_stays_flat(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    folders = queue_jobs(runs / "jobs")
    studio = serve(runs, tmp_path / "cache")
    wait_for_first_erasure(runs)
    compare(studio, 0, COMPARISONS // 2)
    done_before = sum((folder / "done.json").exists() for folder in folders)
    studio.process.kill()
    studio.process.wait()
    studio = serve(runs, tmp_path / "cache")
    early = compare(studio, 1000, COMPARISONS // 6)
    late = compare(studio, 2000, COMPARISONS - COMPARISONS // 2 - COMPARISONS // 6)
    assert late - early < 40 * 2**20, f"memory grew from {early:,} to {late:,} bytes"
    deadline = time.monotonic() + 3600
    while not all((folder / "done.json").exists() for folder in folders) and time.monotonic() < deadline:
        for folder in folders:
            if queue.read_progress(folder).state == "interrupted":
                queue.requeue(folder)  # as the page's Continue does
        time.sleep(1)
    studio.stop()
    assert Counter(queue.read_progress(folder).state for folder in folders) == {"done": JOBS}
    assert 0 < done_before < JOBS, "the kill must come in the middle"
    assert len({Edit.load(folder / "edit").digest() for folder in folders}) == len(STYLES)
    assert not studio.complaints(), studio.complaints()
