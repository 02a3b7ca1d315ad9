"""Measure the models that never saw a concept: that they do not know it, and that they know the rest. Writes docs/references.md.

    python scripts/measure_references.py --work runs/references

What was read in a model's pictures stays in the work folder, so that an interrupted run continues. How near erasures come to these models
is measured by scripts/reproduce_references.py.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from figures import fill
from measure_pocket import JUDGES, asked_for, cells, share
from torchvision.utils import save_image
from tqdm import tqdm
from train_references import REFERENCES

from erasure.concept import parse
from erasure.concept_check import NONSENSE
from erasure.edits import Edit
from erasure.edits.external.reading import foreign
from erasure.erasing import applied
from erasure.families.base import DiffusionModel
from erasure.loading.loader import load_model
from erasure.storage.run import digest, read_json, write_json
from eval.stats.intervals import Interval, paired_difference, wilson
from eval.suites.cases import Case
from eval.suites.prompt_list import crossing
from eval.suites.suite import load_suite

EACH = 200  # pictures for each way of asking
POCKET = "pocket"
Asked = Sequence[tuple[str, int]]  # prompts with seeds


def oracles(model: DiffusionModel) -> dict[str, dict[str, Edit]]:
    """Every reference as an edit of pocket: label of what it never saw, name of the file, model."""
    found: dict[str, dict[str, Edit]] = defaultdict(dict)
    suite = load_suite("pocket")
    for path in sorted(REFERENCES.glob("without-*.safetensors")):
        label = path.stem.split("-")[1]
        found[label][path.stem] = foreign(model, str(path), parse(label, kind="style" if label in suite.styles else "object"))
    return found


def beside_pocket(models: dict[str, Edit]) -> dict[str, list[Edit]]:
    return {POCKET: [], **{name: [edit] for name, edit in models.items()}}


def read(model: DiffusionModel, stack: Sequence[Edit], asked: Asked, work: Path, title: str) -> tuple[dict[str, list[str]], Path]:
    """What the judges read in a picture of every prompt, by axis, and a file with the first 20 pictures."""
    key = digest({"base": model.fingerprint(), "edits": [edit.digest() for edit in stack], "compute": str(model.compute), "asked": asked})
    done, picture = work / "read" / f"{key}.json", work / "read" / f"{key}.png"
    if not done.exists():
        done.parent.mkdir(parents=True, exist_ok=True)
        labels: dict[str, list[str]] = {axis: [] for axis in JUDGES}
        shown = []
        with applied(model, stack):
            for i in tqdm(range(0, len(asked), 40), desc=title):
                prompts, seeds = zip(*asked[i : i + 40], strict=True)
                pictures = model.decode(model.sample(prompts, seeds, 25, 4.0)).cpu()
                shown.append(pictures)
                for axis, judge in JUDGES.items():
                    labels[axis] += [str(reading["label"]) for reading in judge.read(pictures, prompts)]
        save_image(torch.cat(shown)[:20].repeat_interleave(2, -1).repeat_interleave(2, -2), picture, nrow=10)
        write_json(done, labels)
    return read_json(done), picture


def ways(label: str) -> dict[str, Asked]:
    """EACH prompts for every way of asking: by name, by synonyms, by descriptions, by nonsense words. Picture i has one noise in all."""
    suite = load_suite("pocket")
    axis, _ = suite.find(label)
    name, aliases = suite.words(axis)[label], suite.aliases[label]
    others = list(suite.words(crossing(axis)).items())
    phrases = {"its name": (name,), "synonyms": aliases.named, "descriptions": aliases.described, "nonsense words": NONSENSE}
    found = {}
    for way, said in phrases.items():
        template = suite.described if (axis, way) == ("style", "descriptions") else suite.template
        asked = []
        for i in range(EACH):
            cross, text = others[i % len(others)]
            phrase = said[i // len(others) % len(said)]
            prompt = template.format(style=phrase, object=text) if axis == "style" else template.format(style=text, object=phrase)
            asked.append((prompt, Case("", cross, "", 1).seed("references", i)))
        found[way] = asked
    return found


def ignorance(model: DiffusionModel, label: str, models: dict[str, Edit], work: Path, docs: Path) -> list[str]:
    """Rows: how often the judge reads the concept where it is asked for, beside nonsense words in its place from the same noise.

    Pocket, which knows it, is asked by its name alone: that prompts, noise and judge find the concept where it is.
    """
    axis, _ = load_suite("pocket").find(label)
    rows = []
    for name, stack in beside_pocket(models).items():
        hits = {}
        for way, asked in ways(label).items():
            if name == POCKET and way != "its name":
                continue
            labels, picture = read(model, stack, asked, work, f"{name}, {way}")
            hits[way] = [found == label for found in labels[axis]]
            if way == "its name":
                (docs / "images" / f"reference-{label}-{name}.png").write_bytes(picture.read_bytes())
        for way, mine in hits.items():
            nonsense = hits.get("nonsense words", mine)
            apart = "" if nonsense is mine else points(difference(mine, nonsense))
            rate = wilson(sum(mine), len(mine))
            rows.append(f"| {label}: {name} | {way} | {sum(mine)}/{len(mine)} | {percent(rate)} | {apart} |")
    return rows


def kept(model: DiffusionModel, label: str, models: dict[str, Edit], work: Path, seeds: int) -> list[str]:
    """Rows: what is read as asked in all cells without the concept, and the paired difference to pocket's pictures of the same noise."""
    wanted = [cell for cell in cells(seeds) if label not in cell]
    right: dict[str, dict[str, list[bool]]] = {}
    for name, stack in beside_pocket(models).items():
        labels, _ = read(model, stack, asked_for(wanted), work, f"{name}, the rest")
        right[name] = {
            axis: [found == cell[i] for found, cell in zip(labels[axis], wanted, strict=True)] for i, axis in enumerate(("object", "style"))
        }
    rows = []
    for name, mine in right.items():
        apart = ["" if name == POCKET else points(difference(mine[axis], right[POCKET][axis])) for axis in ("style", "object")]
        rows.append(f"| {label}: {name} | {share(mine['style'])} | {apart[0]} | {share(mine['object'])} | {apart[1]} |")
    return rows


