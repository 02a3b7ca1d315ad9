"""Reproduce docs/results/esd.md: ESD on every pocket concept with one recipe per kind, its curve, and the plain loop beside it.

    python scripts/reproduce_esd.py --work runs/esd

Recipes were tuned on the development concepts (neon, boat) with suite pocket-dev; all other concepts are held out and measured with suite
pocket, whose prompt template and seeds tuning never saw. Every number comes from the run folders under --work, which are resumed.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from fill_docs import fill_section

from erasure.concept import ConceptKind, parse_concepts
from erasure.edits import Edit
from erasure.erasing import erase
from erasure.families.base import DiffusionModel
from erasure.loading.loader import load_model
from erasure.methods.esd import ESD
from erasure.recipes import configure_method
from eval.auditing.plan import AuditPlan
from eval.auditing.run import audit_plan
from eval.records.audit_result import AuditResult
from eval.records.models import BASE, ERASED, AuditedModel
from eval.records.rates import RateName
from eval.suites.suite import load_suite

DEVELOPMENT: dict[str, ConceptKind] = {"neon": "style", "boat": "object"}
HELD_OUT: dict[str, ConceptKind] = {
    "sketch": "style",
    "watercolor": "style",
    "pointillism": "style",
    "pixel art": "style",
    "engraving": "style",
    "stained glass": "style",
    "blueprint": "style",
    "fish": "object",
    "flower": "object",
    "heart": "object",
    "house": "object",
    "moon": "object",
    "star": "object",
    "tree": "object",
    "ada finch": "person",
    "otto bram": "person",
}
RATES = (RateName.UA, RateName.IRA, RateName.CRA)


def measure(
    model: DiffusionModel, name: str, kind: ConceptKind, work: Path, suite: str, tier: str, tag: str = "recipe", **fields: Any
) -> AuditResult:
    """Erase one concept and audit the edit; both resume where they stopped."""
    method, concepts, _ = configure_method(ESD, parse_concepts(name, kind=kind), model.family, fields)
    folder = work / name.replace(" ", "-") / tag
    edit = erase(model, concepts, method, out=folder)
    return measure_edit(model, edit, folder, suite, tier)


def measure_edit(model: DiffusionModel, edit: Edit, folder: Path, suite: str, tier: str) -> AuditResult:
    out = folder / f"audit-{suite}-{tier}"
    return audit_plan(model, [edit], AuditPlan.for_edits([edit], load_suite(suite), tier)[0], out)


def percent_of(result: AuditResult, name: RateName, model: AuditedModel = ERASED) -> float:
    return 100 * result.models[model].rates[name].estimate


def format_cell(result: AuditResult, name: RateName) -> str:
    r = result.models[ERASED].rates[name]
    bounds = f"{100 * r.low:.0f} to {100 * r.high:.0f}"
    return f"{100 * r.estimate:.1f} ({bounds}; {r.k}/{r.n}; base {percent_of(result, name, BASE):.1f})"


def format_table(results: dict[str, AuditResult], kinds: dict[str, ConceptKind]) -> list[str]:
    lines = ["| concept | kind | UA | IRA | CRA | forwards per sample-gradient |", "|---|---|---|---|---|---|"]
    for name, result in results.items():
        cost = result.edits[0].cost
        forwards_per_gradient = cost["unet_forwards"] / cost["sample_gradients"]
        lines.append(f"| {name} | {kinds[name]} | {' | '.join(format_cell(result, r) for r in RATES)} | {forwards_per_gradient:.2f} |")
    return lines


def mean_rows(results: dict[str, AuditResult], kinds: dict[str, ConceptKind], chosen: tuple[ConceptKind, ...]) -> list[str]:
    chosen_results = {name: r for name, r in results.items() if kinds[name] in chosen}
    parts = []
    for name in RATES:
        values = {n: percent_of(r, name) for n, r in chosen_results.items()}
        drop = {n: percent_of(r, name, BASE) - percent_of(r, name) for n, r in chosen_results.items()}
        worst = min(values, key=lambda n: values[n]) if name is RateName.UA else max(drop, key=lambda n: drop[n])
        mean, base = (
            sum(values.values()) / len(values),
            sum(percent_of(r, name, BASE) for r in chosen_results.values()) / len(chosen_results),
        )
        parts.append(
            f"{mean:.1f} (base {base:.1f}; worst {worst}: {values[worst]:.1f}, base {percent_of(chosen_results[worst], name, BASE):.1f})"
        )
    return [f"| {' and '.join(chosen)}, {len(chosen_results)} held out | {' | '.join(parts)} |"]


def measure_plain_loop(model: DiffusionModel, name: str, kind: ConceptKind, work: Path) -> AuditResult:
    """Run the plain loop of scripts/baselines/esd_plain.py on a development concept and audit it like the rest."""
    folder = work / name / "plain"
    if not (folder / "edit.json").exists():
        script = Path(__file__).parent / "baselines" / "esd_plain.py"
        subprocess.run([sys.executable, str(script), "--concept", name, "--kind", kind, "--out", str(folder)], check=True)
    return measure_edit(model, Edit.load(folder), folder, "pocket-dev", "standard")


def measure_curve(model: DiffusionModel, work: Path) -> dict[str, list[tuple[str, AuditResult]]]:
    """Measure the development concepts over optimizer steps and eta."""
    points_by_concept: dict[str, list[tuple[str, AuditResult]]] = {}
    for name, kind in DEVELOPMENT.items():
        steps = configure_method(ESD, parse_concepts(name, kind=kind), model.family, {})[0].steps  # type: ignore[attr-defined]
        settings = [("steps", max(1, round(steps * f))) for f in (0.25, 0.5, 1, 2)] + [
            ("negative_guidance", e) for e in (0.0, 0.5, 2.0, 4.0)
        ]
        points_by_concept[name] = [
            (f"{k}={v}", measure(model, name, kind, work, "pocket-dev", "smoke", f"{k}-{v}", **{k: v})) for k, v in settings
        ]
    return points_by_concept


def plot_curves(curves: dict[str, list[tuple[str, AuditResult]]], path: Path) -> None:
    figure, axes = plt.subplots(1, len(curves), figsize=(11, 4.6), sharey=True)
    for axis, (name, points) in zip(axes, curves.items(), strict=True):
        for prefix, marker in (("steps", "o-"), ("negative_guidance", "s--")):
            prefix_points = [(label, r) for label, r in points if label.startswith(prefix)]
            x = [percent_of(r, RateName.UA) for _, r in prefix_points]
            y = [(percent_of(r, RateName.IRA) + percent_of(r, RateName.CRA)) / 2 for _, r in prefix_points]
            axis.plot(x, y, marker, label="steps" if prefix == "steps" else "eta")
            for (label, _), a, b in zip(prefix_points, x, y, strict=True):
                axis.annotate(label.split("=")[1], (a, b), textcoords="offset points", xytext=(5, 5), fontsize=8)
        axis.set(title=name, xlabel="erased: UA (%)", xlim=(65, 102), ylim=(85, 101))
        axis.grid(alpha=0.3)
        axis.legend()
    axes[0].set_ylabel("retained: mean of IRA and CRA (%)")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def report_held_out(model: DiffusionModel, work: Path, docs: Path) -> None:
    results = {name: measure(model, name, kind, work, "pocket", "standard") for name, kind in HELD_OUT.items()}
    lines = ["| mean | UA | IRA | CRA |", "|---|---|---|---|"]
    lines += [
        *mean_rows(results, HELD_OUT, ("style",)),
        *mean_rows(results, HELD_OUT, ("object", "person")),
        "",
        *format_table(results, HELD_OUT),
    ]
    fill_section(docs / "results" / "esd.md", "held-out", lines)


def report_development(model: DiffusionModel, work: Path, docs: Path) -> None:
    results = {name: measure(model, name, kind, work, "pocket-dev", "standard") for name, kind in DEVELOPMENT.items()}
    results |= {f"{name} (plain loop)": measure_plain_loop(model, name, kind, work) for name, kind in DEVELOPMENT.items()}
    kinds = {name: DEVELOPMENT[name.removesuffix(" (plain loop)")] for name in results}
    fill_section(docs / "results" / "esd.md", "development", format_table(results, kinds))


def report_curves(model: DiffusionModel, work: Path, docs: Path) -> None:
    (docs / "images").mkdir(parents=True, exist_ok=True)
    plot_curves(measure_curve(model, work), docs / "images" / "esd-curve.png")


PARTS = {"held-out": report_held_out, "development": report_development, "curve": report_curves}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/esd"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument(
        "--part", choices=PARTS, action="append", help="run this part only; may be repeated; default: all, about an hour on two cores"
    )
    args = parser.parse_args()
    model = load_model("pocket")
    for part in args.part or PARTS:
        PARTS[part](model, args.work, args.docs)


if __name__ == "__main__":
    main()
