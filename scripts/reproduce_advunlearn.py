"""Reproduce docs/results/advunlearn.md: AdvUnlearn against ESD on pocket, under soft prefixes of equal budget.

    python scripts/reproduce_advunlearn.py --work runs/advunlearn

For each model and each length, the attack starts from several random prefixes. Every start generates images from its own seeds with
the suite's prompts for the concept. Controls: no prefix, and a random prefix of the same length. Run folders are resumed.
"""

import argparse
from itertools import product
from pathlib import Path
from typing import Any

import torch
from fill_docs import fill_table_rows
from reproduce_methods import RATES, audit_at_strength, erase_in_subprocess, format_cell

from erasure.concept import ConceptKind
from erasure.edits import Edit, apply_edits
from erasure.families.base import DiffusionModel
from erasure.loading.loader import load_model
from erasure.storage.run import read_json, write_json
from erasure.training import fill_cache
from erasure.training.teacher_cache import TeacherQuery
from eval.attacks.soft_prefix import SoftPrefix
from eval.auditing.plan import AuditPlan
from eval.records.scores import LabelScore
from eval.scoring.judge_scores import available_judges
from eval.stats.intervals import wilson
from eval.suites.suite import load_suite

CONCEPTS: dict[str, ConceptKind] = {"neon": "style", "stained glass": "style", "fish": "object"}  # neon is a development concept
METHODS = ("esd", "advunlearn")
BUDGETS = {1: 400, 3: 200, 5: 200}  # prefix tokens -> Adam steps; a single token needs more steps to revive a concept
RESTARTS = 5
EARLY_STEPS = 50  # the prefix is also tried after this many steps
CONDITIONS = ("early", "attack", "random", "none")
Counts = dict[str, list[int]]


def measure_attacks(model: DiffusionModel, edit: Edit, name: str, work: Path, image_count: int = 24) -> dict[str, Counts]:
    """Count, for every length, images that show the concept of all images, under the attack and its two controls."""
    suite = load_suite("pocket")
    (plan,) = AuditPlan.for_edits([edit], suite, "smoke")
    target = plan.targets[0]
    target_cases = [sample.case for sample in plan.samples if getattr(sample.case, plan.axis) == target]
    prompts = [case.prompt for case in target_cases if case.role == "grid"]
    cache = fill_cache.load_or_fill(
        model, TeacherQuery(prompt_pairs=tuple((p, "") for p in dict.fromkeys(prompts)), trajectories=24, steps=25, guidance=4.0)
    )
    judge = available_judges(suite)[0][plan.axis]
    totals: dict[str, Counts] = {str(tokens): {kind: [0, 0] for kind in CONDITIONS} for tokens in BUDGETS}
    with apply_edits(model, [edit]):
        for tokens, start in product(BUDGETS, range(RESTARTS)):
            file = work / f"{name.replace(' ', '-')}-{edit.info.method}-{edit.digest()}" / f"{tokens}x{BUDGETS[tokens]}-{start}.json"
            if not file.exists():
                attack = SoftPrefix(tokens=tokens, steps=BUDGETS[tokens])
                prefixes = attack.fit_prefixes(model, cache, start, snapshot_steps=(EARLY_STEPS,)).values()
                seeds = [1_000_000 * tokens + 1000 * start + i for i in range(image_count)]
                hits = {
                    kind: sum(
                        score.label == target
                        for score in score_generated(model, judge, (prompts * image_count)[:image_count], seeds, prefix)
                    )
                    for kind, prefix in zip(CONDITIONS, (*prefixes, attack.initial_prefix(model, start), None), strict=True)
                }
                file.parent.mkdir(parents=True, exist_ok=True)
                write_json(file, hits)
                print(name, edit.info.method, f"{tokens} tokens, start {start}:", hits, f"of {image_count}", flush=True)
            for kind, k in read_json(file).items():
                totals[str(tokens)][kind][0] += k
                totals[str(tokens)][kind][1] += image_count
    return totals


def score_generated(
    model: DiffusionModel, judge: Any, prompts: list[str], seeds: list[int], prefix: torch.Tensor | None
) -> list[LabelScore]:
    images = model.decode(model.sample(prompts, seeds, prefix=prefix)).cpu()
    return judge.score(images, prompts)


def format_counts(counts: list[int]) -> str:
    k, n = counts
    r = wilson(k, n)
    return f"{100 * r.estimate:.0f} ({100 * r.low:.0f} to {100 * r.high:.0f}; {k}/{n})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/advunlearn"))
    parser.add_argument(
        "--methods-work", type=Path, default=Path("runs/methods"), help="work folder of reproduce_methods.py, whose edits are used"
    )
    parser.add_argument("--concepts", nargs="+", default=list(CONCEPTS), choices=CONCEPTS)
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    model = load_model("pocket")
    lines: list[str] = []
    rate_rows: list[str] = []
    for name in args.concepts:
        kind = CONCEPTS[name]
        for method in METHODS:
            folder = erase_in_subprocess(method, name, kind, args.methods_work)
            result = audit_at_strength(model, folder, "pocket", "standard")
            rate_rows.append(f"| {name} | {method} | {' | '.join(format_cell(result, r) for r in RATES)} |")
            totals = measure_attacks(model, Edit.load(folder), name, args.work)
            lines += [
                f"| {name} | {method} | {tokens} | {BUDGETS[int(tokens)]} | {' | '.join(format_counts(c[kind]) for kind in CONDITIONS)} |"
                for tokens, c in totals.items()
            ]
    head = [
        f"| concept | method | tokens | steps | after {EARLY_STEPS} steps | after all steps | random prefix | no prefix |",
        "|---|---|---|---|---|---|---|---|",
    ]
    document = args.docs / "results" / "advunlearn.md"
    fill_table_rows(document, "attacks", head, lines)
    fill_table_rows(document, "retained", ["| concept | method | UA | IRA | CRA |", "|---|---|---|---|---|"], rate_rows)


if __name__ == "__main__":
    main()
