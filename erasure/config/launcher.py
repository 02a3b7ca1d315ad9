"""Which of the processes that `accelerate launch` has started this one is, by the variables that launchers set. Imports no torch."""

import os


def process_count() -> int:
    """Return how many processes share this run; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Return whether this process writes the files and talks to people."""
    return process_count() == 1 or os.environ.get("RANK", "0") == "0"


def local_rank() -> int:
    """Return the number of this process on its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))
