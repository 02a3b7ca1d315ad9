"""Measure what a person waits for on a CPU and write docs/results/performance.md: how commands and the studio start, and smoke audits.

    python scripts/bench_commands.py --work runs/commands    # every part: about half an hour of two idle cores
    python scripts/bench_commands.py --part start --before ../older-checkout

What is compared takes turns, five times; of the starts a first round does not count. With --before, an older checkout takes turns too.
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_cpu import run_in_turn, spread
from fill_docs import fill_section

from app.child_command import ROOT


def page(docs: Path) -> Path:
    return docs / "results" / "performance.md"


@dataclass(frozen=True)
class Program:
    """The commands of a checkout, with a cache and a folder of their own."""

    checkout: Path
    work: Path

    def start(self, *words: str, cache: str = "cache", **options: Any) -> "subprocess.Popen[bytes]":
        """Start a command with one of the caches."""
        own = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
        places = {"PYTHONPATH": str(self.checkout), "ERASURE_CACHE": str(self.work / cache), "PYTHONUNBUFFERED": "1"}
        return subprocess.Popen([sys.executable, "-P", "-m", "app.cli", *words], env=own | places, stderr=subprocess.STDOUT, **options)

    def run(self, *words: str) -> None:
        """Run a command to its end. Exit codes of verdicts count as success."""
        process = self.start(*words, stdout=subprocess.PIPE)
        output, _ = process.communicate()
        if process.returncode not in (0, 3, 4):
            raise SystemExit(f"{' '.join(words)} ended with {process.returncode}:\n{output.decode()[-2000:]}")

    def run_until(self, text: str, *words: str) -> float:
        """Run a command with an empty cache until it prints a text, stop it, and return the seconds until then."""
        shutil.rmtree(self.work / "empty", ignore_errors=True)
        started = time.perf_counter()
        process = self.start(*words, cache="empty", stdout=subprocess.PIPE)
        assert process.stdout is not None
        seen = b""
        while text.encode() not in seen:
            if not (more := os.read(process.stdout.fileno(), 4096)):
                raise SystemExit(f"{' '.join(words)} ended before it printed {text!r}:\n{seen.decode()[-2000:]}")
            seen += more
        seconds = time.perf_counter() - started
        process.kill()
        process.wait()
        return seconds

    def open_studio(self, runs: Path, cache: str = "cache") -> float:
        """Start the studio, wait until its page comes, stop it, and return the seconds until then."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started = time.perf_counter()
        process = self.start("studio", "--port", str(port), "--runs", str(runs), cache=cache, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                    answer.read()
                seconds = time.perf_counter() - started
                break
            except OSError:
                time.sleep(0.05)
        else:
            raise SystemExit("the studio ended")
        process.terminate()
        process.wait()
        return seconds

    def prepare(self) -> Path:
        """Return an edit, made anew in an empty folder."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.run("erase", "--concept", "neon", "--method", "uce", "--out", str(self.work / "edit"))
        return self.work / "edit"

    def start_erase(self) -> float:
        out = self.work / "new"
        shutil.rmtree(out, ignore_errors=True)
        return self.run_until("it will take", "erase", "--concept", "neon", "--method", "esd", "--out", str(out))

    def start_audit(self) -> float:
        out = self.work / "audit"
        shutil.rmtree(out, ignore_errors=True)
        return self.run_until("generating base", "audit", str(self.work / "edit"), "--tier", "smoke", "--out", str(out))

    def export(self) -> None:
        out = self.work / "export"
        shutil.rmtree(out, ignore_errors=True)
        self.run("export", str(self.work / "edit"), "--format", "folder", "--out", str(out))

    def open_first_studio(self) -> float:
        for name in ("first", "empty"):
            shutil.rmtree(self.work / name, ignore_errors=True)
        return self.open_studio(self.work / "first", cache="empty")

    def starts(self) -> dict[str, Callable[[], object]]:
        """Return everything whose start is measured, by what it is called."""
        return {
            "`erasure --help`, to its end": lambda: self.run("--help"),
            "`erasure methods`, to its end": lambda: self.run("methods"),
            "`erasure erase`, until its work begins": self.start_erase,
            "`erasure audit`, until its work begins": self.start_audit,
            "`erasure export`, to its end": self.export,
            "`erasure studio`, until the page answers; first start": self.open_first_studio,
            "the same; later starts": lambda: self.open_studio(self.work / "first", cache="empty"),
        }


def report_start(args: argparse.Namespace) -> None:
    """From the start of a process to its first work, to its end where it computes nothing, or to the studio's page."""
    programs = {"now": Program(ROOT, args.work / "now")}
    if args.before:
        programs |= {"before": Program(args.before.absolute(), args.work / "before")}
    for program in programs.values():
        program.prepare()
    seconds = run_in_turn({(name, when): way for when, program in programs.items() for name, way in program.starts().items()})
    head = ["| command, on pocket | seconds, median of 5 (range) |", "|---|---|"]
    if args.before:
        version = subprocess.run(
            ["git", "-C", str(args.before), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        head = [f"| command, on pocket | seconds, median of 5 (range) | at commit {version.stdout.strip()} |", "|---|---|---|"]
    rows = [f"| {name} | {' | '.join(spread(seconds[name, when]) for when in programs)} |" for name in programs["now"].starts()]
    fill_section(page(args.docs), "start", [*head, *rows])


def report_audits(args: argparse.Namespace) -> None:
    """A smoke audit of a UCE edit on pocket: with two workers, and where the base's images are in the cache."""
    program = Program(ROOT, args.work / "audits")
    edit = program.prepare()

    def audit(forget_base: bool) -> None:
        shutil.rmtree(program.work / "smoke", ignore_errors=True)
        if forget_base:
            shutil.rmtree(program.work / "cache", ignore_errors=True)
        program.run("audit", str(edit), "--tier", "smoke", "--workers", "2", "--out", str(program.work / "smoke"))

    def audit_another() -> None:
        for image in erased_images(program.work):
            image.unlink()
        audit(forget_base=False)

    ways: dict[str, Callable[[], object]] = {
        "`--workers 2`": lambda: audit(forget_base=True),
        "the same, the base's images in the cache": audit_another,
    }
    seconds = run_in_turn(ways, warm_up=False)
    rows = [f"| {name} | {spread(values)} |" for name, values in seconds.items()]
    fill_section(page(args.docs), "audits", ["| smoke audit of neon | seconds, median of 5 (range) |", "|---|---|", *rows])


def erased_images(work: Path) -> list[Path]:
    """Return the images in the cache that only the erased model of the last audit has."""
    base, erased = ({path.read_bytes() for path in (work / "smoke" / "images" / name).glob("*.png")} for name in ("base", "erased"))
    return [path for path in (work / "cache" / "samples").glob("*/*.png") if path.read_bytes() in erased - base]


PARTS = {"start": report_start, "audits": report_audits}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/commands"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--before", type=Path, help="an older checkout, whose starts are measured too")
    parser.add_argument("--part", choices=tuple(PARTS), action="append", help="run this part only; may be repeated")
    args = parser.parse_args()
    args.work = args.work.absolute()
    for part in args.part or PARTS:
        PARTS[part](args)
        print(part, "is done", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