def difference(first: Sequence[bool], second: Sequence[bool]) -> Interval:
    """First minus second rate over pictures of the same noise (Newcombe, paired)."""
    cells = [
        sum((a, b) == pair for a, b in zip(first, second, strict=True))
        for pair in ((True, True), (True, False), (False, True), (False, False))
    ]
    return paired_difference(*cells)


def percent(rate: Interval) -> str:
    return f"{100 * rate.estimate:.1f} ({100 * rate.low:.1f} to {100 * rate.high:.1f})"


def points(apart: Interval) -> str:
    return f"{100 * apart.estimate:+.1f} ({100 * apart.low:+.1f} to {100 * apart.high:+.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/references"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--seeds", type=int, default=5, help="fresh seeds of every cell that should stay")
    parser.add_argument("--part", choices=("ignorance", "kept"), action="append", help="one part alone; may be repeated")
    args = parser.parse_args()
    model = load_model("pocket")
    found = oracles(model)
    if not found:
        parser.error(f"no references in {REFERENCES}; scripts/train_references.py makes them.")
    parts = args.part or ["ignorance", "kept"]
    if "kept" in parts:
        head = [
            "| without: model | style as asked | minus pocket, points | object as asked | minus pocket, points |",
            "|---|---|---|---|---|",
        ]
        rows = [row for label, models in found.items() for row in kept(model, label, models, args.work, args.seeds)]
        fill(args.docs / "references.md", "kept", head + rows)
    if "ignorance" in parts:
        head = ["| without: model | asked for by | read as the concept | percent | minus nonsense words, points |", "|---|---|---|---|---|"]
        rows = [row for label, models in found.items() for row in ignorance(model, label, models, args.work, args.docs)]
        fill(args.docs / "references.md", "ignorance", head + rows)


if __name__ == "__main__":
    main()
