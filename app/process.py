"""How a process of this program begins and ends: both take seconds where torch and diffusers are loaded, unless something is done.

Python's garbage collector walks over everything that importing creates, again and again, and at the end it takes all modules apart.
"""

import atexit
import gc
import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

# New objects until the collector looks for cycles; Python's default is 700. The libraries create millions that stay.
OBJECTS_UNTIL_COLLECTION = 100_000


def run_process(main: Callable[[], int]) -> NoReturn:
    """Run `main` and end this process with the exit code that it returns."""
    gc.set_threshold(OBJECTS_UNTIL_COLLECTION, *gc.get_threshold()[1:])
    end_process(main())


def end_process(code: int) -> NoReturn:
    """End this process without taking its modules apart: threads end, exit handlers run and output is flushed as at any end."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for non-daemon threads, as Python itself does
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:  # closed by whoever started this process
                stream.flush()
        except (OSError, ValueError):  # its reader has closed, the disk is full, or it is closed
            code = code or 1
    os._exit(code)
