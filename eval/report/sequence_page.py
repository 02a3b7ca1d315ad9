"""sequence.html: what a sequence of requests erased and retained, as one self-contained file without scripts or network requests."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from erasure.storage.run import write_bytes
from eval.records.sequence import RequestRate, RetainedRates, SequenceResult, TargetRates
from eval.report import charts
from eval.report.commands import DTYPE_FLAGS
from eval.report.filters import FILTERS
from eval.report.html import AXIS_PLURALS, TEMPLATES
from eval.sequence import missing_parts
from eval.suites.suite import suite_names

RETAINED_DESCRIPTIONS = {
    "IRA": "{plural} that no request erases, still labeled as prompted",
    "CRA": "{plural}, none of which a request erases, still labeled as prompted",
}
Rates = TypeVar("Rates", TargetRates, RetainedRates)


@dataclass(frozen=True)
class RequestLine(Generic[Rates]):
    """A line of a chart over requests, with the letter and the key by which its legend and its table name it."""

    of: Rates
    letter: str
    key: Markup

    @property
    def after_request(self) -> Mapping[int, RequestRate]:
        """The rate after each request."""
        return {rate.request: rate for rate in self.of.after}


def write_sequence_page(out: Path, sequence: SequenceResult) -> Path:
    """Render sequence.html into the folder of a sequence."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters.update(FILTERS)
    targets, retained = with_letters(sequence.targets), with_letters(sequence.retained)
    erased_lines = [
        charts.Line(letter=line.letter, points=[(rate.request, rate.interval) for rate in line.of.after])
        for line in targets
        if line.of.after
    ]
    retained_lines = [
        charts.Line(letter=line.letter, points=[(0, line.of.base.interval), *((rate.request, rate.interval) for rate in line.of.after)])
        for line in retained
    ]
    page = environment.get_template("sequence.html.j2").render(
        blur=False,  # the page has no images
        sequence=sequence,
        targets=targets,
        retained=retained,
        describe_retained=describe_retained,
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


def with_letters(lines: Sequence[Rates]) -> list[RequestLine[Rates]]:
    """Give the lines of a chart their letters and legend keys."""
    return [RequestLine(line, charts.line_letter(i), charts.legend_key(i, False)) for i, line in enumerate(lines)]


def describe_retained(line: RetainedRates) -> str:
    """Say what a rate of retained images counts."""
    return RETAINED_DESCRIPTIONS[line.rate].format(plural=AXIS_PLURALS[line.axis])


def sequence_command(out: Path, sequence: SequenceResult) -> str:
    """Return the command that makes this sequence; words in capitals stand for files that the record does not name."""
    suite, compute = sequence.suite, sequence.base.compute
    edits = [f"EDIT-{request.number}" for request in sequence.requests]
    suite_argument = suite.file or (suite.name if suite.name in suite_names() else "SUITE.yaml")
    parts = ["erasure", "audit", "sequence", *edits, "--suite", suite_argument, "--tier", suite.tier]
    parts += ["--dtype", DTYPE_FLAGS[compute]] if compute in DTYPE_FLAGS else []
    return " ".join(shlex.quote(part) for part in [*parts, "--out", str(out)])
