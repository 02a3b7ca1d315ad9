"""Claims: what several processes want in one cache is made once. Each makes what no other has claimed, and waits for the rest."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from erasure.storage.locks import LOCK_FILE, FolderLocked, lock_file
from erasure.storage.run import cache_folder

T = TypeVar("T")
POLL_SECONDS = 0.5
# An item that another process has claimed for so long, with nothing made meanwhile, is made twice; both write the same bytes. So a claim
# that a lost machine has left behind costs time, and nothing else.
PATIENCE_SECONDS = 3600.0


def claim_in_turn(items: Sequence[T], key_of: Callable[[T], str | None], patience: float = PATIENCE_SECONDS) -> Iterator[T]:
    """Yield every item once, with a claim on it while the caller makes it: first those that nobody else has claimed, then the others.

    Who claimed the others has made them by then, unless it was killed. So the caller looks whether an item is there before it makes it.

    Args:
        key_of: the name of an item's claim, a content hash; None for one that is there already and needs none.
        patience: seconds to wait for items that others have claimed, while nothing happens.
    """
    left, last_progress = list(items), time.monotonic()
    while left:
        claimed_by_others = []
        for item in left:
            key = key_of(item)
            try:
                if key is None or time.monotonic() - last_progress > patience:
                    yield item
                else:
                    with lock_file(claim_path(key), "a claim in the cache"):
                        yield item
                last_progress = time.monotonic()  # the caller may have taken long to make it
            except FolderLocked:
                claimed_by_others.append(item)
        if len(claimed_by_others) == len(left):
            time.sleep(POLL_SECONDS)
        left = claimed_by_others


def claim_path(key: str) -> Path:
    """Return the lock file that is there while the item of a key is made."""
    return cache_folder() / "claims" / f"{LOCK_FILE}-{key}"
