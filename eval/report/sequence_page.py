"""sequence.html: what a sequence of requests left gone and kept, as one self-contained file; no script in it and no request leaves it."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from erasure.storage.run import write_bytes
from eval.report import drawing
from eval.report.html import DTYPES, FILTERS, HERE, PLURAL, interval
from eval.sequence import incomplete
from eval.suites.suite import suite_names

WORDS = {"IRA": "{plural} that no request erases, still read as asked", "CRA": "{plural}, which no request erases, still read as asked"}


def write(out: Path, found: Mapping[str, Any]) -> Path:
    """Render sequence.html into the folder of a sequence.

    Args:
        found: of eval.sequence.sequence.
    """
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters.update(FILTERS)
    targets = lettered(found["targets"])
    kept = [{**line, "words": WORDS[line["rate"]].format(plural=PLURAL[line["axis"]])} for line in lettered(found["kept"])]
    gone = [drawing.Line(letter=t["letter"], points=[(at["request"], interval(at)) for at in t["after"]]) for t in targets if t["after"]]
    left = [
        drawing.Line(letter=line["letter"], points=[(0, interval(line["base"])), *((at["request"], interval(at)) for at in line["after"])])
        for line in kept
    ]
    page = environment.get_template("sequence.html.j2").render(
        blur=False,  # there are no pictures in it
        found=found,
        targets=targets,
        kept=kept,
        gone_chart=drawing.curves(gone, "requests so far", "erased: UA, %", bands=True) if gone else None,
        kept_chart=drawing.curves(left, "requests so far, 0: the base", "still read as asked, %", bands=True) if left else None,
        gaps=incomplete(found),
        again=again(out, found),
    )
    path = out / "sequence.html"
    write_bytes(path, page.encode())
    return path


def lettered(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Lines of a chart with how they look, and what was counted by request."""
    return [
        {**line, "letter": drawing.letter(i), "key": drawing.key(i, False), "at": {at["request"]: at for at in line["after"]}}
        for i, line in enumerate(lines)
    ]


def again(out: Path, found: Mapping[str, Any]) -> str:
    """The command that makes this sequence; capitals stand for files that it does not remember."""
    name, compute = found["suite"]["name"], found["base"]["compute"]
    edits = [f"EDIT-{request['number']}" for request in found["requests"]]
    suite = found["suite"].get("file") or (name if name in suite_names() else "SUITE.yaml")
    parts = ["erasure", "audit", "sequence", *edits, "--suite", suite, "--tier", found["suite"]["tier"]]
    parts += ["--dtype", DTYPES[compute]] if compute in DTYPES else []
    return " ".join(shlex.quote(part) for part in [*parts, "--out", str(out)])
