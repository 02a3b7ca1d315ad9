"""Print hints before the work begins, and ask for confirmation where a person can answer."""

import sys
from collections.abc import Sequence

from erasure.errors import to_one_line


def confirm(hints: Sequence[str], yes: bool = False) -> bool:
    """Print the hints and return whether to continue.

    A person at a terminal is asked, unless `yes` is set. A script never waits: it gets the warnings and the work continues.
    """
    for hint in hints:
        print(f"erasure: warning: {to_one_line(hint)}", file=sys.stderr)
    if yes or not hints or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    print("erasure: continue? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
