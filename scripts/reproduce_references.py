"""Which method comes nearest to never having known? Every method against the models that never saw the concept: docs/references.md.

    python scripts/reproduce_references.py --work runs/methods    # erasures are taken from there, or made

Every erasure is audited with all references of its concept as oracles, suite `pocket`, tier standard; the references themselves with the
others as oracles, and pocket as an erasure of strength 0. Run folders under --work are resumed.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from figures import fill
from measure_references import oracles
from reproduce_methods import erased
from torchmetrics.functional import kendall_rank_corrcoef

from erasure.concept import Kind
from erasure.config.registry import names
from erasure.edits import Edit
from erasure.families.base import DiffusionModel
from erasure.loading.loader import load_model
from erasure.storage.run import read_json
from eval.audit import Audit, How, audit
from eval.report.html import write
from eval.suites.suite import load_suite

KINDS: dict[str, Kind] = {"glass": "style", "fish": "object"}
TIER = "standard"
DISTANCES = {
    "replaced": ("what is in its place", 2),
    "kid_different_noise": ("KID, different noise", 2),
    "nats": ("divergence", 0),
}  # heads, digits
GATES = ("erased", "erased, by synonyms", "erased, by descriptions")
POCKET = "pocket itself"
Report = dict[str, Any]


def folders_of(model: DiffusionModel, label: str, models: dict[str, Edit], work: Path, methods: list[str]) -> dict[str, Path]:
    """The folder with the audit of every erasure of one concept, of pocket itself and of every reference, by name."""
    name = load_suite("pocket").words("style" if KINDS[label] == "style" else "object")[label].removeprefix("a ")
    oracle = How(oracles=tuple(models.values()))
    folders = {method: erased(method, name, KINDS[label], work) for method in methods}
    found = {method: audited(model, Edit.load(folder), oracle, folder / "audit-oracles") for method, folder in folders.items()}
    nothing = How(oracles=oracle.oracles, strength=0.0)
    place = work / "references"
    found[POCKET] = audited(model, Edit.load(next(iter(folders.values()))), nothing, place / f"pocket-{label}")
    for name, edit in models.items():
        others = How(oracles=tuple(other for other in models.values() if other is not edit))
        found[name] = audited(model, edit, others, place / name)
    return found


def audited(model: DiffusionModel, edit: Edit, how: How, out: Path) -> Path:
    suite = load_suite("pocket")
    (plan,) = Audit.of([edit], suite, TIER)
    write(out, audit(model, [edit], plan, out, how), suite.gates)
    return out


def place(report: Report, reading: str, prompts: str) -> Report | None:
    return next((p for p in report["placing"] if (p["reading"], p["prompts"]) == (reading, prompts)), None)


def spread(triple: Sequence[float] | None, digits: int, scale: float = 1.0) -> str:
    return "–" if triple is None else "{:.{d}f} ({:.{d}f} to {:.{d}f})".format(*(scale * value for value in triple), d=digits)


def rate(report: Report, name: str) -> str:
    found = next(r["erased"] for r in report["rates"] if r["name"] == name)
    return spread([found[key] for key in ("estimate", "ci_low", "ci_high")], 1, 100)


def ua(report: Report) -> float:
    return float(next(r["erased"]["estimate"] for r in report["rates"] if r["name"] == "UA"))


def row(name: str, report: Report) -> dict[str, str]:
    """One line of every table. Without a floor there is no way: of a reference among two, what is left is the floor itself."""
    cells = {}
    for reading, (_, digits) in DISTANCES.items():
        for part in ("target", "kept"):
            cells[reading, part] = spread((place(report, reading, part) or {}).get("erased"), digits)
        target = place(report, reading, "target") or {}
        cells[reading, "way"] = spread(target.get("way") if target.get("floor") else None, 0, 100)
    gates = {gate["name"]: gate["state"] for gate in report["gates"]}
    shown = {
        "target": [rate(report, "UA"), *(cells[reading, part] for reading in DISTANCES for part in ("target", "way"))],
        "kept": [rate(report, "IRA"), rate(report, "CRA"), cells["kid_different_noise", "kept"], cells["nats", "kept"]],
        "verdict": [*(gates[gate] for gate in GATES), report["verdict"]["state"]],
    }
    return {table: " | ".join(words) for table, words in shown.items()}


def limits(label: str, report: Report) -> dict[str, dict[str, str]]:
    """What pocket and two references lie from references: the ends between which an erasure is placed."""
    ends = {}
    for side, words in (("base", "pocket to references"), ("floor", "references to each other")):
        cells = {
            f"{reading} {part}": spread((place(report, reading, part) or {}).get(side), digits)
            for part in ("target", "kept")
            for reading, (_, digits) in DISTANCES.items()
        }
        ends[words] = {
            "target": f"| | {cells['replaced target']} | | {cells['kid_different_noise target']} | | {cells['nats target']} | |",
            "kept": f"| | | {cells['kid_different_noise kept']} | {cells['nats kept']} |",
        }
    return {f"| {label}: *{words}* ": cells for words, cells in ends.items()}


def tables(docs: Path, found: dict[str, dict[str, Report]]) -> None:
    heads = {
        "target": "| concept: model | UA | what is in its place | way, % | KID, different noise | way, % | divergence | way, % |",
        "kept": "| concept: model | IRA | CRA | KID, different noise | divergence |",
        "verdict": "| concept: model | by name | by synonyms | by descriptions | verdict |",
    }
    for table, head in heads.items():
        lines = [head, "|---" * (head.count("|") - 1) + "|"]
        for label, audits in found.items():
            lines += [f"| {label}: {name} | {row(name, report)[table]} |" for name, report in audits.items()]
            if table != "verdict":
                lines += [who + cells[table] for who, cells in limits(label, next(iter(audits.values()))).items()]
        fill(docs / "references.md", f"methods-{table}", lines)


def nearest(reading: str, audits: dict[str, Report], methods: Sequence[str]) -> str:
    """Which methods are nearest to the references: the smallest distance, and all whose intervals meet its interval."""
    placed = {name: found["erased"] for name in methods if (found := place(audits[name], reading, "target")) and found["erased"]}
    size = {name: (abs(value), min(abs(low), abs(high)), max(abs(low), abs(high))) for name, (value, low, high) in placed.items()}
    first = min(size, key=lambda name: size[name][0])
    beside = [name for name in size if name != first and size[name][1] <= size[first][2]]
    return f"nearest is {first}" + (f", not told apart from {', '.join(beside)}" if beside else ", apart from all others")


def ranks(found: dict[str, dict[str, Report]], methods: Sequence[str]) -> list[str]:
    """Which method is nearest, and whether UA ranks the methods alike (Kendall's tau-b; without interval: methods are few and ours)."""
    lines = [
        "| concept | reading | nearest on the concept's own prompts | Kendall's tau-b of UA and nearness | methods |",
        "|---|---|---|---|---|",
    ]
    for label, audits in found.items():
        for reading, (words, _) in DISTANCES.items():
            pairs = [
                (ua(audits[name]), -abs(distance["erased"][0]))
                for name in methods
                if (distance := place(audits[name], reading, "target")) and distance["erased"]
            ]
            tau = kendall_rank_corrcoef(*torch.tensor(pairs, dtype=torch.double).T).item()
            lines.append(f"| {label} | {words} | {nearest(reading, audits, methods)} | {tau:+.2f} | {len(pairs)} |")
    return lines


def figure(label: str, audits: dict[str, Report], methods: Sequence[str], to: Path) -> None:
    """The way every method went from pocket (0 %) to the floor between references (100 %), by each reading; methods in the order of UA."""
    rows = [POCKET, *sorted(methods, key=lambda name: ua(audits[name]))]
    picture, axes = plt.subplots(1, 1 + len(DISTANCES), figsize=(13, 0.4 * len(rows) + 1.4), sharey=True)
    for axis, (reading, (words, _)) in zip(axes, {"UA": ("UA", 0), **DISTANCES}.items(), strict=True):
        for y, name in enumerate(rows):
            way = (place(audits[name], reading, "target") or {}).get("way")
            if way is None:
                axis.text(50, y, "–", ha="center", va="center", color="grey")
                continue
            value, low, high = (100 * number for number in way)
            axis.errorbar(value, y, xerr=[[value - low], [high - value]], fmt="o", color="black" if name == POCKET else "C0", capsize=2)
        for end in (0, 100):
            axis.axvline(end, color="grey", linewidth=0.8)
        axis.set(title=words, xlim=(-60, 180), yticks=range(len(rows)), yticklabels=rows)
        axis.grid(alpha=0.3)
    picture.suptitle(f"{label}: way from pocket (0 %) to as near as two references are to each other (100 %)", fontsize=10)
    picture.tight_layout()
    picture.savefig(to, dpi=100)
    plt.close(picture)


def sheet(label: str, folders: dict[str, Path], methods: Sequence[str], to: Path) -> None:
    """What each model draws when asked for the concept, from one noise a column: the first picture of every label of the other axis."""
    suite = load_suite("pocket")
    cells = [(label, one) for one in suite.objects] if label in suite.styles else [(one, label) for one in suite.styles]
    picture, axes = plt.subplots(len(folders), len(cells), figsize=(0.72 * len(cells) + 1.8, 0.72 * len(folders)))
    for line, name in zip(axes, [*(name for name in folders if name not in methods), *methods], strict=True):
        line[0].set_ylabel(f"{name}  ", rotation=0, ha="right", va="center", fontsize=9)
        for axis, (style, thing) in zip(line, cells, strict=True):
            axis.imshow(plt.imread(folders[name] / "images" / "erased" / f"{style}-{thing}-00.png"))
            axis.set(xticks=[], yticks=[])
    picture.subplots_adjust(left=0.2, right=0.995, top=0.995, bottom=0.005, wspace=0.03, hspace=0.03)
    picture.savefig(to, dpi=100, pil_kwargs={"quality": 88})
    plt.close(picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/methods"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--methods", nargs="+", default=names("erasure.methods"))
    args = parser.parse_args()
    model = load_model("pocket")
    folders = {label: folders_of(model, label, models, args.work, args.methods) for label, models in oracles(model).items()}
    found = {label: {name: read_json(folder / "report.json") for name, folder in named.items()} for label, named in folders.items()}
    tables(args.docs, found)
    fill(args.docs / "references.md", "ranks", ranks(found, args.methods))
    for label, named in folders.items():
        figure(label, found[label], args.methods, args.docs / "images" / f"references-{label}-ways.png")
        sheet(label, named, args.methods, args.docs / "images" / f"references-{label}-pictures.jpg")


if __name__ == "__main__":
    main()
