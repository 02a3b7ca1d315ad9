"""Sweep FIA on pocket over candidate fraction (the paper's r2), region, saliency and timesteps: docs/results/fia.md.

python scripts/sweep_fia.py --work runs/fia
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from fill_docs import fill_section
from reproduce_methods import DEVELOPMENT, RATES, percent_of

from erasure.concept import parse_concepts
from erasure.erasing import erase
from erasure.families.base import DiffusionModel
from erasure.loading.loader import load_model
from erasure.methods.fia import FIA
from erasure.pocket import prompts as pocket_prompts
from erasure.recipes import configure_method
from erasure.storage.run import hash_record
from eval.auditing.plan import AuditPlan
from eval.auditing.run import audit_plan
from eval.suites.suite import load_suite

FRACTIONS = (0.02, 0.07, 0.2, 0.4)
REGIONS = ("full", "xattn", "ff-out")
# set in full, because the recipes of styles and of objects differ: equation 1, base prompts without the concept, half a trajectory
FIXED_FIELDS: dict[str, Any] = {"saliency": "full", "base_prompts": (), "trajectory_steps": 20, "record_steps": 10}
OTHER_SETTINGS: tuple[dict[str, Any], ...] = (
    {"region": "full", "candidate_fraction": 0.2, "saliency": "wanda"},  # without the cosine
    {"region": "full", "candidate_fraction": 0.2, "base_prompts": pocket_prompts.BASE},  # against other styles and objects
    {"region": "full", "candidate_fraction": 0.2, "saliency": "wanda", "base_prompts": pocket_prompts.BASE},
    {"region": "full", "candidate_fraction": 0.2, "trajectory_steps": 50},  # the paper's first fifth
    {"region": "full", "candidate_fraction": 0.2, "record_steps": 20},  # the whole trajectory
    {"region": "full", "candidate_fraction": 0.2, "conditional_only": True},
    {"region": "ff-out", "candidate_fraction": 0.02, "trajectory_steps": 50},  # the paper's setting
)
Point = tuple[dict[str, Any], float, float, float, int]  # fields, UA, IRA, CRA, zeroed entries


def measure_point(model: DiffusionModel, name: str, fields: dict[str, Any], work: Path) -> Point:
    method, concepts, _ = configure_method(FIA, parse_concepts(name, kind=DEVELOPMENT[name]), model.family, FIXED_FIELDS | fields)
    folder = work / name / hash_record(asdict(method))
    edit = erase(model, concepts, method, out=folder)
    (plan,) = AuditPlan.for_edits([edit], load_suite("pocket-dev"), "smoke")
    result = audit_plan(model, [edit], plan, folder / "audit")
    return fields, *(percent_of(result, rate) for rate in RATES), edit.info.notes["zeroed"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/fia"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    args = parser.parse_args()
    model = load_model("pocket")
    settings = [{"region": region, "candidate_fraction": fraction} for region in REGIONS for fraction in FRACTIONS] + list(OTHER_SETTINGS)
    lines = ["| concept | fields | UA | IRA | CRA | weights zeroed |", "|---|---|---|---|---|---|"]
    figure, axes = plt.subplots(1, len(DEVELOPMENT), figsize=(11, 4.6), sharey=True)
    for axis, name in zip(axes, DEVELOPMENT, strict=True):
        points = [measure_point(model, name, fields, args.work) for fields in settings]
        for fields, ua, ira, cra, zeroed in points:
            fields_text = ", ".join(f"{k} {'others' if v == pocket_prompts.BASE else v}" for k, v in fields.items())
            lines.append(f"| {name} | {fields_text} | {ua:.1f} | {ira:.1f} | {cra:.1f} | {zeroed:,} |")
        for i, region in enumerate(REGIONS):
            region_points = [p for p in points if p[0].keys() == {"region", "candidate_fraction"} and p[0]["region"] == region]
            axis.plot(FRACTIONS, [p[1] for p in region_points], "o-", color=f"C{i}", label=f"{region}: UA")
            axis.plot(FRACTIONS, [(p[2] + p[3]) / 2 for p in region_points], "s--", color=f"C{i}", label=f"{region}: retained")
        axis.set(title=f"erasing {name}", xlabel="candidate fraction (r2)", xscale="log", ylim=(-3, 103))
        axis.set_xticks(FRACTIONS, [f"{fraction:g}" for fraction in FRACTIONS])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("percent")
    axes[-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(args.docs / "images" / "fia-curve.png", dpi=110)
    fill_section(args.docs / "results" / "fia.md", "sweep", lines)


if __name__ == "__main__":
    main()
