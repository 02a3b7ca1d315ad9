"""`erasure demo`: erase, audit and report on the shipped model, in a few minutes on a laptop."""

import sys
from dataclasses import dataclass
from pathlib import Path

from app.commands.audit import format_headline
from app.confirmation import confirm
from app.parsing import parse_options
from erasure.concept import parse_concepts
from erasure.storage.run import check_output_folder

USAGE_ERROR = 1


@dataclass(frozen=True, kw_only=True)
class Options:
    """Erase a style from the pocket model with ESD, audit it, and write a report with before/after images."""

    concept: str = "watercolor"  # a style that the pocket model knows
    out: Path = Path("runs/demo")  # the edit goes here, the audit into a folder inside it
    yes: bool = False  # do not ask for confirmation when the concept looks odd; without a terminal nothing is asked
    fresh: bool = False  # start over


def main(argv: list[str]) -> int:
    options = parse_options(Options, argv, "demo")
    check_output_folder(options.out)
    parse_concepts(options.concept, kind="style")  # rejects an empty name before torch is imported
    from erasure.concept_hints import find_hints
    from erasure.erasing import erase
    from erasure.loading.loader import load_model
    from erasure.methods.esd import ESD
    from erasure.recipes import configure_method
    from erasure.storage.run import read_json
    from eval.auditing.plan import AuditPlan
    from eval.auditing.run import audit_plan
    from eval.report.html import write_report
    from eval.suites.suite import load_suite

    model, suite = load_model("pocket"), load_suite("pocket")
    requested = parse_concepts(options.concept, kind="style")
    for concept in requested:
        suite.find_concept(concept.name)  # fails now, not after the erasure
    if not confirm(find_hints(model, requested), options.yes):
        return USAGE_ERROR
    method, concepts, _ = configure_method(ESD, requested, model.family, {})
    print(f"1/2 erasing the style {options.concept!r} from the pocket model with ESD", file=sys.stderr)
    edit = erase(model, concepts, method, out=options.out, fresh=options.fresh)
    print("2/2 generating the audit's images with the base and the erased model", file=sys.stderr)
    out = options.out / "audit-pocket-smoke"
    result = audit_plan(model, [edit], AuditPlan.for_edits([edit], suite, "smoke")[0], out, fresh=options.fresh)
    print(write_report(out, result, suite.gates))
    print(format_headline(result))
    print(f"{read_json(out / 'report.json')['verdict']['state']}: a smoke audit is a first look; use --tier standard for a verdict")
    return 0
