"""Compare every method with models retrained without the concept: docs/results/retrained.md.

    python scripts/reproduce_retrained.py --work runs/methods    # erasures are taken from there, or made

Every erasure is audited against all models retrained without its concept, suite `pocket`, tier standard. Each retrained model is audited
against the others, and pocket as an erasure of strength 0. Run folders under --work are resumed.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from fill_docs import fill_section
from measure_retrained import load_retrained
from reproduce_methods import erase_in_subprocess
from torchmetrics.functional import kendall_rank_corrcoef

from erasure.concept import ConceptKind
from erasure.config.registry import list_modules
from erasure.edits import Edit
from erasure.families.base import DiffusionModel
from erasure.loading.loader import load_model
from erasure.storage.run import read_json
from eval.auditing.plan import AuditPlan
from eval.auditing.prepare import AuditOptions
from eval.auditing.run import audit_plan
from eval.report.html import write_report
from eval.suites.suite import load_suite

KINDS: dict[str, ConceptKind] = {"glass": "style", "fish": "object"}
TIER = "standard"
MEASURES = {
    "replacement_labels": ("what is in its place", 2),
    "kid_different_noise": ("KID, different noise", 2),
    "nats": ("divergence", 0),
}  # heads, digits
GATES = ("erased", "erased, by synonyms", "erased, by descriptions")
POCKET = "pocket itself"
Report = dict[str, Any]


def audit_folders_of(model: DiffusionModel, label: str, models: dict[str, Edit], work: Path, methods: list[str]) -> dict[str, Path]:
    """Audit every erasure of one concept, pocket itself and every retrained model. Return the folders by name."""
    name = load_suite("pocket").phrases("style" if KINDS[label] == "style" else "object")[label].removeprefix("a ")
    audit_options = AuditOptions(retrained=tuple(models.values()))
    folders = {method: erase_in_subprocess(method, name, KINDS[label], work) for method in methods}
    audit_folders = {
        method: audit_with_retrained(model, Edit.load(folder), audit_options, folder / "audit-retrained")
        for method, folder in folders.items()
    }
    zero_strength_options = AuditOptions(retrained=audit_options.retrained, strength=0.0)
    retrained_folder = work / "retrained"
    audit_folders[POCKET] = audit_with_retrained(
        model, Edit.load(next(iter(folders.values()))), zero_strength_options, retrained_folder / f"pocket-{label}"
    )
    for name, edit in models.items():
        other_options = AuditOptions(retrained=tuple(other for other in models.values() if other is not edit))
        audit_folders[name] = audit_with_retrained(model, edit, other_options, retrained_folder / name)
    return audit_folders


def audit_with_retrained(model: DiffusionModel, edit: Edit, audit_options: AuditOptions, out: Path) -> Path:
    suite = load_suite("pocket")
    (plan,) = AuditPlan.for_edits([edit], suite, TIER)
    write_report(out, audit_plan(model, [edit], plan, out, audit_options), suite.gates)
    return out


def find_gap(report: Report, measure: str, prompts: str) -> Report | None:
    return next((gap for gap in report["retrain_gap"] if (gap["measure"], gap["prompts"]) == (measure, prompts)), None)


def format_interval(interval: Sequence[float] | None, digits: int, scale: float = 1.0) -> str:
    return "–" if interval is None else "{:.{d}f} ({:.{d}f} to {:.{d}f})".format(*(scale * value for value in interval), d=digits)


def format_rate(report: Report, name: str) -> str:
    erased_rate = next(r["erased"] for r in report["rates"] if r["name"] == name)
    return format_interval([erased_rate[key] for key in ("estimate", "ci_low", "ci_high")], 1, 100)


def ua_of(report: Report) -> float:
    return float(next(r["erased"]["estimate"] for r in report["rates"] if r["name"] == "UA"))


def table_row(name: str, report: Report) -> dict[str, str]:
    """Return one line per table. Gap closed needs a distance between two other retrained models; it is empty without one."""
    cells = {}
    for measure, (_, digits) in MEASURES.items():
        for part in ("target", "retained"):
            cells[measure, part] = format_interval((find_gap(report, measure, part) or {}).get("erased"), digits)
        target = find_gap(report, measure, "target") or {}
        cells[measure, "gap_closed"] = format_interval(target.get("gap_closed") if target.get("between_retrained") else None, 0, 100)
    gates = {gate["name"]: gate["state"] for gate in report["gates"]}
    columns = {
        "target": [format_rate(report, "UA"), *(cells[measure, part] for measure in MEASURES for part in ("target", "gap_closed"))],
        "retained": [
            format_rate(report, "IRA"),
            format_rate(report, "CRA"),
            cells["kid_different_noise", "retained"],
            cells["nats", "retained"],
        ],
        "verdict": [*(gates[gate] for gate in GATES), report["verdict"]["state"]],
    }
    return {table: " | ".join(column_cells) for table, column_cells in columns.items()}


def limit_rows(label: str, report: Report) -> dict[str, dict[str, str]]:
    """Return the distances of pocket and of retrained models from retrained models: the two ends of the scale for an erasure."""
    rows_by_name = {}
    for end, row_name in (("base", "pocket to retrained"), ("between_retrained", "retrained to each other")):
        cells = {
            f"{measure} {part}": format_interval((find_gap(report, measure, part) or {}).get(end), digits)
            for part in ("target", "retained")
            for measure, (_, digits) in MEASURES.items()
        }
        rows_by_name[row_name] = {
            "target": f"| | {cells['replacement_labels target']} | | {cells['kid_different_noise target']} | | {cells['nats target']} | |",
            "retained": f"| | | {cells['kid_different_noise retained']} | {cells['nats retained']} |",
        }
    return {f"| {label}: *{row_name}* ": cells for row_name, cells in rows_by_name.items()}


def write_tables(docs: Path, reports: dict[str, dict[str, Report]]) -> None:
    heads = {
        "target": "| concept: model | UA | what is in its place | gap closed, % | KID, different noise | gap closed, % "
        "| divergence | gap closed, % |",
        "retained": "| concept: model | IRA | CRA | KID, different noise | divergence |",
        "verdict": "| concept: model | by name | by synonyms | by descriptions | verdict |",
    }
    for table, head in heads.items():
        lines = [head, "|---" * (head.count("|") - 1) + "|"]
        for label, audits in reports.items():
            lines += [f"| {label}: {name} | {table_row(name, report)[table]} |" for name, report in audits.items()]
            if table != "verdict":
                lines += [row_head + cells[table] for row_head, cells in limit_rows(label, next(iter(audits.values()))).items()]
        fill_section(docs / "results" / "retrained.md", f"methods-{table}", lines)


def describe_nearest(measure: str, audits: dict[str, Report], methods: Sequence[str]) -> str:
    """Name the method nearest to the retrained models, and all whose intervals overlap its interval."""
    intervals = {name: gap["erased"] for name in methods if (gap := find_gap(audits[name], measure, "target")) and gap["erased"]}
    sizes = {name: (abs(value), min(abs(low), abs(high)), max(abs(low), abs(high))) for name, (value, low, high) in intervals.items()}
    closest = min(sizes, key=lambda name: sizes[name][0])
    tied = [name for name in sizes if name != closest and sizes[name][1] <= sizes[closest][2]]
    return f"nearest is {closest}" + (f", not distinguishable from {', '.join(tied)}" if tied else ", clear of all others")


def rank_rows(reports: dict[str, dict[str, Report]], methods: Sequence[str]) -> list[str]:
    """Return rows with the nearest method and Kendall's tau-b of UA and nearness. Without interval: the methods are few and our choice."""
    lines = [
        "| concept | measure | nearest on the concept's own prompts | Kendall's tau-b of UA and nearness | methods |",
        "|---|---|---|---|---|",
    ]
    for label, audits in reports.items():
        for measure, (heading, _) in MEASURES.items():
            pairs = [
                (ua_of(audits[name]), -abs(gap["erased"][0]))
                for name in methods
                if (gap := find_gap(audits[name], measure, "target")) and gap["erased"]
            ]
            tau = kendall_rank_corrcoef(*torch.tensor(pairs, dtype=torch.double).T).item()
            lines.append(f"| {label} | {heading} | {describe_nearest(measure, audits, methods)} | {tau:+.2f} | {len(pairs)} |")
    return lines


