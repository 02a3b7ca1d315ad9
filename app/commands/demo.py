"""`erasure demo`: erase, audit and report on the shipped model, in a few minutes on a laptop."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from app.parsing import Switch
from erasure.concept import Concept, parse_concepts
from erasure.errors import UserError

if TYPE_CHECKING:
    from eval import Suite

USAGE_ERROR = 1


@dataclass(frozen=True, kw_only=True)
class DemoCommand:
    """Erase a style from a shipped model with ESD, audit it, and write a report with before/after images."""

    words: ClassVar[str] = "demo"

    concept: str = "watercolor"  # a style that the model knows
    model: Literal["pocket", "pocket-flow"] = "pocket"  # the shipped UNet, or the shipped flow transformer
    out: Path | None = None  # the edit goes here, the audit into a folder inside it; default runs/demo, or runs/demo-pocket-flow
    yes: Switch = False  # do not ask for confirmation when the concept looks odd; without a terminal nothing is asked
    fresh: Switch = False  # start over


def run_demo(command: DemoCommand) -> int:
    """Erase, audit and report.

    Raises:
        UserError: As `erasure.prepare`, or the suite lacks a concept.
    """
    from erasure.storage.run import check_output_folder

    out = command.out or Path("runs/demo" if command.model == "pocket" else f"runs/demo-{command.model}")
    check_output_folder(out)
    requested = parse_concepts(command.concept, kind="style")  # rejects an empty name before torch is imported
    import erasure
    import eval
    from app.commands.audit_report import format_headline
    from app.confirmation import confirm
    from eval.records.result_files import read_report_head

    suite = eval.load_suite("pocket")
    check_targets(requested, suite)
    model = erasure.load_model(command.model)
    planned = erasure.prepare(model, requested, method="esd", out=out, fresh=command.fresh)
    if not confirm(planned.hints(), command.yes):
        return USAGE_ERROR
    print(f"1/2 erasing the style {command.concept!r} from {command.model} with ESD", file=sys.stderr)
    edit = planned.run()
    print("2/2 generating the audit's images with the base and the erased model", file=sys.stderr)
    audited = eval.audit(model, edit, suite="pocket", tier="smoke", out=out / "audit-pocket-smoke", fresh=command.fresh)
    (report,) = audited.reports
    print(report)
    print(format_headline(audited.result))
    state = read_report_head(report.parent).verdict.state
    print(f"{state}: a smoke audit is a first look; use --tier standard for a verdict")
    return 0


def check_targets(concepts: Sequence[Concept], suite: "Suite") -> None:
    """Check that the audit has every concept as a target, before the erasure.

    Raises:
        UserError: The suite has no such concept, or shows it without counting it as a style.
    """
    for concept in concepts:
        axis, label = suite.find_concept(concept.name)
        if label in suite.excluded:
            targets = ", ".join(name for name in suite.phrases(axis) if name not in suite.excluded)
            raise UserError(f"{concept.name!r} is no {axis} to erase: suite {suite.name} never counts it. Choose one of {targets}.")
