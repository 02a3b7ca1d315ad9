"""The `erasure` command: read the line, run the command, and turn every failure into one line and an exit code."""

import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from app.command_line import command_of, parse_command_line, run_command
from app.process import run_process
from erasure.config.launcher import is_main_process, process_count
from erasure.errors import AssumptionWarning, Unfinished, UserError, is_out_of_memory, to_one_line

USAGE_ERROR, INCOMPLETE = 1, 2
MAIN_SECONDS = 10  # in which the main process of several says what is wrong; `accelerate launch` ends them all when one fails
# options that take less memory, the most helpful first
ERASE_SAVERS = ("--gradient-checkpointing", "--offload all", "--images-at-once 1", "--batch 1", "--optimizer adam8bit")
AUDIT_SAVERS = ("--images-at-once 1", "--offload all", "--vae tiled")
DEFAULT_FORMATWARNING = warnings.formatwarning
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
    warnings.formatwarning = format_warning
    try:
        options = parse_command_line(sys.argv[1:] if argv is None else argv)
        if options is None:  # help or the version was printed
            return 0
        if argv is None and command_of(options).computes:
            restart_with_environment()
        if process_count() > 1:
            check_launched(options.words)
        return run_command(options)
    except UserError as error:
        return report_error(str(error), INCOMPLETE if isinstance(error, Unfinished) else USAGE_ERROR)
    except BrokenPipeError:  # the reader of the output has closed, as in `erasure methods | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return USAGE_ERROR
    except Exception as error:
        if message := explain_failure(error, sys.argv[1:] if argv is None else argv):
            return report_error(*message)
        sys.stderr = sys.__stderr__  # also in a process that was told to be silent
        raise  # a bug in this program; show the traceback
    except KeyboardInterrupt:
        return report_error("interrupted; the same command continues where it stood.", INCOMPLETE)


def check_launched(words: str) -> None:
    """Check a command that `accelerate launch` has started in several processes; only the main one talks.

    Raises:
        UserError: The processes would all do the same work.
    """
    if not is_main_process():
        sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  # open until the end
    if words != "erase":
        if not is_main_process():
            time.sleep(MAIN_SECONDS)
        raise UserError(f"several processes can share one `erase`; start `erasure {words}` in one process.")


def restart_with_environment() -> None:
    """Start this process again with the variables that are read at process start only, if none of them is set."""
    if sys.platform == "linux" and not PROCESS_ENVIRONMENT.keys() & os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **PROCESS_ENVIRONMENT})


def explain_failure(error: Exception, argv: Sequence[str]) -> tuple[str, int] | None:
    """Return message and exit code for a failure of the machine; None for any other.

    Args:
        argv: the command line.
    """
    from erasure.storage.files import is_disk_full

    if is_disk_full(error):
        return f"no room is left on the disk ({error}); make room, then repeat the command.", INCOMPLETE
    if is_out_of_memory(error):
        return explain_out_of_memory(argv, on_gpu="CUDA" in str(error)), INCOMPLETE
    if isinstance(error, OSError):
        return f"{error.filename or type(error).__name__}: {error.strerror or error}.", USAGE_ERROR
    return None


def explain_out_of_memory(argv: Sequence[str], on_gpu: bool) -> str:
    """Return what to do where memory ran out: the options of the command that help and are not given yet."""
    options = {"erase": ERASE_SAVERS, "audit": AUDIT_SAVERS}.get(argv[0] if argv else "", ())
    helpful = [option for option in options if option.partition(" ")[0] not in argv and (on_gpu or not option.startswith("--offload"))]
    advice = f" Options that need less, the most helpful first: {', '.join(helpful)}." if helpful else ""
    return f"out of memory; with more of it, or less to hold, the same command continues.{advice} erasure models shows what a model needs."


def report_error(message: str, code: int) -> int:
    print(f"erasure: {to_one_line(message)}", file=sys.stderr)
    return code


def format_warning(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> str:
    """Format a warning for the terminal: an AssumptionWarning without the line of code, all others as Python does."""
    return (
        f"erasure: warning: {message}\n"
        if issubclass(category, AssumptionWarning)
        else DEFAULT_FORMATWARNING(message, category, *args, **kwargs)
    )


def run() -> NoReturn:
    """Run the command line of this process, and end the process."""
    run_process(main)


if __name__ == "__main__":
    run()
