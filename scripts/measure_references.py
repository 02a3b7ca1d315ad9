"""Measure the models that never saw a concept, and how near every method's erasure comes to them: docs/references.md.

    python scripts/measure_references.py --part ignorance --part kept
    python scripts/measure_references.py --part methods --work runs/methods    # erasures are taken from there, or made

Run folders under --work are resumed.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from figures import fill
from measure_pocket import JUDGES, cells, draw, right, share
from reproduce_methods import cell as rate_cell
from reproduce_methods import erased, rate
from torchmetrics.functional import kendall_rank_corrcoef
from torchvision.utils import save_image
from tqdm import tqdm
from train_references import REFERENCES

from erasure.concept import Kind
from erasure.discover import names
from erasure.edit import Edit
from erasure.erase import applied
from erasure.families.base import DiffusionModel
from erasure.foreign import foreign
from erasure.loading import load_model
from eval.audit import Audit, How, audit
from eval.cases import Case
from eval.listed import crossing
from eval.report.html import write
from eval.report.record import record
from eval.statistics import wilson
from eval.suites import load_suite

NONSENSE = "zorvex"
EACH = 200  # pictures for each way of asking
KINDS: dict[str, Kind] = {"glass": "style", "fish": "object"}
READINGS = ("replaced", "kid", "nats")
Oracles = dict[str, dict[str, Edit]]  # concept, file, model


def oracles(model: DiffusionModel) -> Oracles:
    found: Oracles = defaultdict(dict)
    for path in sorted(REFERENCES.glob("without-*.safetensors")):
        found[path.stem.split("-")[1]][path.stem] = foreign(model, str(path), [])
    return found


def asked(label: str) -> dict[str, list[tuple[str, int]]]:
    """EACH prompts with seeds for every way of asking: by name, by synonyms, by descriptions, and by a nonsense word."""
    suite = load_suite("pocket")
    axis, _ = suite.find(label)
    words, aliases = suite.words(axis), suite.aliases[label]
    others = list(suite.words(crossing(axis)).items())
    ways = {"its name": (words[label],), "synonyms": aliases.named, "descriptions": aliases.described, "a nonsense word": (NONSENSE,)}
    found: dict[str, list[tuple[str, int]]] = {}
    for way, phrases in ways.items():
        template = suite.described if (axis, way) == ("style", "descriptions") else suite.template
        for i in range(EACH):
            cross, text = others[i % len(others)]
            phrase = phrases[i // len(others) % len(phrases)]
            prompt = template.format(style=phrase, object=text) if axis == "style" else template.format(style=text, object=phrase)
            found.setdefault(way, []).append((prompt, Case("", cross, "", 1).seed(f"references|{way}", i)))
    return found


def ignorance(model: DiffusionModel, found: Oracles, docs: Path) -> None:
    """How often a judge reads the concept where it is asked for, beside a nonsense word in its place; and pictures of it."""
    lines = ["| model | asked for by | the judge reads the concept, % | n |", "|---|---|---|---|"]
    suite = load_suite("pocket")
    for label, models in found.items():
        axis, _ = suite.find(label)
        for name, stack in {"pocket": [], **{n: [oracle] for n, oracle in models.items()}}.items():
            for way, prompts in asked(label).items():
                hits, shown = [], []
                with applied(model, stack):
                    for i in tqdm(range(0, EACH, 40), desc=f"{name}, {way}"):
                        texts, seeds = zip(*prompts[i : i + 40], strict=True)
                        pictures = model.decode(model.sample(texts, seeds, 25, 4.0)).cpu()
                        shown.append(pictures)
                        hits += [reading["label"] == label for reading in JUDGES[axis].read(pictures, texts)]
                interval = wilson(sum(hits), len(hits))
                spread = f"{100 * interval.estimate:.1f} ({100 * interval.low:.1f} to {100 * interval.high:.1f})"
                lines.append(f"| {label}: {name} | {way} | {spread} | {len(hits)} |")
                grid = torch.cat(shown)[:20].repeat_interleave(2, -1).repeat_interleave(2, -2)
                if way == "its name":
                    save_image(grid, docs / "images" / f"reference-{label}-{name}.png", nrow=10)
    fill(docs / "references.md", "ignorance", lines)


def kept(model: DiffusionModel, found: Oracles, docs: Path, seeds: int = 5) -> None:
    """Style and object accuracy on all cells without the concept, beside pocket's on the same cells and seeds."""
    lines = ["| model | cells | style, % | object, % |", "|---|---|---|---|"]
    for label, models in found.items():
        wanted = [c for c in cells(seeds) if label not in c]
        for name, stack in {"pocket": [], **{n: [oracle] for n, oracle in models.items()}}.items():
            with applied(model, stack):
                hits = right(draw(model, wanted), wanted)
            lines.append(f"| {name} | without {label} | {share(hits['style'])} | {share(hits['object'])} |")
    fill(docs / "references.md", "kept", lines)


