"""How the page's own events differ from those that programs may call."""

from typing import Any

PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}  # arguments of gradio's events
# for what only reads and cannot fail: a queue that is full of comparisons must not refuse it. Errors in words need the queue.
READING: dict[str, Any] = PRIVATE | {"queue": False}
# An event has at most one listener with trigger_mode "always_last": at the end of a deferred one the page fires the whole event again, and
# two such listeners would defer each other forever. What the timer asks for is skipped while an answer is on its way ("once").
