"""Measure the retrained models: that they do not know their concept, and that they know the rest. Writes docs/results/retrained.md.

    python scripts/measure_retrained.py --work runs/retrained

The judge labels of a model's images stay in the work folder, so that an interrupted run continues. scripts/reproduce_retrained.py
measures how near erasures come to these models.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from fill_docs import fill_section
from measure_pocket import JUDGES, all_cells, format_hits, prompts_and_seeds
from torchvision.utils import save_image
from tqdm import tqdm
from train_retrained import RETRAINED_WEIGHTS

from erasure.concept import parse_concepts
from erasure.concept_check import NONSENSE_WORDS
from erasure.edits import Edit, apply_edits
from erasure.edits.external.external_edit import load_external
from erasure.families.base import DiffusionModel
from erasure.loading.loader import load_model
from erasure.storage.run import hash_record, read_json, write_json
from eval.records.axes import cross_axis
from eval.stats.intervals import Interval, paired_difference, wilson
from eval.suites.cases import Case
from eval.suites.suite import load_suite

IMAGES_PER_PROBE = 200
POCKET = "pocket"
SeededPrompts = Sequence[tuple[str, int]]  # prompts with seeds


def load_retrained(model: DiffusionModel) -> dict[str, dict[str, Edit]]:
    """Load every retrained model as an edit of pocket, by excluded label and file name."""
    edits_by_label: dict[str, dict[str, Edit]] = defaultdict(dict)
    suite = load_suite("pocket")
    for path in sorted(RETRAINED_WEIGHTS.glob("without-*.safetensors")):
        label = path.stem.split("-")[1]
        edits_by_label[label][path.stem] = load_external(
            model, str(path), parse_concepts(label, kind="style" if label in suite.styles else "object")
        )
    return edits_by_label


def with_pocket(models: dict[str, Edit]) -> dict[str, list[Edit]]:
    return {POCKET: [], **{name: [edit] for name, edit in models.items()}}


def judge_labels(
    model: DiffusionModel, stack: Sequence[Edit], requests: SeededPrompts, work: Path, title: str
) -> tuple[dict[str, list[str]], Path]:
    """Return the judge labels of one image per prompt, by axis, and a file with the first 20 images."""
    key = hash_record(
        {
            "base": model.fingerprint(),
            "edits": [edit.digest() for edit in stack],
            "compute": str(model.compute_dtype),
            "prompts_and_seeds": requests,
        }
    )
    labels_file, sheet_file = work / "labels" / f"{key}.json", work / "labels" / f"{key}.png"
    if not labels_file.exists():
        labels_file.parent.mkdir(parents=True, exist_ok=True)
        labels: dict[str, list[str]] = {axis: [] for axis in JUDGES}
        parts = []
        with apply_edits(model, stack):
            for i in tqdm(range(0, len(requests), 40), desc=title):
                prompts, seeds = zip(*requests[i : i + 40], strict=True)
                images = model.decode(model.sample(prompts, seeds, 25, 4.0)).cpu()
                parts.append(images)
                for axis, judge in JUDGES.items():
                    labels[axis] += [score.label for score in judge.score(images, prompts)]
        save_image(torch.cat(parts)[:20].repeat_interleave(2, -1).repeat_interleave(2, -2), sheet_file, nrow=10)
        write_json(labels_file, labels)
    return read_json(labels_file), sheet_file


def probe_requests(label: str) -> dict[str, SeededPrompts]:
    """Return seeded prompts per probe: name, synonyms, descriptions, nonsense words. Image i has the same noise in all probes."""
    suite = load_suite("pocket")
    axis, _ = suite.find_concept(label)
    name, aliases = suite.phrases(axis)[label], suite.aliases[label]
    other_words = list(suite.phrases(cross_axis(axis)).items())
    phrases = {"its name": (name,), "synonyms": aliases.named, "descriptions": aliases.described, "nonsense words": NONSENSE_WORDS}
    by_probe = {}
    for probe, variants in phrases.items():
        template = suite.described_template if (axis, probe) == ("style", "descriptions") else suite.template
        requests = []
        for i in range(IMAGES_PER_PROBE):
            other_label, text = other_words[i % len(other_words)]
            phrase = variants[i // len(other_words) % len(variants)]
            prompt = template.format(style=phrase, object=text) if axis == "style" else template.format(style=text, object=phrase)
            requests.append((prompt, Case("", other_label, "", 1).seed("references", i)))  # this string decides the seeds
        by_probe[probe] = requests
    return by_probe


def ignorance_rows(model: DiffusionModel, label: str, models: dict[str, Edit], work: Path, docs: Path) -> list[str]:
    """Return rows with how often the judge sees the concept in images of its prompts, beside nonsense words from the same noise.

    Pocket, which knows the concept, is probed by name only: this shows that prompts, noise and judge detect it.
    """
    axis, _ = load_suite("pocket").find_concept(label)
    rows = []
    for name, stack in with_pocket(models).items():
        hits = {}
        for probe, requests in probe_requests(label).items():
            if name == POCKET and probe != "its name":
                continue
            labels, sheet_file = judge_labels(model, stack, requests, work, f"{name}, {probe}")
            hits[probe] = [predicted == label for predicted in labels[axis]]
            if probe == "its name":
                (docs / "images" / f"retrained-{label}-{name}.png").write_bytes(sheet_file.read_bytes())
        for probe, own_hits in hits.items():
            nonsense = hits.get("nonsense words", own_hits)
            difference_text = "" if nonsense is own_hits else format_points(paired_hits_difference(own_hits, nonsense))
            rate = wilson(sum(own_hits), len(own_hits))
            rows.append(f"| {label}: {name} | {probe} | {sum(own_hits)}/{len(own_hits)} | {format_percent(rate)} | {difference_text} |")
    return rows


def retained_rows(model: DiffusionModel, label: str, models: dict[str, Edit], work: Path, seeds: int) -> list[str]:
    """Return rows with judge accuracy in all cells without the concept, and the paired difference to pocket from the same noise."""
    targets = [cell for cell in all_cells(seeds) if label not in cell]
    hits_by_model: dict[str, dict[str, list[bool]]] = {}
    for name, stack in with_pocket(models).items():
        labels, _ = judge_labels(model, stack, prompts_and_seeds(targets), work, f"{name}, the rest")
        hits_by_model[name] = {
            axis: [predicted == cell[i] for predicted, cell in zip(labels[axis], targets, strict=True)]
            for i, axis in enumerate(("object", "style"))
        }
    rows = []
    for name, own_hits in hits_by_model.items():
        difference_texts = [
            "" if name == POCKET else format_points(paired_hits_difference(own_hits[axis], hits_by_model[POCKET][axis]))
            for axis in ("style", "object")
        ]
        style, thing = (format_hits(own_hits[axis]) for axis in ("style", "object"))
        rows.append(f"| {label}: {name} | {style} | {difference_texts[0]} | {thing} | {difference_texts[1]} |")
    return rows


def paired_hits_difference(first: Sequence[bool], second: Sequence[bool]) -> Interval:
    """Return the first minus the second rate over images of the same noise (Newcombe's paired interval)."""
    table_counts = [
        sum((a, b) == pair for a, b in zip(first, second, strict=True))
        for pair in ((True, True), (True, False), (False, True), (False, False))
    ]
    return paired_difference(*table_counts)


def format_percent(rate: Interval) -> str:
    return f"{100 * rate.estimate:.1f} ({100 * rate.low:.1f} to {100 * rate.high:.1f})"


def format_points(interval: Interval) -> str:
    return f"{100 * interval.estimate:+.1f} ({100 * interval.low:+.1f} to {100 * interval.high:+.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/retrained"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--seeds", type=int, default=5, help="fresh seeds per retained cell")
    parser.add_argument("--part", choices=("ignorance", "retained"), action="append", help="one part alone; may be repeated")
    args = parser.parse_args()
    model = load_model("pocket")
    edits_by_label = load_retrained(model)
    if not edits_by_label:
        parser.error(f"no retrained models in {RETRAINED_WEIGHTS}; scripts/train_retrained.py makes them.")
    parts = args.part or ["ignorance", "retained"]
    if "retained" in parts:
        head = [
            "| without: model | style as prompted | minus pocket, points | object as prompted | minus pocket, points |",
            "|---|---|---|---|---|",
        ]
        rows = [row for label, models in edits_by_label.items() for row in retained_rows(model, label, models, args.work, args.seeds)]
        fill_section(args.docs / "results" / "retrained.md", "retained", head + rows)
    if "ignorance" in parts:
        head = [
            "| without: model | prompts by | labeled as it | percent | minus nonsense words, points |",
            "|---|---|---|---|---|",
        ]
        rows = [row for label, models in edits_by_label.items() for row in ignorance_rows(model, label, models, args.work, args.docs)]
        fill_section(args.docs / "results" / "retrained.md", "ignorance", head + rows)


if __name__ == "__main__":
    main()
