"""Oddities are said before the work begins, and asked about where a person can answer."""

import sys
from collections.abc import Sequence

from erasure.errors import to_one_line


def confirm(hints: Sequence[str], yes: bool = False) -> bool:
    """Print what is odd; whether to go on all the same.

    A person at a terminal is asked, unless `yes` answered beforehand. A script is never kept waiting: it gets the warnings, and the
    work is done.
    """
    for hint in hints:
        print(f"erasure: warning: {to_one_line(hint)}", file=sys.stderr)
    if yes or not hints or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    print("erasure: go on all the same? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
