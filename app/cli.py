"""The `erasure` command. It only parses: every command calls library functions that are public."""

import importlib.metadata
import os
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

from erasure.errors import AssumptionWarning, Unfinished, UserError, is_out_of_memory, to_one_line, unknown_value_error

COMMANDS = {
    "erase": "erase concepts from a model and save an edit",
    "audit": "measure an edit: what it erased and what else it changed; writes report.html",
    "export": "turn an edit into a LoRA file, a diffusers folder or a text encoder, for other programs",
    "jobs": "run plans of many erasures and audits; status and leaderboard",
    "studio": "serve the web page: compare, erase, audit, leaderboard",
    "demo": "erase a style from the shipped pocket model, audit it and write a report",
    "methods": "list the erasure methods",
    "clean": "show caches, downloads and incomplete runs; --yes removes them",
    "doctor": "show what is installed, which device is used and what is missing",
}
USAGE_ERROR, INCOMPLETE = 1, 2
DEFAULT_FORMATWARNING = warnings.formatwarning
COMPUTE_COMMANDS = ("erase", "audit", "demo", "export", "jobs", "studio")
# With these values glibc keeps large tensors in the heap instead of mapping new pages for each. This saves about a third of a training
# step on a CPU (docs/results/performance.md). Waiting OpenMP threads spin for long by default, so that two processes on the same cores slow
# each other down several times over. Both settings are read at process start only.
PROCESS_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "GOMP_SPINCOUNT": "1000",
}


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code.

    0 is done or PASS, 1 a usage error, 2 incomplete (the same command continues), 3 FAIL, 4 INCONCLUSIVE.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if (
        argv is None
        and sys.platform == "linux"
        and arguments
        and arguments[0] in COMPUTE_COMMANDS
        and not PROCESS_ENVIRONMENT.keys() & os.environ.keys()
    ):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **PROCESS_ENVIRONMENT})
    if not arguments or arguments[0] in ("-h", "--help"):
        print(format_usage())
        return 0
    if arguments[0] == "--version":
        print(f"erasure {installed_version()}")
        return 0
    name, *rest = arguments
    warnings.formatwarning = format_warning
    try:
        if name not in COMMANDS:
            raise unknown_value_error("command", name, COMMANDS)
        run: Callable[[list[str]], int] = import_module(f"app.commands.{name}").main
        return run(rest)
    except UserError as error:
        return report_error(str(error), INCOMPLETE if isinstance(error, Unfinished) else USAGE_ERROR)
    except BrokenPipeError:  # the reader of the output has closed, as in `erasure methods | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return USAGE_ERROR
    except Exception as error:
        from erasure.storage.files import is_disk_full

        if is_disk_full(error):
            return report_error(f"no room is left on the disk ({error}); make room, then repeat the command.", INCOMPLETE)
        if is_out_of_memory(error):
            return report_error(
                "out of memory; the same command continues with more of it, or choose smaller values (--batch).", INCOMPLETE
            )
        if isinstance(error, OSError):
            return report_error(f"{error.filename or name}: {error.strerror or error}.", USAGE_ERROR)
        raise  # a bug in this program; show the traceback
    except KeyboardInterrupt:
        return report_error("interrupted; the same command continues where it stood.", INCOMPLETE)


def report_error(message: str, code: int) -> int:
    print(f"erasure: {to_one_line(message)}", file=sys.stderr)
    return code


def installed_version() -> str:
    try:
        return importlib.metadata.version("erasure-studio")
    except importlib.metadata.PackageNotFoundError:
        return "(a checkout that is not installed)"


def format_warning(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> str:
    """Format a warning for the terminal: an AssumptionWarning without the line of code, all others as Python does."""
    return (
        f"erasure: warning: {message}\n"
        if issubclass(category, AssumptionWarning)
        else DEFAULT_FORMATWARNING(message, category, *args, **kwargs)
    )


def format_usage() -> str:
    lines = [f"  {name:<9} {text}" for name, text in COMMANDS.items()]
    hint = "`erasure COMMAND --help` lists the options of a command; `erasure --version` prints the version."
    return "\n".join(["usage: erasure COMMAND [options]", "", *lines, "", hint])


if __name__ == "__main__":
    sys.exit(main())
