"""How the page's own events differ from those that programs may call."""

from typing import Any

PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}  # arguments of gradio's events
# for what only reads and cannot fail: a queue that is full of comparisons must not refuse it. Errors in words need the queue.
READING: dict[str, Any] = PRIVATE | {"queue": False}
