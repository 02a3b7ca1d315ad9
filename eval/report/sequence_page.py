"""sequence.html: what a sequence of requests erased and retained, as one self-contained file without scripts or network requests."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from erasure.storage.run import write_bytes
from eval.report import charts
from eval.report.html import AXIS_PLURALS, DTYPE_FLAGS, FILTERS, TEMPLATES, interval_of
from eval.sequence import missing_parts
from eval.suites.suite import suite_names

RETAINED_DESCRIPTIONS = {
    "IRA": "{plural} that no request erases, still labeled as prompted",
    "CRA": "{plural}, none of which a request erases, still labeled as prompted",
}


def write_sequence_page(out: Path, sequence: Mapping[str, Any]) -> Path:
    """Render sequence.html into the folder of a sequence.

    Args:
        out: the folder of the sequence.
        sequence: of eval.sequence.audit_sequence.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters.update(FILTERS)
    targets = with_letters(sequence["targets"])
    retained = [
        {**line, "description": RETAINED_DESCRIPTIONS[line["rate"]].format(plural=AXIS_PLURALS[line["axis"]])}
        for line in with_letters(sequence["retained"])
    ]
    erased_lines = [
        charts.Line(letter=target["letter"], points=[(point["request"], interval_of(point)) for point in target["after"]])
        for target in targets
        if target["after"]
    ]
    retained_lines = [
        charts.Line(
            letter=line["letter"],
            points=[(0, interval_of(line["base"])), *((point["request"], interval_of(point)) for point in line["after"])],
        )
        for line in retained
    ]
    page = environment.get_template("sequence.html.j2").render(
        blur=False,  # the page has no images
        sequence=sequence,
        targets=targets,
        retained=retained,
        erased_chart=charts.line_chart(erased_lines, "requests so far", "erased: UA, %", bands=True) if erased_lines else None,
        retained_chart=charts.line_chart(retained_lines, "requests so far, 0: the base", "labeled as prompted, %", bands=True)
        if retained_lines
        else None,
        not_measured=missing_parts(sequence),
        reproduce_command=sequence_command(out, sequence),
    )
    path = out / "sequence.html"
    write_bytes(path, page.encode())
    return path


def with_letters(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Add to lines of a chart their letters and legend keys, and their points by request."""
    return [
        {
            **line,
            "letter": charts.line_letter(i),
            "key": charts.legend_key(i, False),
            "point_by_request": {point["request"]: point for point in line["after"]},
        }
        for i, line in enumerate(lines)
    ]


def sequence_command(out: Path, sequence: Mapping[str, Any]) -> str:
    """Return the command that makes this sequence; words in capitals stand for files that the record does not name."""
    suite_name, compute = sequence["suite"]["name"], sequence["base"]["compute"]
    edits = [f"EDIT-{request['number']}" for request in sequence["requests"]]
    suite = sequence["suite"].get("file") or (suite_name if suite_name in suite_names() else "SUITE.yaml")
    parts = ["erasure", "audit", "sequence", *edits, "--suite", suite, "--tier", sequence["suite"]["tier"]]
    parts += ["--dtype", DTYPE_FLAGS[compute]] if compute in DTYPE_FLAGS else []
    return " ".join(shlex.quote(part) for part in [*parts, "--out", str(out)])
