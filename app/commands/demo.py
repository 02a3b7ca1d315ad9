"""`erasure demo`: erase, audit and report on the shipped model, in a few minutes on a laptop."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from app.parsing import Switch
from erasure.concept import parse_concepts

USAGE_ERROR = 1


@dataclass(frozen=True, kw_only=True)
class DemoCommand:
    """Erase a style from the pocket model with ESD, audit it, and write a report with before/after images."""

    words: ClassVar[str] = "demo"

    concept: str = "watercolor"  # a style that the pocket model knows
    out: Path = Path("runs/demo")  # the edit goes here, the audit into a folder inside it
    yes: Switch = False  # do not ask for confirmation when the concept looks odd; without a terminal nothing is asked
    fresh: Switch = False  # start over


def run_demo(command: DemoCommand) -> int:
    """Erase, audit and report.

    Raises:
        UserError: As `erasure.prepare`, or the suite lacks a concept.
    """
    from erasure.storage.run import check_output_folder

    check_output_folder(command.out)
    requested = parse_concepts(command.concept, kind="style")  # rejects an empty name before torch is imported
    import erasure
    from app.commands.audit_report import format_headline
    from app.confirmation import confirm
    from erasure.storage.files import read_json
    from eval.auditing.plan import AuditPlan
    from eval.auditing.run import audit_plan
    from eval.report.html import write_report
    from eval.suites.suite import load_suite

    suite = load_suite("pocket")
    for concept in requested:
        suite.find_concept(concept.name)  # fails now, not after the erasure
    model = erasure.load_model("pocket")
    planned = erasure.prepare(model, requested, method="esd", out=command.out, fresh=command.fresh)
    if not confirm(planned.hints(), command.yes):
        return USAGE_ERROR
    print(f"1/2 erasing the style {command.concept!r} from the pocket model with ESD", file=sys.stderr)
    edit = planned.run()
    print("2/2 generating the audit's images with the base and the erased model", file=sys.stderr)
    out = command.out / "audit-pocket-smoke"
    result = audit_plan(model, [edit], AuditPlan.for_edits([edit], suite, "smoke")[0], out, fresh=command.fresh)
    print(write_report(out, result, suite.gates))
    print(format_headline(result))
    print(f"{read_json(out / 'report.json')['verdict']['state']}: a smoke audit is a first look; use --tier standard for a verdict")
    return 0
