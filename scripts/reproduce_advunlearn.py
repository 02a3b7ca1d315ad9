"""Reproduce docs/advunlearn.md: AdvUnlearn against ESD on pocket, under soft prefixes of equal budget.

    python scripts/reproduce_advunlearn.py --work runs/advunlearn

For each model and each length, the attack starts from several random prefixes; every start draws pictures from seeds of its own with the
suite's prompts for the concept. Controls: no prefix, and a random prefix of the same length. Run folders are resumed.
"""

import argparse
from itertools import product
from pathlib import Path
from typing import Any

import torch
from figures import fill_rows
from reproduce_methods import cell, erased, measured

from erasure.concept import Kind
from erasure.edits import Edit
from erasure.erasing import applied
from erasure.families.base import DiffusionModel
from erasure.loading.loader import load_model
from erasure.storage.run import read_json, write_json
from erasure.training import recording as recorder
from erasure.training.teacher_cache import Recording
from eval.attacks.soft_prefix import SoftPrefix
from eval.audit import Audit
from eval.scoring.judge_scores import judges_of
from eval.stats.intervals import wilson
from eval.suites.suite import load_suite

CONCEPTS: dict[str, Kind] = {"neon": "style", "stained glass": "style", "fish": "object"}  # neon is a development concept
METHODS = ("esd", "advunlearn")
BUDGETS = {1: 400, 3: 200, 5: 200}  # tokens of the prefix -> Adam steps; a single token needs more before it revives anything
STARTS = 5
EARLY = 50  # steps after which the prefix is tried as well
KINDS = ("early", "attack", "random", "none")
Counts = dict[str, list[int]]


def attacked(model: DiffusionModel, edit: Edit, name: str, work: Path, each: int = 24) -> dict[str, Counts]:
    """For every length: pictures in which the concept is read, of all, under the attack and under its two controls."""
    suite = load_suite("pocket")
    (plan,) = Audit.of([edit], suite, "smoke")
    target = plan.targets[0]
    asked = [a.case for a in plan.todo if getattr(a.case, plan.axis) == target]
    prompts = [case.prompt for case in asked if case.role == "grid"]
    bank = recorder.obtain(model, Recording(pairs=tuple((p, "") for p in dict.fromkeys(prompts)), walks=24, steps=25, guidance=4.0))
    judge = judges_of(suite)[0][plan.axis]
    found: dict[str, Counts] = {str(tokens): {kind: [0, 0] for kind in KINDS} for tokens in BUDGETS}
    with applied(model, [edit]):
        for tokens, start in product(BUDGETS, range(STARTS)):
            file = work / f"{name.replace(' ', '-')}-{edit.info.method}-{edit.digest()}" / f"{tokens}x{BUDGETS[tokens]}-{start}.json"
            if not file.exists():
                attack = SoftPrefix(tokens=tokens, steps=BUDGETS[tokens])
                fitted = attack.fitted(model, bank, start, at=(EARLY,)).values()
                seeds = [1_000_000 * tokens + 1000 * start + i for i in range(each)]
                read = {
                    kind: sum(r["label"] == target for r in readings(model, judge, (prompts * each)[:each], seeds, prefix))
                    for kind, prefix in zip(KINDS, (*fitted, attack.start(model, start), None), strict=True)
                }
                file.parent.mkdir(parents=True, exist_ok=True)
                write_json(file, read)
                print(name, edit.info.method, f"{tokens} tokens, start {start}:", read, f"of {each}", flush=True)
            for kind, k in read_json(file).items():
                found[str(tokens)][kind][0] += k
                found[str(tokens)][kind][1] += each
    return found


def readings(model: DiffusionModel, judge: Any, prompts: list[str], seeds: list[int], prefix: torch.Tensor | None) -> list[dict[str, Any]]:
    pictures = model.decode(model.sample(prompts, seeds, prefix=prefix)).cpu()
    return judge.read(pictures, prompts)


def share(counts: list[int]) -> str:
    k, n = counts
    r = wilson(k, n)
    return f"{100 * r.estimate:.0f} ({100 * r.low:.0f} to {100 * r.high:.0f}; {k}/{n})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/advunlearn"))
    parser.add_argument("--methods-work", type=Path, default=Path("runs/methods"), help="of reproduce_methods.py, whose edits are used")
    parser.add_argument("--concepts", nargs="+", default=list(CONCEPTS), choices=CONCEPTS)
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    model = load_model("pocket")
    lines: list[str] = []
    kept: list[str] = []
    for name in args.concepts:
        kind = CONCEPTS[name]
        for method in METHODS:
            folder = erased(method, name, kind, args.methods_work)
            result = measured(model, folder, "pocket", "standard")
            kept.append(f"| {name} | {method} | {' | '.join(cell(result, r) for r in ('UA', 'IRA', 'CRA'))} |")
            found = attacked(model, Edit.load(folder), name, args.work)
            lines += [
                f"| {name} | {method} | {tokens} | {BUDGETS[int(tokens)]} | {' | '.join(share(c[kind]) for kind in KINDS)} |"
                for tokens, c in found.items()
            ]
    head = [
        f"| concept | method | tokens | steps | after {EARLY} steps | after all steps | random prefix | no prefix |",
        "|---|---|---|---|---|---|---|---|",
    ]
    fill_rows(args.docs / "advunlearn.md", "attacks", head, lines)
    fill_rows(args.docs / "advunlearn.md", "kept", ["| concept | method | UA | IRA | CRA |", "|---|---|---|---|---|"], kept)


if __name__ == "__main__":
    main()