def plot_gaps(label: str, audits: dict[str, Report], methods: Sequence[str], path: Path) -> None:
    """Plot the gap closed by every method, from pocket (0%) to the distance between two retrained models (100%), in the order of UA."""
    rows = [POCKET, *sorted(methods, key=lambda name: ua_of(audits[name]))]
    chart, axes = plt.subplots(1, 1 + len(MEASURES), figsize=(13, 0.4 * len(rows) + 1.4), sharey=True)
    for axis, (measure, (heading, _)) in zip(axes, {"UA": ("UA", 0), **MEASURES}.items(), strict=True):
        for y, name in enumerate(rows):
            gap_closed = (find_gap(audits[name], measure, "target") or {}).get("gap_closed")
            if gap_closed is None:
                axis.text(50, y, "–", ha="center", va="center", color="gray")
                continue
            value, low, high = (100 * number for number in gap_closed)
            axis.errorbar(value, y, xerr=[[value - low], [high - value]], fmt="o", color="black" if name == POCKET else "C0", capsize=2)
        for end in (0, 100):
            axis.axvline(end, color="gray", linewidth=0.8)
        axis.set(title=heading, xlim=(-60, 180), yticks=range(len(rows)), yticklabels=rows)
        axis.grid(alpha=0.3)
    chart.suptitle(f"{label}: gap closed, from pocket (0%) to the distance between two retrained models (100%)", fontsize=10)
    chart.tight_layout()
    chart.savefig(path, dpi=100)
    plt.close(chart)


