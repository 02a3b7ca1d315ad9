"""The `erasure` command. Parsing only: every command calls library functions that the rest of the house can call too."""

import importlib.metadata
import os
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

from erasure.errors import Assumed, Unfinished, UserError, in_one_line, out_of_memory, unknown

COMMANDS = {
    "erase": "erase concepts from a model and save an edit",
    "audit": "measure an edit: what is gone, what else went with it; writes report.html",
    "export": "turn an edit into a LoRA file, a diffusers folder or a text encoder, for other programs",
    "jobs": "run plans of many erasures and audits; status and leaderboard",
    "studio": "serve the web page: compare, erase, audit, board",
    "demo": "erase a style from the shipped pocket model, audit it and write a report",
    "methods": "list the erasure methods",
    "clean": "show, and with --yes remove, caches, downloads and incomplete runs",
    "doctor": "say what is installed, which device is used, what is missing",
}
USAGE_ERROR, INCOMPLETE = 1, 2
PYTHONS_FORMAT = warnings.formatwarning
COMPUTE = ("erase", "audit", "demo", "export", "jobs", "studio")
# glibc keeps large tensors in the heap instead of fetching fresh pages for each; about a third of a training step on a CPU
# (docs/performance.md). OpenMP threads that wait for each other spin for long; two processes on the same cores then slow each other down
# several times over. Both are read at start only.
ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "GOMP_SPINCOUNT": "1000",
}


def main(argv: list[str] | None = None) -> int:
    """Run a command. Exit codes: 0 done or PASS, 1 usage error, 2 incomplete (the same command continues), 3 FAIL, 4 INCONCLUSIVE."""
    arguments = sys.argv[1:] if argv is None else argv
    if argv is None and sys.platform == "linux" and arguments and arguments[0] in COMPUTE and not ENVIRONMENT.keys() & os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **ENVIRONMENT})
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return 0
    if arguments[0] == "--version":
        print(f"erasure {version()}")
        return 0
    name, *rest = arguments
    warnings.formatwarning = one_line
    try:
        if name not in COMMANDS:
            raise unknown("command", name, COMMANDS)
        run: Callable[[list[str]], int] = import_module(f"app.commands.{name}").main
        return run(rest)
    except UserError as error:
        return complain(str(error), INCOMPLETE if isinstance(error, Unfinished) else USAGE_ERROR)
    except BrokenPipeError:  # the reader of our output has gone, as in `erasure methods | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return USAGE_ERROR
    except Exception as error:
        from erasure.storage.files import disk_full

        if disk_full(error):
            return complain(f"no room is left on the disk ({error}); make room, then repeat the command.", INCOMPLETE)
        if out_of_memory(error):
            return complain("out of memory; the same command continues with more of it, or choose smaller values (--batch).", INCOMPLETE)
        if isinstance(error, OSError):
            return complain(f"{error.filename or name}: {error.strerror or error}.", USAGE_ERROR)
        raise  # a fault of this program, which should be seen
    except KeyboardInterrupt:
        return complain("interrupted; the same command continues where it stood.", INCOMPLETE)


def complain(message: str, code: int) -> int:
    print(f"erasure: {in_one_line(message)}", file=sys.stderr)
    return code


def version() -> str:
    try:
        return importlib.metadata.version("erasure-studio")
    except importlib.metadata.PackageNotFoundError:
        return "(a checkout that is not installed)"


def one_line(message: Warning | str, category: type[Warning], *place: Any, **line: Any) -> str:
    """A warning as the terminal shows it: what the user should know without the place in our code, all others as Python does."""
    return f"erasure: warning: {message}\n" if issubclass(category, Assumed) else PYTHONS_FORMAT(message, category, *place, **line)


def overview() -> str:
    lines = [f"  {name:<9} {text}" for name, text in COMMANDS.items()]
    more = "`erasure COMMAND --help` lists the options of a command; `erasure --version` says which this is."
    return "\n".join(["usage: erasure COMMAND [options]", "", *lines, "", more])


if __name__ == "__main__":
    sys.exit(main())
