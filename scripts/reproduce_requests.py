"""Reproduce docs/results/many-concepts.md: several concepts in one erasure, and five erasures one after another.

    python scripts/reproduce_requests.py --work runs/requests                   # both parts: some two hours of one core
    python scripts/reproduce_requests.py --work runs/requests --part together

None of these concepts was used for tuning. Run folders under --work are resumed.
"""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fill_docs import fill_table_rows
from reproduce_methods import HELD_OUT, RATES

from erasure.concept import ConceptKind, parse_concepts
from erasure.config.registry import load_class
from erasure.edits import Edit
from erasure.erasing import erase
from erasure.families.base import DiffusionModel
from erasure.loading.loader import load_model
from erasure.methods.base import Method, exclude_concepts
from erasure.pocket import prompts as pocket_prompts
from erasure.recipes import configure_method
from eval.auditing.plan import AuditPlan
from eval.auditing.run import audit_plan
from eval.records.models import BASE, ERASED
from eval.records.rates import CountedRate, RateName
from eval.records.sequence import RequestRate
from eval.sequence import audit_sequence
from eval.suites.suite import load_suite

TOGETHER: dict[str, tuple[ConceptKind, tuple[str, ...]]] = {
    "four styles": ("style", ("sketch", "watercolor", "engraving", "stained glass")),
    "five objects": ("object", ("fish", "flower", "house", "moon", "tree")),
}
METHODS = ("uce", "fia", "esd")
PROTECT, DRIFT = 0.1, 1e-4


@dataclass(frozen=True)
class Variant:
    """A way to answer requests: a method and the fields that differ from its recipe."""

    method: str
    fields: dict[str, Any] = field(default_factory=dict)
    protects: bool = False  # give the retain prompts as those to protect


VARIANTS = {
    "esd": Variant("esd"),
    "esd, protect": Variant("esd", {"protect": PROTECT}, protects=True),
    "esd, drift": Variant("esd", {"drift": DRIFT}),
    "uce": Variant("uce"),
    "uce, project": Variant("uce", {"project": PROTECT}),
}


def page(docs: Path) -> Path:
    return docs / "results" / "many-concepts.md"


def make_edit(model: DiffusionModel, names: str, kind: ConceptKind, variant: Variant, out: Path, after: list[Edit]) -> Edit:
    """Return the edit of a request, made on those before it."""
    cls, requested = load_class("erasure.methods", variant.method, Method), parse_concepts(names, kind=kind)
    prompts = {"protect_prompts": exclude_concepts(pocket_prompts.RETAIN, requested)} if variant.protects else {}
    method, concepts, _ = configure_method(cls, requested, model.family, variant.fields | prompts)
    return erase(model, concepts, method, out=out, after=after)


def report_together(model: DiffusionModel, work: Path, docs: Path, chosen: list[str]) -> None:
    """Erase several concepts at once, and audit them together."""
    head = ["| erased at once | UA | IRA | CRA | IPA |", "|---|---|---|---|---|"]
    for method in (name for name in METHODS if name in chosen):
        for title, (kind, names) in TOGETHER.items():
            folder = work / "together" / f"{method}-{kind}"
            edit = make_edit(model, "; ".join(names), kind, Variant(method), folder / "edit", [])
            (plan,) = AuditPlan.for_edits([edit], load_suite("pocket"), "smoke")
            models = audit_plan(model, [edit], plan, folder / "audit").models
            rates = models[ERASED].rates
            cells = [format_rate(rates[name], models[BASE].rates[name]) for name in (*RATES, RateName.IPA) if name in rates]
            fill_table_rows(page(docs), "together", head, [f"| {title}, {method} | {' | '.join(cells)} |"])


def format_rate(rate: CountedRate, base: CountedRate) -> str:
    return f"{100 * rate.estimate:.1f} ({100 * rate.low:.0f} to {100 * rate.high:.0f}; {rate.k}/{rate.n}; base {100 * base.estimate:.1f})"


def report_sequences(model: DiffusionModel, work: Path, docs: Path, chosen: list[str]) -> None:
    """Erase five concepts one after another, and audit after every request."""
    targets_head = ["| requests by | concept | UA after its own request | after the fifth | change in points |", "|---|---|---|---|---|"]
    retained_head = [
        "| requests by | rate | base | after the first | after the fifth | change since the base |",
        "|---|---|---|---|---|---|",
    ]
    for title, variant in VARIANTS.items():
        if variant.method not in chosen:
            continue
        folder, edits = work / "sequences" / title.replace(", ", "-"), list[Edit]()
        for number, (name, kind) in enumerate(HELD_OUT.items(), 1):
            edits.append(make_edit(model, name, kind, variant, folder / f"{number}-{name.replace(' ', '-')}", edits))
        result = audit_sequence(model, edits, load_suite("pocket"), "smoke", folder / "audits")
        targets = [
            f"| {title} | {t.label} | {plain(t.after[0])} | {plain(t.after[-1])} | {change_cell(t.after[-1])} |" for t in result.targets
        ]
        retained = [
            f"| {title} | {r.rate}, {r.axis}s | {plain(r.base)} | {plain(r.after[0])} | {plain(r.after[-1])} | {change_cell(r.after[-1])} |"
            for r in result.retained
        ]
        fill_table_rows(page(docs), "targets", targets_head, targets)
        fill_table_rows(page(docs), "retained", retained_head, retained)


def plain(rate: CountedRate) -> str:
    return f"{100 * rate.estimate:.1f} ({100 * rate.low:.0f} to {100 * rate.high:.0f}; {rate.k}/{rate.n})"


def change_cell(rate: RequestRate) -> str:
    change = rate.change
    return f"{100 * change.estimate:+.1f} ({100 * change.low:+.1f} to {100 * change.high:+.1f})" if change else "its own request"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/requests"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--part", choices=("together", "sequences"), action="append", help="run this part only; may be repeated")
    args = parser.parse_args()
    model = load_model("pocket")
    for part in args.part or ("together", "sequences"):
        {"together": report_together, "sequences": report_sequences}[part](model, args.work, args.docs, args.methods)


if __name__ == "__main__":
    main()
