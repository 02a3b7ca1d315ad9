"""Count the prompts that ask for each concept of the suite `sd`, and put the table into prompts/README.md.

python scripts/count_prompts.py
"""

from pathlib import Path

from figures import fill

from eval.suites.cases import cases
from eval.suites.suite import Axis, Suite, load_suite

README = Path(__file__).parent.parent / "prompts" / "README.md"
AXES: tuple[Axis, Axis] = ("style", "object")
HEAD = ["| concept | by its name | synonyms | descriptions | different prompts | spoiled spelling | neighbours |", "|---|" + "---:|" * 6]


def prompts(suite: Suite, axis: Axis, label: str) -> dict[str, set[str]]:
    """The different prompts that an audit of one concept draws at tier standard, by role; of the grid only the concept's own cells."""
    found: dict[str, set[str]] = {}
    for case in cases(suite, [(axis, label)], "standard"):
        if case.role != "grid" or label in (case.style, case.object):
            found.setdefault(case.role, set()).add(case.prompt)
    return found


def rows(suite: Suite) -> list[str]:
    lines = []
    for axis in AXES:
        for label, phrase in suite.words(axis).items():
            if label in suite.apart:
                continue
            found = prompts(suite, axis, label)
            asked = [found.get(role, set()) for role in ("grid", "named", "described")]
            near = suite.neighbours.get(label, ())
            counts = [*map(len, asked), len(set[str]().union(*asked)), len(found.get("mutated", ())), len(near)]
            lines.append(f"| {phrase.removeprefix('a ')} | " + " | ".join(map(str, counts)) + " |")
    return lines


if __name__ == "__main__":
    fill(README, "prompts of sd", HEAD + rows(load_suite("sd")))
    print(README)
