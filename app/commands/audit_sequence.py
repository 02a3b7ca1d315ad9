"""`erasure audit sequence A B ...`: requests one after another, with every earlier one looked at again."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from app.parsing import existing, parse
from erasure.config.choices import Attention, Precision
from erasure.errors import UserError
from erasure.storage.run import usable
from eval.report.numbers import percent, points, points_span

REBOUND, INCOMPLETE = 3, 2


@dataclass(frozen=True, kw_only=True)
class Options:
    """Apply edits one after another and, after each, count how much of every concept so far is still gone and what is left of the rest.

    Exit code 3: a rebound was shown. 2: something that was asked for is missing. 0: neither, which does not show that there is none.
    """

    edits: Annotated[tuple[Path, ...], tyro.conf.Positional]  # what `erasure erase` made, in the order of the requests
    suite: str = "pocket"  # name of a suite in prompts/, or a YAML file
    tier: Literal["smoke", "standard", "full"] = "standard"  # how many pictures a cell
    model: str = ""  # base model; default: the one the first edit was made on
    out: Path | None = None  # an audit after every request goes to its folders 1, 2, ...; default <edits>/sequence-<suite>-<tier>
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    dtype: Precision = "auto"  # what to compute in
    attention: Attention = "auto"  # attention kernel of the UNet
    fresh: bool = False  # throw away what audits wrote in the folders, and start over; other files stay


def main(argv: list[str]) -> int:
    options = parse(Options, argv, "audit sequence")
    if not options.edits:
        raise UserError("audit sequence needs folders of edits: erasure audit sequence runs/FIRST runs/SECOND.")
    if options.out:
        usable(options.out)
    existing(options.edits)
    from erasure.edits import Edit
    from erasure.loading.loader import load_model
    from eval.report import html, sequence_page
    from eval.scoring.recount import finished
    from eval.sequence import incomplete, possible, sequence
    from eval.suites.suite import load_suite

    suite, edits = load_suite(options.suite), [Edit.load(path) for path in options.edits]
    source = options.model or edits[0].info.base["source"]
    model = load_model(source, device=options.device, precision=options.dtype, attention=options.attention)
    out = options.out or default_folder(options.edits, suite.name, options.tier)
    found = sequence(model, edits, suite, options.tier, out, fresh=options.fresh)
    for folder in [out / name for request in found["requests"] for name in request["audits"]]:
        html.write(folder, finished(folder), suite.gates)
    for pair in finished(out / found["requests"][-1]["audits"][0])["overlap"]:
        print(f"{pair['first']} and {pair['second']} share {pair['shared']} tensors. {pair['warning']}", file=sys.stderr)
    print(sequence_page.write(out, found))
    print("\n".join([*table(found), *possible(found)]))
    gaps = incomplete(found)
    for gap in gaps:
        print(f"  INCOMPLETE {gap}", file=sys.stderr)
    return REBOUND if found["rebounds"] else INCOMPLETE if gaps else 0


def default_folder(edits: Sequence[Path], suite: str, tier: str) -> Path:
    """Beside the first edit, in a folder of the whole stack's name."""
    return edits[0].parent / "+".join(path.name for path in edits) / f"sequence-{suite}-{tier}"


def table(found: Mapping[str, Any]) -> list[str]:
    """Every target's UA and what is kept, after every request, as a Markdown table; and the rebounds."""
    numbers = [request["number"] for request in found["requests"]]
    lines = [f"| | base | {' | '.join(f'after {number}' for number in numbers)} |", "|---" * (len(numbers) + 2) + "|"]
    rows = [(f"UA {target['label']}, erased by {target['request']}", target) for target in found["targets"]]
    rows += [(f"{line['rate']}, {line['axis']}s that no request erases", line) for line in found["kept"]]
    for name, row in rows:
        after = {at["request"]: said(at) for at in row["after"]}
        base = f"{percent(row['base']['estimate'])} %" if row["base"] else "not read"
        lines.append(f"| {name} | {base} | {' | '.join(after.get(number, '') for number in numbers)} |")
    return [*lines, *(f"REBOUND: {r['label']} after request {r['request']}" for r in found["rebounds"])]


def said(at: Mapping[str, Any]) -> str:
    share, change = f"{percent(at['estimate'])} % ({at['k']}/{at['n']})", at["change"]
    return f"{share}, {points(change['estimate'])} ({points_span(change['low'], change['high'])})" if change else share
