"""Reproduce docs/results/pocket-flow.md: the shipped flow transformer, the methods and attacks on it, and where it keeps a concept.

    python scripts/reproduce_flow.py --work runs/flow                        # every part: some six hours of one core
    python scripts/reproduce_flow.py --work runs/flow --part regions

Recipes were tuned on the development concepts (neon, boat) with suite pocket-dev. The tables of methods and words are of concepts that
tuning never saw, with suite pocket; those of attacks, regions and loss are of the development concepts. Run folders under --work are
resumed.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from fill_docs import fill_section, fill_table_rows, split_at_marks
from measure_pocket import all_cells, cell_lines, generate, judge_hits
from reproduce_audit import attack_cells, audit_edit_folder
from reproduce_methods import (
    DETAILS_HEAD,
    DEVELOPMENT,
    HELD_OUT,
    MEANS_HEAD,
    RATES,
    UNSEEN,
    audit_at_strength,
    detail_row,
    erase_in_subprocess,
    mean_row,
)
from torchvision.utils import save_image

from erasure.concept import ConceptKind, parse_concepts
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
from eval.records.attacks import FineTuningAttack
from eval.records.audit_result import AuditResult
from eval.records.models import ERASED
from eval.records.rates import RateName
from eval.stats.intervals import wilson
from eval.suites.suite import load_suite

SOURCE = "pocket-flow"
METHODS = ("uce", "esd-first", "salun", "esd", "fia", "negative_prompt", "sld", "advunlearn")  # every method that serves this family
STEPS = 150  # of ESD's first recipe, with which regions and losses are compared as well
FIRST_RECIPE = {"esd-first": ["--region", "xattn", "--steps", str(STEPS)]}
# ESD's recipe was revised after its results on the held-out concepts; it is measured on five others, chosen before it ran on them
CONCEPTS = {"esd": UNSEEN["fia"]}
ATTACKED = ("uce", "esd-first", "esd", "advunlearn")
WORDINGS = (RateName.UA, RateName.UA_NAMED, RateName.UA_DESCRIBED, RateName.UA_PERTURBED)
REGIONS = ("xattn", "xattn-kv", "text-proj", "selfattn", "ff-out", "noxattn", "full")
LEARNING_RATES = (1e-4, 3e-4, 1e-3)
SEEDS = (0, 1, 2)


@dataclass(frozen=True, kw_only=True)
class NoiseSpaceESD(ESD):
    """ESD whose loss compares noise, eps = x_t + (1 - s) v: the loss of velocities times (1 - s)^2, at the same mean weight."""

    def step(self, context: TrainingContext) -> Iterator[OptimizerStep]:
        rows = context.sample_rows("erase", self.batch)
        target = rows.pred_neutral - self.negative_guidance * (rows.pred_cond - rows.pred_neutral)
        weight = (1 - rows.t / context.model.num_timesteps).square().reshape(-1, 1, 1, 1)
        difference = context.predict(rows.x_t, rows.t, rows.prompts) - target
        yield OptimizerStep("model", (3 * weight * difference.square()).mean())  # the mean of (1 - s)^2 over s is 1/3


def page(docs: Path) -> Path:
    return docs / "results" / "pocket-flow.md"


def report_model(model: DiffusionModel, work: Path, docs: Path, methods: Sequence[str]) -> None:
    targets = all_cells(5)
    images = generate(model, targets)
    parameters = sum(p.numel() for p in model.denoiser.parameters())
    lines = [f"The transformer has {parameters:,} parameters.", "", *cell_lines(judge_hits(images, targets), targets, 5)]
    lines = [line.replace("DDIM steps", "Euler steps") for line in lines]
    fill_section(page(docs), "model", lines)
    grid = images[: len(STYLES) * len(OBJECTS)].repeat_interleave(2, -1).repeat_interleave(2, -2)
    save_image(grid, docs / "images" / "pocket-flow.png", nrow=len(OBJECTS))


def make_edit(method: str, name: str, kind: ConceptKind, work: Path) -> Path:
    """Return the run folder of an erasure with a method's recipe, or with the first one that it had."""
    flags = FIRST_RECIPE.get(method, [])
    return erase_in_subprocess(method.removesuffix("-first"), name, kind, work / "methods", SOURCE, flags, method)


def report_methods(model: DiffusionModel, work: Path, docs: Path, methods: Sequence[str]) -> None:
    """Audit every method on concepts that tuning never saw, and put its means beside pocket's."""
    for method in methods:
        results: dict[str, AuditResult] = {}
        for name, kind in CONCEPTS.get(method, HELD_OUT).items():
            folder = make_edit(method, name, kind, work)
            results[name] = audit_at_strength(model, folder, "pocket", "standard")
        fill_table_rows(page(docs), "means", MEANS_HEAD, [mean_row(method, results), pocket_row(docs, method)])
        fill_table_rows(page(docs), "details", DETAILS_HEAD, [detail_row(method, name, r) for name, r in results.items()])
        fill_table_rows(page(docs), "words", WORD_HEAD, [word_row(method, name, r) for name, r in results.items()])


WORD_HEAD = ["| method | concept | its name | synonyms | descriptions | misspellings |", "|---|---|---|---|---|---|"]


