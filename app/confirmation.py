"""Print hints and warnings as plain lines, and ask for confirmation where a person can answer."""

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from erasure.errors import IgnoredGateWarning, UnfitMethodWarning, to_one_line


def confirm(hints: Sequence[str], yes: bool = False) -> bool:
    """Print the hints and return whether to continue.

    A person at a terminal is asked, unless `yes` is set. A script never waits: it gets the warnings and the work continues.
    """
    for hint in hints:
        print_warning(hint)
    if yes or not hints or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    print("erasure: continue? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def print_warning(message: object, *_: Any) -> None:
    """Print a warning as one line."""
    print(f"erasure: warning: {to_one_line(str(message))}", file=sys.stderr)


@contextmanager
def print_warnings() -> Iterator[None]:
    """Print the library's warnings about the input as plain lines, and no other warnings."""
    from erasure.concept_check import WeaklyKnownConcept

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for category in (WeaklyKnownConcept, IgnoredGateWarning, UnfitMethodWarning):
            warnings.simplefilter("always", category)
        warnings.showwarning = print_warning  # type: ignore[assignment]  # same call, fewer named parameters
        yield
