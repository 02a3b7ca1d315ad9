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
from erasure.discover import names
from erasure.edit import Edit
from erasure.families.base import DiffusionModel
from erasure.loading import load_model
from eval.audit import Audit, How, audit
from eval.report.html import write
from eval.report.record import record
from eval.suites import load_suite

KINDS: dict[str, Kind] = {"glass": "style", "fish": "object"}
TIER = "standard"
DISTANCES = {"kid": ("KID", 3), "replaced": ("in its place", 2), "nats": ("divergence", 1)}  # heads, digits
GATES = ("erased", "erased, by synonyms", "erased, by descriptions")
Report = dict[str, Any]


def reports(model: DiffusionModel, label: str, models: dict[str, Edit], work: Path, chosen: list[str]) -> dict[str, Report]:
    """The audit of every erasure of one concept, of pocket itself and of every reference, by name."""
    name = load_suite("pocket").words("style" if KINDS[label] == "style" else "object")[label].removeprefix("a ")
    oracle = How(oracles=tuple(models.values()))
    folders = {method: erased(method, name, KINDS[label], work) for method in chosen}
    found = {method: audited(model, Edit.load(folder), oracle, folder / "audit-oracles") for method, folder in folders.items()}
    nothing = How(oracles=oracle.oracles, strength=0.0)
    place = work / "references"
    found["pocket itself"] = audited(model, Edit.load(next(iter(folders.values()))), nothing, place / f"pocket-{label}")
    for name, edit in models.items():
        others = How(oracles=tuple(other for other in models.values() if other is not edit))
        found[name] = audited(model, edit, others, place / name)
    return found


def audited(model: DiffusionModel, edit: Edit, how: How, out: Path) -> Report:
    suite = load_suite("pocket")
    (plan,) = Audit.of([edit], suite, TIER)
    result = audit(model, [edit], plan, out, how)
    write(out, result, suite.gates)
    return record(result, suite.gates)


def place(report: Report, reading: str, prompts: str) -> Report | None:
    return next((p for p in report["placing"] if (p["reading"], p["prompts"]) == (reading, prompts)), None)


def spread(triple: Sequence[float] | None, digits: int, scale: float = 1.0) -> str:
    return "–" if triple is None else "{:.{d}f} ({:.{d}f} to {:.{d}f})".format(*(scale * value for value in triple), d=digits)


def rate(report: Report, name: str) -> str:
    for found in report["rates"]:
        if found["name"] == name:
            return spread([found["erased"][key] for key in ("estimate", "ci_low", "ci_high")], 1, 100)
    return "–"


def row(name: str, report: Report) -> dict[str, str]:
    """One line of every table. Without a floor there is no way: of a reference among two, what is left is the floor itself."""
    cells = {}
    for reading, (_, digits) in DISTANCES.items():
        for part in ("target", "kept"):
            cells[reading, part] = spread((place(report, reading, part) or {}).get("erased"), digits)
    kid = place(report, "kid", "target") or {}
    way = kid.get("way") if kid.get("floor") else None
    gates = {gate["name"]: gate["state"] for gate in report["gates"]}
    shown = {
        "target": [rate(report, "UA"), cells["replaced", "target"], cells["kid", "target"], spread(way, 0, 100), cells["nats", "target"]],
        "kept": [rate(report, "IRA"), rate(report, "CRA"), cells["kid", "kept"], cells["nats", "kept"]],
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
            "target": f"| | {cells['replaced target']} | {cells['kid target']} | | {cells['nats target']} |",
            "kept": f"| | | {cells['kid kept']} | {cells['nats kept']} |",
        }
    return {f"| {label}: *{words}* ": cells for words, cells in ends.items()}


def tables(docs: Path, found: dict[str, dict[str, Report]]) -> None:
    heads = {
        "target": "| concept: model | UA | in its place | KID | way by KID | divergence |",
        "kept": "| concept: model | IRA | CRA | KID | divergence |",
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
                (next(r["erased"]["estimate"] for r in audits[name]["rates"] if r["name"] == "UA"), -abs(distance["erased"][0]))
                for name in methods
                if (distance := place(audits[name], reading, "target")) and distance["erased"]
            ]
            tau = kendall_rank_corrcoef(*torch.tensor(pairs, dtype=torch.double).T).item()
            lines.append(f"| {label} | {words} | {nearest(reading, audits, methods)} | {tau:+.2f} | {len(pairs)} |")
    return lines


def figure(found: dict[str, dict[str, Report]], docs: Path) -> None:
    """Left: UA against the way by KID. Right: distance on the concept's prompts against distance on the others, beside the floor."""
    picture, (left, right) = plt.subplots(1, 2, figsize=(13, 5.6))
    for label, audits in found.items():
        mark = "os"[list(KINDS).index(label)]
        for i, (name, report) in enumerate(audits.items()):
            ua = next(r["erased"] for r in report["rates"] if r["name"] == "UA")
            target, kept = place(report, "kid", "target"), place(report, "kid", "kept")
            if target is None or kept is None:
                continue
            words, style = (
                f"{name} ({label})" if len(found) > 1 else name,
                {"color": f"C{i % 10}", "marker": mark, "capsize": 2, "linestyle": ""},
            )
            if target["way"] and target["floor"]:  # a reference has none: what is left between it and the others is the floor itself
                x = [100 * ua[key] for key in ("estimate", "ci_low", "ci_high")]
                bars([*x], [100 * value for value in target["way"]], left, style, words)
            bars(target["erased"], kept["erased"], right, style, words)
        floor = [place(next(iter(audits.values())), "kid", part) for part in ("target", "kept")]
        right.plot(*([side["floor"][0]] for side in floor if side and side["floor"]), "k*", markersize=12)
    left.axhline(100, color="grey", linewidth=0.8)
    left.set(xlabel="UA (%)", ylabel="way from pocket to a model that never saw it, by KID (%)")
    right.set(xlabel="KID to the references, the concept's prompts", ylabel="KID to the references, prompts that should stay")
    right.set_title("star: two references from each other", fontsize=9)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    picture.tight_layout()
    picture.savefig(docs / "images" / "references-methods.png", dpi=110)


def bars(x: Sequence[float], y: Sequence[float], axis: Any, style: dict[str, Any], words: str) -> None:
    """A point with both intervals, and its name."""
    sides = [[[max(value - low, 0)], [max(high - value, 0)]] for value, low, high in (x, y)]  # a bootstrap's interval may miss its value
    axis.errorbar(x[0], y[0], xerr=sides[0], yerr=sides[1], **style)
    axis.annotate(words, (x[0], y[0]), fontsize=8, xytext=(4, 4), textcoords="offset points")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/methods"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--methods", nargs="+", default=names("erasure.methods"))
    args = parser.parse_args()
    model = load_model("pocket")
    found = {label: reports(model, label, models, args.work, args.methods) for label, models in oracles(model).items()}
    tables(args.docs, found)
    fill(args.docs / "references.md", "ranks", ranks(found, args.methods))
    figure(found, args.docs)


if __name__ == "__main__":
    main()
