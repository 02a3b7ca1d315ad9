"""Run hostile inputs through every reader and every flag, and count failures that no input may cause.

    python scripts/fuzz.py                                     # all groups
    python scripts/fuzz.py --only edits                        # one of them
    python scripts/fuzz.py --only edits --case 17 --keep DIR   # one input; its files stay in DIR

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
MEMORY = 12 * 2**30  # address space in bytes; larger requests raise MemoryError instead of triggering the OOM killer


class FuzzResult(NamedTuple):
    """Cases by group, and failures with the group, number and name of their case."""

    cases: Counter[str]
    failures: list[tuple[str, int, str, "Failure"]]  # type: ignore[name-defined]  # noqa: F821  # imported after the environment is set


def fuzz(seed: int, count: int, root: Path, only: str = "", number: int | None = None, keep: bool = False) -> FuzzResult:
    """Run `count` cases, or those of one group, or one of them, below an empty folder."""
    isolate(root)
    from fuzzing.fixtures import make_fixtures
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
    """Return each group with its share of all cases."""
    from fuzzing import audits, edits, external_edits, flags, jobs, models, suites, user_files

    return {
        "flags": (flags.flag_cases, 26),
        "edits": (edits.edit_cases, 12),
        "specs": (jobs.spec_cases, 6),
        "plans": (jobs.plan_cases, 8),
        "claims": (jobs.claim_cases, 5),
        "suites": (suites.suite_cases, 11),
        "lists": (suites.list_cases, 8),
        "audits": (audits.audit_cases, 9),
        "calibrations": (audits.calibration_cases, 2),
        "images": (user_files.image_cases, 6),
        "masks": (user_files.mask_cases, 3),
        "words": (user_files.embedding_cases, 3),
        "loras": (external_edits.lora_cases, 6),
        "folders": (models.folder_cases, 8),
        "checkpoints": (models.checkpoint_cases, 3),
        "addresses": (models.address_cases, 5),
    }


def isolate(root: Path) -> None:
    """Set caches and home below `root`, go offline, and limit memory, before any library is imported."""
    for name in ("home", "cache", "tmp"):
        (root / name).mkdir()
    os.environ |= {"HOME": str(root / "home"), "ERASURE_CACHE": str(root / "cache"), "TMPDIR": str(root / "tmp")}
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HOME": str(root / "home" / "hf")}
    sys.dont_write_bytecode = True
    sys.path[:0] = [str(HERE.parent), str(HERE)]
    tempfile.tempdir = None
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))


def format_table(result: FuzzResult) -> str:
    """Format cases and failures by group as a Markdown table."""
    from fuzzing.runner import KINDS

    kinds = Counter((group, failure.kind) for group, _, _, failure in result.failures)
    lines = [f"| group | inputs | {' | '.join(KINDS)} |", "|---" * (len(KINDS) + 2) + "|"]
    for group, cases in result.cases.items():
        lines.append(f"| {group} | {cases} | {' | '.join(str(kinds[group, kind]) for kind in KINDS)} |")
    totals = [str(sum(n for (_, k), n in kinds.items() if k == kind)) for kind in KINDS]
    return "\n".join([*lines, f"| all | {sum(result.cases.values())} | {' | '.join(totals)} |"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="seed of the inputs")
    parser.add_argument("--count", type=int, default=780, help="number of inputs over all groups")
    parser.add_argument("--only", default="", help="one group")
    parser.add_argument("--case", type=int, help="one input of that group")
    parser.add_argument("--keep", type=Path, help="an empty folder in which all files stay")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        root = args.keep or Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        result = fuzz(args.seed, args.count, root.resolve(), args.only, args.case, keep=args.keep is not None)
        print(format_table(result))
    return int(bool(result.failures) or not result.cases)


if __name__ == "__main__":
    sys.exit(main())
