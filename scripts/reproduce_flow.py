"""Reproduce docs/results/pocket-flow.md: the shipped flow transformer, the methods on it, and which of its weights carry a concept.

    python scripts/reproduce_flow.py --part model --part methods --part regions --part loss --work runs/flow

Recipes were tuned on the development concepts (neon, boat) with suite pocket-dev. The table of the methods is of concepts that tuning never
saw, with suite pocket. Run folders under --work are resumed.
"""

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from fill_docs import fill_section, fill_table_rows, split_at_marks
from measure_pocket import all_cells, cell_lines, generate, judge_hits
from reproduce_methods import DEVELOPMENT, HELD_OUT, RATES, audit_at_strength, detail_row, erase_in_subprocess, mean_row, percent_of
from torchvision.utils import save_image

from erasure.concept import parse_concepts
from erasure.erasing import erase
from erasure.families.base import DiffusionModel
from erasure.loading.loader import load_model
from erasure.methods.base import OptimizerStep, TrainingContext
from erasure.methods.esd import ESD
from erasure.pocket.canvas import OBJECTS, STYLES
from erasure.recipes import configure_method
from erasure.storage.run import hash_record
from eval.auditing.plan import AuditPlan
from eval.auditing.run import audit_plan
from eval.records.audit_result import AuditResult
from eval.records.models import ERASED
from eval.records.rates import RateName
from eval.suites.suite import load_suite

SOURCE = "pocket-flow"
METHODS = ("advunlearn", "esd", "fia", "negative_prompt", "salun", "sld", "uce")
REGIONS = ("xattn", "xattn-kv", "text-proj", "selfattn", "ff-out", "noxattn", "full")
LEARNING_RATES = (3e-4, 1e-3)


@dataclass(frozen=True, kw_only=True)
class NoiseSpaceESD(ESD):
    """ESD whose loss compares noise, eps = x_t + (1 - s) v: that of the velocities times (1 - s)^2, at the mean weight of the schedule."""

    def step(self, context: TrainingContext) -> Iterator[OptimizerStep]:
        rows = context.sample_rows("erase", self.batch)
        target = rows.pred_neutral - self.negative_guidance * (rows.pred_cond - rows.pred_neutral)
        weight = (1 - rows.t / context.model.num_timesteps).square().reshape(-1, 1, 1, 1)
        difference = context.predict(rows.x_t, rows.t, rows.prompts) - target
        yield OptimizerStep("model", (3 * weight * difference.square()).mean())  # the mean of (1 - s)^2 over s is 1/3


def report_model(model: DiffusionModel, work: Path, docs: Path) -> None:
    targets = all_cells(5)
    images = generate(model, targets)
    parameters = sum(p.numel() for p in model.denoiser.parameters())
    lines = [f"The transformer has {parameters:,} parameters.", "", *cell_lines(judge_hits(images, targets), targets, 5)]
    fill_section(docs / "results" / "pocket-flow.md", "model", lines)
    grid = images[: len(STYLES) * len(OBJECTS)].repeat_interleave(2, -1).repeat_interleave(2, -2)
    save_image(grid, docs / "images" / "pocket-flow.png", nrow=len(OBJECTS))


def report_methods(model: DiffusionModel, work: Path, docs: Path) -> None:
    document, head = docs / "results" / "pocket-flow.md", ["| method | UA | IRA | CRA |", "|---|---|---|---|"]
    detail_head = ["| method | concept | UA | IRA | CRA | CLIP, retained (base) | distance, retained |", "|---|---|---|---|---|---|---|"]
    for method in METHODS:
        results: dict[str, AuditResult] = {}
        for name, kind in HELD_OUT.items():
            folder = erase_in_subprocess(method, name, kind, work / "methods", SOURCE)
            results[name] = audit_at_strength(model, folder, "pocket", "standard")
        fill_table_rows(document, "means", head, [mean_row(method, results), f"{pocket_row(docs, method)}"])
        fill_table_rows(document, "details", detail_head, [detail_row(method, name, r) for name, r in results.items()])


