"""Sweep FIA on pocket over r2, layers, saliency and timesteps: docs/fia.md.

python scripts/sweep_fia.py --work runs/fia
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from figures import fill_section
from reproduce_methods import DEVELOPMENT, percent_of

from erasure.concept import parse_concepts
from erasure.erasing import configure_method, erase
from erasure.families.base import DiffusionModel
from erasure.loading.loader import load_model
from erasure.methods.fia import FIA
from erasure.pocket import prompts as pocket
from erasure.storage.run import hash_record
from eval.audit import AuditPlan, audit
from eval.suites.suite import load_suite

SHARES = (0.02, 0.07, 0.2, 0.4)
LAYERS = ("full", "xattn", "ff-out")
# named in full, for the recipes of styles and of things differ: equation 1, base sentences of the same without the concept, half a walk
FIXED_FIELDS: dict[str, Any] = {"saliency": "full", "against": (), "walk_steps": 20, "record_steps": 10}
OTHER_SETTINGS: tuple[dict[str, Any], ...] = (
    {"layers": "full", "r2": 0.2, "saliency": "wanda"},  # without the cosine
    {"layers": "full", "r2": 0.2, "against": pocket.BASE},  # against other styles and things
    {"layers": "full", "r2": 0.2, "saliency": "wanda", "against": pocket.BASE},
    {"layers": "full", "r2": 0.2, "walk_steps": 50},  # the paper's first fifth
    {"layers": "full", "r2": 0.2, "record_steps": 20},  # all of the walk
    {"layers": "full", "r2": 0.2, "conditional": True},
    {"layers": "ff-out", "r2": 0.02, "walk_steps": 50},  # the paper's setting
)
Point = tuple[dict[str, Any], float, float, float, int]  # fields, UA, IRA, CRA, zeroed entries


def measure_point(model: DiffusionModel, name: str, fields: dict[str, Any], work: Path) -> Point:
    method, concepts, _ = configure_method(FIA, parse_concepts(name, kind=DEVELOPMENT[name]), model.family, FIXED_FIELDS | fields)
    folder = work / name / hash_record(asdict(method))
    edit = erase(model, concepts, method, out=folder)
    (plan,) = AuditPlan.for_edits([edit], load_suite("pocket-dev"), "smoke")
    result = audit(model, [edit], plan, folder / "audit")
    return fields, percent_of(result, "UA"), percent_of(result, "IRA"), percent_of(result, "CRA"), edit.info.notes["zeroed"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/fia"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    args = parser.parse_args()
    model = load_model("pocket")
    settings = [{"layers": layers, "r2": r2} for layers in LAYERS for r2 in SHARES] + list(OTHER_SETTINGS)
    lines = ["| concept | fields | UA | IRA | CRA | weights zeroed |", "|---|---|---|---|---|---|"]
    figure, axes = plt.subplots(1, len(DEVELOPMENT), figsize=(11, 4.6), sharey=True)
    for axis, name in zip(axes, DEVELOPMENT, strict=True):
        points = [measure_point(model, name, fields, args.work) for fields in settings]
        for fields, ua, ira, cra, zeroed in points:
            fields_text = ", ".join(f"{k} {'others' if v == pocket.BASE else v}" for k, v in fields.items())
            lines.append(f"| {name} | {fields_text} | {ua:.1f} | {ira:.1f} | {cra:.1f} | {zeroed:,} |")
        for i, layers in enumerate(LAYERS):
            layer_points = [p for p in points if p[0].keys() == {"layers", "r2"} and p[0]["layers"] == layers]
            axis.plot(SHARES, [p[1] for p in layer_points], "o-", color=f"C{i}", label=f"{layers}: UA")
            axis.plot(SHARES, [(p[2] + p[3]) / 2 for p in layer_points], "s--", color=f"C{i}", label=f"{layers}: kept")
        axis.set(title=f"erasing {name}", xlabel="r2", xscale="log", ylim=(-3, 103))
        axis.set_xticks(SHARES, [f"{share:g}" for share in SHARES])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("percent")
    axes[-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(args.docs / "images" / "fia-curve.png", dpi=110)
    fill_section(args.docs / "fia.md", "sweep", lines)


if __name__ == "__main__":
    main()
