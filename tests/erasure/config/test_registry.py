"""The registry reads sources: from any number of threads, as a page does."""

import gc
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from erasure.config import registry
from erasure.config.registry import list_modules, load_class, read_summary
from erasure.methods.base import Method


@pytest.fixture
def yielding_collector() -> Iterator[None]:
    """A garbage collector that runs often and lets other threads run: where Python's parser can be interrupted."""
    threshold = gc.get_threshold()

    def let_others_run(phase: str, info: dict[str, int]) -> None:
        time.sleep(1e-5)

    gc.callbacks.append(let_others_run)
    gc.set_threshold(500)
    yield
    gc.set_threshold(*threshold)
    gc.callbacks.remove(let_others_run)


def test_summaries_and_comments_are_read_by_many_threads_at_once(yielding_collector: None) -> None:
    """Python 3.11.7's ast raises SystemError where two threads parse at once."""
    classes = [load_class("erasure.methods", name, Method) for name in list_modules("erasure.methods")]
    expected = [registry.class_source_of(cls) for cls in classes]
    read_class, read_line = registry.class_source_of.__wrapped__, read_summary.__wrapped__
    with ThreadPoolExecutor(4) as pool:
        sources = pool.map(read_class, classes * 2)
        summaries = pool.map(read_line, ["erasure.methods"] * 6, ["esd", "uce", "sfd"] * 2)
    assert list(sources) == expected * 2 and all(summaries)
