"""Gives hostile inputs to every reader and every flag, and counts what no input may bring about.

    python scripts/fuzz.py                                     # all groups
    python scripts/fuzz.py --only edits                        # one of them
    python scripts/fuzz.py --only edits --case 17 --keep DIR   # one input, with its files left in DIR

A failure is an exception, exit code 0 for an input that is known to be wrong, a file written outside the given folders, a connection, a
case without an end, or a message that is not one short line. The same --seed and --count give the same inputs.
"""

import argparse
import os
import random
import resource
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
MEMORY = 12 * 2**30  # bytes of addresses; what asks for more fails here and not by the machine's killer


class FuzzResult(NamedTuple):
    """What was counted: cases by group, and failures with the group, the number and the name of their case."""

    cases: Counter[str]
    failures: list[tuple[str, int, str, "Failure"]]  # type: ignore[name-defined]  # noqa: F821  # imported once the environment is set


def fuzz(seed: int, count: int, root: Path, only: str = "", number: int | None = None, keep: bool = False) -> FuzzResult:
    """Run `count` cases, or those of one group, or one of them, below an empty folder."""
    isolate(root)
    from fuzzing.ground import make_fixtures
    from fuzzing.runner import SideEffectMonitor, run_case

    (root / "ground").mkdir()
    fixtures, monitor, result = make_fixtures(root / "ground"), SideEffectMonitor(), FuzzResult(Counter(), [])
    for group, (generate, share) in groups().items():
        if only and group != only:
            continue
        cases: Iterator = generate(fixtures, random.Random(f"{seed}|{group}"))
        group_count = round(count * share / sum(part for _, part in groups().values()))
        for i, case in enumerate(islice(cases, group_count if number is None else number + 1)):
            if number is not None and i != number:
                continue
            folder = root / f"{group}-{i}"
            failures = run_case(case, folder, root / "cache", monitor)
            result.cases[group] += 1
            for failure in failures:
                result.failures.append((group, i, case.name, failure))
                print(f"{failure.kind:<9} --only {group} --case {i}: {case.name}: {failure.detail}", flush=True)
            if not keep:
                shutil.rmtree(folder, ignore_errors=True)
    return result


def groups() -> dict[str, tuple[Callable, int]]:
    """Each group with its share of all cases."""
    from fuzzing import asking, edits, evidence, flags, models, pictures, tasks

    return {
        "flags": (flags.flag_cases, 26),
        "edits": (edits.edit_cases, 12),
        "specs": (tasks.spec_cases, 6),
        "plans": (tasks.plan_cases, 8),
        "claims": (tasks.claim_cases, 5),
        "suites": (asking.suite_cases, 11),
        "lists": (asking.list_cases, 8),
        "audits": (evidence.audit_cases, 9),
        "calibrations": (evidence.calibration_cases, 2),
        "images": (pictures.image_cases, 6),
        "masks": (pictures.mask_cases, 3),
        "words": (pictures.embedding_cases, 3),
        "loras": (models.lora_cases, 6),
        "folders": (models.folder_cases, 8),
        "checkpoints": (models.checkpoint_cases, 3),
        "addresses": (models.address_cases, 5),
    }


def isolate(root: Path) -> None:
    """Caches and home below `root`, no hub, and as much memory as one command may take; before any library looks."""
    for name in ("home", "cache", "tmp"):
        (root / name).mkdir()
    os.environ |= {"HOME": str(root / "home"), "ERASURE_CACHE": str(root / "cache"), "TMPDIR": str(root / "tmp")}
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HOME": str(root / "home" / "hf")}
    sys.dont_write_bytecode = True
    sys.path[:0] = [str(HERE.parent), str(HERE)]
    tempfile.tempdir = None
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))


def format_table(result: FuzzResult) -> str:
    """Cases and failures by group, in Markdown."""
    from fuzzing.runner import KINDS

    kinds = Counter((group, failure.kind) for group, _, _, failure in result.failures)
    lines = [f"| group | inputs | {' | '.join(KINDS)} |", "|---" * (len(KINDS) + 2) + "|"]
    for group, cases in result.cases.items():
        lines.append(f"| {group} | {cases} | {' | '.join(str(kinds[group, kind]) for kind in KINDS)} |")
    totals = [str(sum(n for (_, k), n in kinds.items() if k == kind)) for kind in KINDS]
    return "\n".join([*lines, f"| all | {sum(result.cases.values())} | {' | '.join(totals)} |"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="which inputs")
    parser.add_argument("--count", type=int, default=780, help="how many in all groups together")
    parser.add_argument("--only", default="", help="one group")
    parser.add_argument("--case", type=int, help="one input of that group")
    parser.add_argument("--keep", type=Path, help="an empty folder in which everything stays")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        root = args.keep or Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        result = fuzz(args.seed, args.count, root.resolve(), args.only, args.case, keep=args.keep is not None)
        print(format_table(result))
    return int(bool(result.failures) or not result.cases)


if __name__ == "__main__":
    sys.exit(main())