def placed(model: DiffusionModel, folder: Path, how: How) -> tuple[dict[str, Any], dict[str, Any]]:
    """An audit of one erasure with oracles, and its report."""
    edit, suite = Edit.load(folder), load_suite("pocket")
    (plan,) = Audit.of([edit], suite, "standard")
    out = folder / "audit-pocket-standard-oracles"
    result = audit(model, [edit], plan, out, how)
    write(out, result, suite.gates)
    return result, record(result, suite.gates)


def methods(model: DiffusionModel, found: Oracles, docs: Path, work: Path, chosen: list[str]) -> None:
    head = "| concept | method | UA | IRA | CRA | in its place | KID | divergence | way by KID | verdict |"
    lines, points = [head, "|---" * 10 + "|"], []
    for label, models in found.items():
        how, name = How(oracles=tuple(models.values())), load_suite("pocket").words(KINDS[label])[label].removeprefix("a ")  # type: ignore[index,arg-type]
        floors = None
        for method in chosen:
            result, report = placed(model, erased(method, name, KINDS[label], work), how)
            places = {p["reading"]: p for p in report["placing"] if p["prompts"] == "target"}
            figures = [f"{places[r]['erased'][0]:.3g}" if r in places and places[r]["erased"] else "–" for r in READINGS]
            way = places["kid"]["way"]
            went = "–" if way is None else f"{100 * way:.0f} %"
            rates = " | ".join(rate_cell(result, r) for r in ("UA", "IRA", "CRA"))
            lines.append(f"| {label} | {method} | {rates} | {' | '.join(figures)} | {went} | {report['verdict']['state']} |")
            points += [] if way is None else [(label, method, rate(result, "UA"), 100 * way)]
            floors = floors or [
                [f"{(places[r][side] or [0])[0]:.3g}" if r in places else "–" for r in READINGS] for side in ("base", "floor")
            ]
        for side, values in zip(("pocket itself", "two references"), floors or [], strict=False):
            lines.append(f"| {label} | {side} | | | | {' | '.join(values)} | | |")
    fill(docs / "references.md", "methods", lines)
    figure(points, docs)
    fill(docs / "references.md", "ranks", [ranks(points)])


def figure(points: list[tuple[str, str, float, float]], docs: Path) -> None:
    picture, axis = plt.subplots(figsize=(7, 5))
    for i, (label, method, ua, way) in enumerate(points):
        axis.plot(ua, way, "os"[list(KINDS).index(label)], color=f"C{i % 10}")
        axis.annotate(f"{method} ({label})", (ua, way), fontsize=8, xytext=(4, 4), textcoords="offset points")
    axis.axhline(100, color="grey", linewidth=0.8)
    axis.set(xlabel="UA (%)", ylabel="way from pocket to a model that never saw it, by KID (%)")
    axis.grid(alpha=0.3)
    picture.tight_layout()
    picture.savefig(docs / "images" / "references-ranks.png", dpi=110)


def ranks(points: list[tuple[str, str, float, float]]) -> str:
    """Whether UA and nearness rank the methods alike (Kendall's tau-b; no interval: the methods are few and chosen by us)."""
    said = []
    for label in dict.fromkeys(point[0] for point in points):
        ua, way = torch.tensor([(ua, way) for where, _, ua, way in points if where == label]).T
        tau = kendall_rank_corrcoef(ua, way).item()
        said.append(f"{label}: Kendall's tau-b of UA and way by KID over {len(ua)} methods is {tau:.2f} (1: the same order).")
    return " ".join(said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/methods"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--methods", nargs="+", default=names("erasure.methods"))
    parser.add_argument("--part", choices=("ignorance", "kept", "methods"), action="append", help="one part alone; may be repeated")
    args = parser.parse_args()
    model = load_model("pocket")
    found = oracles(model)
    if not found:
        parser.error(f"no references in {REFERENCES}; scripts/train_references.py makes them.")
    for part in args.part or ("ignorance", "kept", "methods"):
        if part == "methods":
            methods(model, found, args.docs, args.work, args.methods)
        else:
            {"ignorance": ignorance, "kept": kept}[part](model, found, args.docs)


if __name__ == "__main__":
    main()