def plot_image_sheet(label: str, folders: dict[str, Path], methods: Sequence[str], path: Path) -> None:
    """Plot images of each model for the concept, one noise per column: the first image of every label of the other axis."""
    suite = load_suite("pocket")
    cells = [(label, other) for other in suite.objects] if label in suite.styles else [(other, label) for other in suite.styles]
    chart, axes = plt.subplots(len(folders), len(cells), figsize=(0.72 * len(cells) + 1.8, 0.72 * len(folders)))
    for row_axes, name in zip(axes, [*(name for name in folders if name not in methods), *methods], strict=True):
        row_axes[0].set_ylabel(f"{name}  ", rotation=0, ha="right", va="center", fontsize=9)
        for axis, (style, thing) in zip(row_axes, cells, strict=True):
            axis.imshow(plt.imread(folders[name] / "images" / "erased" / f"{style}-{thing}-00.png"))
            axis.set(xticks=[], yticks=[])
    chart.subplots_adjust(left=0.2, right=0.995, top=0.995, bottom=0.005, wspace=0.03, hspace=0.03)
    chart.savefig(path, dpi=100, pil_kwargs={"quality": 88})
    plt.close(chart)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/methods"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--methods", nargs="+", default=list_modules("erasure.methods"))
    args = parser.parse_args()
    model = load_model("pocket")
    folders = {label: audit_folders_of(model, label, models, args.work, args.methods) for label, models in load_retrained(model).items()}
    reports = {
        label: {name: read_json(folder / "report.json") for name, folder in folders_by_name.items()}
        for label, folders_by_name in folders.items()
    }
    write_tables(args.docs, reports)
    fill_section(args.docs / "results" / "retrained.md", "ranks", rank_rows(reports, args.methods))
    for label, folders_by_name in folders.items():
        plot_gaps(label, reports[label], args.methods, args.docs / "images" / f"retrained-{label}-gaps.png")
        plot_image_sheet(label, folders_by_name, args.methods, args.docs / "images" / f"retrained-{label}-images.jpg")


if __name__ == "__main__":
    main()