def pocket_row(docs: Path, method: str) -> str:
    """Return a method's row of docs/results/methods.md, labeled as pocket's."""
    table = split_at_marks(docs / "results" / "methods.md", "means")[1]
    row = next(line for line in table.splitlines() if line.startswith(f"| {method} |"))
    return row.replace(f"| {method} |", f"| {method}, on pocket |", 1)


def measure_esd(model: DiffusionModel, name: str, fields: dict[str, Any], work: Path, cls: type[ESD] = ESD) -> AuditResult:
    """Audit an ESD edit of a development concept with these fields, the others from the recipe."""
    method, concepts, _ = configure_method(cls, parse_concepts(name, kind=DEVELOPMENT[name]), model.family, fields)
    folder = work / name / hash_record({"class": cls.__name__, **asdict(method)})
    edit = erase(model, concepts, method, out=folder)
    (plan,) = AuditPlan.for_edits([edit], load_suite("pocket-dev"), "smoke")
    return audit_plan(model, [edit], plan, folder / "audit")


def report_regions(model: DiffusionModel, work: Path, docs: Path) -> None:
    """Train each region with the recipe of ESD, at two learning rates."""
    rows = []
    for name in DEVELOPMENT:
        for region in REGIONS:
            count = sum(model.parameters()[n].numel() for n in model.parameter_names(region))
            for lr in LEARNING_RATES:
                result = measure_esd(model, name, {"region": region, "lr": lr}, work / "regions")
                rates = " | ".join(f"{percent_of(result, rate):.0f}" for rate in RATES)
                rows.append(f"| {name} | {region} | {count:,} | {lr:g} | {rates} |")
    head = ["| concept | region | weights | lr | UA | IRA | CRA |", "|---|---|---|---|---|---|---|"]
    fill_section(docs / "results" / "pocket-flow.md", "regions", [*head, *rows])


def report_loss(model: DiffusionModel, work: Path, docs: Path) -> None:
    """Compare losses in velocity and in noise, with three seeds each at the recipe's learning rate and at three times that."""
    rows = []
    for name in DEVELOPMENT:
        for label, cls in (("velocity", ESD), ("noise", NoiseSpaceESD)):
            recipe_lr = configure_method(cls, parse_concepts(name, kind=DEVELOPMENT[name]), model.family, {})[0].lr  # type: ignore[attr-defined]
            for factor in (1, 3):
                result = measure_esd(model, name, {"lr": factor * recipe_lr}, work / "loss", cls)
                rates = " | ".join(f"{percent_of(result, rate):.0f}" for rate in RATES)
                rows.append(f"| {name} | {label} | {factor * recipe_lr:g} | {rates} |")
    fill_section(
        docs / "results" / "pocket-flow.md", "loss", ["| concept | loss in | lr | UA | IRA | CRA |", "|---|---|---|---|---|---|", *rows]
    )


def report_words(model: DiffusionModel, work: Path, docs: Path) -> None:
    """Report by wording how often the closed form and ESD hide held-out concepts: by name, synonym and description."""
    rows = []
    for method in ("esd", "uce"):
        for name, kind in HELD_OUT.items():
            folder = erase_in_subprocess(method, name, kind, work / "methods", SOURCE)
            rates = audit_at_strength(model, folder, "pocket", "standard").models[ERASED].rates
            cells = [f"{100 * rates[r].estimate:.0f} (n {rates[r].n})" if r in rates else "" for r in WORDINGS]
            rows.append(f"| {method} | {name} | {' | '.join(cells)} |")
    head = [f"| method | concept | {' | '.join(WORDINGS)} |", "|---|---" + "|---" * len(WORDINGS) + "|"]
    fill_section(docs / "results" / "pocket-flow.md", "words", [*head, *rows])


WORDINGS = (RateName.UA, RateName.UA_NAMED, RateName.UA_DESCRIBED, RateName.UA_PERTURBED)
PARTS = {"model": report_model, "methods": report_methods, "words": report_words, "regions": report_regions, "loss": report_loss}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/flow"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--part", choices=tuple(PARTS), action="append", help="run this part only; may be repeated")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(SOURCE)
    for part in args.part or PARTS:
        PARTS[part](model, args.work, args.docs)


if __name__ == "__main__":
    main()
