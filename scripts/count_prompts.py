"""Count the prompts of each concept in the suite `sd`, and write the table to prompts/README.md.

python scripts/count_prompts.py
"""

from pathlib import Path

from fill_docs import fill_section

from eval.suites.axes import Axis
from eval.suites.cases import suite_cases
from eval.suites.formats import Suite
from eval.suites.suite import load_suite

README = Path(__file__).parent.parent / "prompts" / "README.md"
AXES: tuple[Axis, Axis] = ("style", "object")
HEAD = ["| concept | by its name | synonyms | descriptions | different prompts | misspellings | neighbors |", "|---|" + "---:|" * 6]


def prompts_by_role(suite: Suite, axis: Axis, label: str) -> dict[str, set[str]]:
    """Return the distinct prompts of an audit of one concept at tier standard, by role; of the grid only the concept's own cells."""
    by_role: dict[str, set[str]] = {}
    for case in suite_cases(suite, [(axis, label)], "standard"):
        if case.role != "grid" or label in (case.style, case.object):
            by_role.setdefault(case.role, set()).add(case.prompt)
    return by_role


def table_rows(suite: Suite) -> list[str]:
    lines = []
    for axis in AXES:
        for label, phrase in suite.phrases(axis).items():
            if label in suite.excluded:
                continue
            by_role = prompts_by_role(suite, axis, label)
            prompt_sets = [by_role.get(role, set()) for role in ("grid", "named", "described")]
            neighbors = suite.neighbors.get(label, ())
            counts = [*map(len, prompt_sets), len(set[str]().union(*prompt_sets)), len(by_role.get("perturbed", ())), len(neighbors)]
            lines.append(f"| {phrase.removeprefix('a ')} | " + " | ".join(map(str, counts)) + " |")
    return lines


if __name__ == "__main__":
    fill_section(README, "prompts of sd", HEAD + table_rows(load_suite("sd")))
    print(README)