def word_row(method: str, name: str, result: AuditResult) -> str:
    """Return how often the concept is not shown, by the wording of the prompt."""
    rates = result.models[ERASED].rates
    cells = [f"{100 * r.estimate:.1f} ({100 * r.low:.0f} to {100 * r.high:.0f})" for r in (rates[w] for w in WORDINGS)]
    return f"| {method} | {name} | {' | '.join(cells)} |"


def pocket_row(docs: Path, method: str) -> str:
    """Return a method's row of docs/results/methods.md, labeled as pocket's; FIA's is of the same concepts."""
    table = split_at_marks(docs / "results" / "methods.md", "means")[1]
    method = method.removesuffix("-first")
    label = "fia, seen" if method == "fia" else method
    row = next(line for line in table.splitlines() if line.startswith(f"| {label} |"))
    return row.replace(f"| {label} |", f"| {method}, on pocket |", 1)


def report_attacks(model: DiffusionModel, work: Path, docs: Path, methods: Sequence[str]) -> None:
    """Attack erasures of neon as scripts/reproduce_audit.py attacks pocket's."""
    head = [
        "| edit of neon | attack | broken, % of prompts | minus random prefix, points | token ids alone "
        "| success again, fresh noise, % | no attack, % |",
        "|---|---|---|---|---|---|---|",
    ]
    relearning_head = ["| edit of neon | fine-tuning | shown at steps: rate, % | revived after |", "|---|---|---|---|"]
    for method in (name for name in ATTACKED if name in methods):
        folder = make_edit(method, "neon", DEVELOPMENT["neon"], work)
        rows: list[str] = []
        relearning_rows: list[str] = []
        for attack in audit_edit_folder(model, folder, "full").attacks:
            chosen = relearning_rows if isinstance(attack, FineTuningAttack) else rows
            chosen.append(f"| {method} | {attack.name} | {attack_cells(attack)} |")
        fill_table_rows(page(docs), "attacks", head, rows)
        fill_table_rows(page(docs), "tuning", relearning_head, relearning_rows)


def audit_esd(model: DiffusionModel, name: str, fields: dict[str, Any], work: Path, seed: int = 0, cls: type[ESD] = ESD) -> AuditResult:
    """Audit an ESD edit of a development concept with these fields, the others from the recipe."""
    method, concepts, _ = configure_method(cls, parse_concepts(name, kind=DEVELOPMENT[name]), model.family, fields)
    folder = work / name / hash_record({"class": cls.__name__, "seed": seed, **asdict(method)})
    edit = erase(model, concepts, method, out=folder, seed=seed)
    (plan,) = AuditPlan.for_edits([edit], load_suite("pocket-dev"), "smoke")
    return audit_plan(model, [edit], plan, folder / "audit")


def pooled_cells(results: list[AuditResult]) -> str:
    """Return UA, IRA and CRA of all images of several audits, with their intervals."""
    cells = []
    for name in RATES:
        rates = [result.models[ERASED].rates[name] for result in results]
        pooled = wilson(sum(r.k for r in rates), sum(r.n for r in rates))
        cells.append(f"{100 * pooled.estimate:.0f} ({100 * pooled.low:.0f} to {100 * pooled.high:.0f})")
    return " | ".join(cells)


def report_regions(model: DiffusionModel, work: Path, docs: Path, methods: Sequence[str]) -> None:
    """Train each region with the recipe of ESD and several learning rates."""
    rows = []
    for name in DEVELOPMENT:
        for region in REGIONS:
            count = sum(model.parameters()[n].numel() for n in model.parameter_names(region))
            for lr in LEARNING_RATES:
                result = audit_esd(model, name, {"region": region, "lr": lr, "steps": STEPS}, work / "regions")
                rows.append(f"| {name} | {region} | {count:,} | {lr:g} | {pooled_cells([result])} |")
                print(rows[-1], flush=True)
    fill_section(page(docs), "regions", ["| concept | region | weights | lr | UA | IRA | CRA |", "|---|---|---|---|---|---|---|", *rows])


def report_loss(model: DiffusionModel, work: Path, docs: Path, methods: Sequence[str]) -> None:
    """Compare the loss of velocities with that of noise, at the recipe's learning rate and a third of it."""
    rows = []
    for name in DEVELOPMENT:
        for label, cls in (("velocity", ESD), ("noise", NoiseSpaceESD)):
            for lr in LEARNING_RATES[1:]:
                results = [
                    audit_esd(model, name, {"region": "xattn", "lr": lr, "steps": STEPS}, work / "loss", seed, cls) for seed in SEEDS
                ]
                rows.append(f"| {name} | {label} | {lr:g} | {pooled_cells(results)} |")
                print(rows[-1], flush=True)
    fill_section(page(docs), "loss", ["| concept | loss in | lr | UA | IRA | CRA |", "|---|---|---|---|---|---|", *rows])


PARTS = {"model": report_model, "methods": report_methods, "attacks": report_attacks, "regions": report_regions, "loss": report_loss}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/flow"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--part", choices=tuple(PARTS), action="append", help="run this part only; may be repeated")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS, help="of the parts methods and attacks")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(SOURCE)
    for part in args.part or PARTS:
        PARTS[part](model, args.work, args.docs, args.methods)


if __name__ == "__main__":
    main()
