"""`erasure audit sequence A B ...`: apply edits one after another, and measure all earlier targets again after each."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import tyro

from app.model_options import load_with_options
from app.parsing import ModelSource, Switch, check_edits_exist
from erasure.config.choices import Attention, Offload, Precision, VaeMode
from erasure.errors import UserError
from eval.report.numbers import format_percent, format_points, format_points_span

if TYPE_CHECKING:
    from eval.records.sequence import RequestRate, SequenceResult

REBOUND, INCOMPLETE = 3, 2


@dataclass(frozen=True, kw_only=True)
class AuditSequenceCommand:
    """Apply edits one after another and, after each, measure whether every concept so far is still erased and the rest retained.

    Exit code 3: a rebound was shown. 2: part of the result is missing. 0: neither; a rebound too small to see is still possible.
    """

    words: ClassVar[str] = "audit sequence"

    edits: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()  # edits made by `erasure erase`, in the order of the requests
    suite: str = "pocket"  # name of a suite in prompts/, or a YAML file
    tier: Literal["smoke", "standard", "full"] = "standard"  # images per cell
    model: ModelSource = ""  # base model; default: the one the first edit was made on
    out: Path | None = None  # an audit after every request goes to its folders 1, 2, ...; default <edits>/sequence-<suite>-<tier>
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    dtype: Precision = "auto"  # compute precision
    attention: Attention = "auto"  # attention kernel of the denoiser
    offload: Offload = "auto"  # on a GPU, what waits in main memory: none, text (text encoders, VAE), or all that does not compute
    vae: VaeMode = "auto"  # images at once from the VAE: whole batch, sliced (one by one), or tiled, which changes large images a little
    resolution: int | None = None  # height and width of the images in pixels; default: the model's own
    images_at_once: int | None = None  # images sampled together; default: by their size, and less where a GPU has too little memory
    fresh: Switch = False  # delete what audits wrote in the folders, and start over; other files stay


def run_sequence(command: AuditSequenceCommand) -> int:
    """Audit the sequence, report and print it. Return the exit code.

    Raises:
        UserError: No edit, one that does not exist, or as `audit_sequence`.
    """
    from erasure.storage.run import check_output_folder

    if not command.edits:
        raise UserError("audit sequence needs folders of edits: erasure audit sequence runs/FIRST runs/SECOND.")
    if command.out:
        check_output_folder(command.out)
    check_edits_exist(command.edits)
    import erasure
    import eval
    from eval.records.result_files import read_result
    from eval.report import html, sequence_page
    from eval.sequence import audit_sequence, missing_parts, possible_rebounds

    suite, edits = eval.load_suite(command.suite), [erasure.Edit.load(path) for path in command.edits]
    source = command.model or edits[0].info.base["source"]
    model = load_with_options(source, command)
    out = command.out or default_folder(command.edits, suite.name, command.tier)
    result = audit_sequence(model, edits, suite, command.tier, out, fresh=command.fresh)
    for folder in [out / name for request in result.requests for name in request.audits]:
        html.write_report(folder, read_result(folder), suite.gates)
    for pair in read_result(out / result.requests[-1].audits[0]).edit_overlaps:
        print(f"{pair.first} and {pair.second} share {pair.shared} tensors. {pair.warning}", file=sys.stderr)
    print(sequence_page.write_sequence_page(out, result))
    print("\n".join([*format_table(result), *possible_rebounds(result)]))
    gaps = missing_parts(result)
    for gap in gaps:
        print(f"  INCOMPLETE {gap}", file=sys.stderr)
    return REBOUND if result.rebounds else INCOMPLETE if gaps else 0


def default_folder(edits: Sequence[Path], suite: str, tier: str) -> Path:
    """Return the default folder: beside the first edit, named after the whole stack."""
    return edits[0].parent / "+".join(path.name for path in edits) / f"sequence-{suite}-{tier}"


def format_table(result: "SequenceResult") -> list[str]:
    """Format UA of every target and the retained rates after every request as a Markdown table, and the rebounds."""
    request_numbers = [request.number for request in result.requests]
    lines = [f"| | base | {' | '.join(f'after {number}' for number in request_numbers)} |", "|---" * (len(request_numbers) + 2) + "|"]
    rows = [(f"UA {target.label}, erased by {target.request}", target.base, target.after) for target in result.targets]
    rows += [(f"{line.rate}, {line.axis}s that no request erases", line.base, line.after) for line in result.retained]
    for name, base, after in rows:
        cells = {rate.request: format_entry(rate) for rate in after}
        base_text = f"{format_percent(base.estimate)}%" if base else "not measured"
        lines.append(f"| {name} | {base_text} | {' | '.join(cells.get(number, '') for number in request_numbers)} |")
    return [*lines, *(f"REBOUND: {rebound.label} after request {rebound.request}" for rebound in result.rebounds)]


def format_entry(entry: "RequestRate") -> str:
    share, change = f"{format_percent(entry.estimate)}% ({entry.k}/{entry.n})", entry.change
    return f"{share}, {format_points(change.estimate)} ({format_points_span(change.low, change.high)})" if change else share
