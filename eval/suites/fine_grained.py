"""Finer scale: a concept that was meant to be erased with one label of the other axis alone, such as a style on one object.

(Zhang et al., arXiv:2402.11846, version 2.) That cell of the grid is the target; the concept everywhere else should stay. No torch here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from erasure.errors import UserError, unknown_value_error
from eval.scoring.gates import only_of
from eval.suites.cases import REPHRASED_ROLES, Case
from eval.suites.prompt_list_suite import cross_axis
from eval.suites.suite import Axis, Suite


def is_erasure_target(row: Mapping[str, Any], axis: Axis, targets: Sequence[str], only: str = "") -> bool:
    """Whether what was asked for, by labels under "style" and "object", is what should be gone: a target, in its cell if there is one."""
    return row[axis] in targets and only in ("", row[cross_axis(axis)])


def find_only_label(suite: Suite, axes: Sequence[Axis], name: str) -> str:
    """The label that `--only` means; empty for an empty name.

    Args:
        axes: of what is erased.

    Raises:
        UserError: no such label on the other axis, the nearest is named; or labels of both axes are erased, so that no axis is the other.
    """
    if not name:
        return ""
    if len(axes) != 1:
        raise UserError(f"--only {name} needs edits that erase styles alone or objects alone; these erase both, so audit them one by one.")
    cross = cross_axis(axes[0])
    labels_by_name = {
        phrase.lower(): label for label, words in suite.phrases(cross).items() for phrase in (label, words, words.removeprefix("a "))
    }
    if name.lower() not in labels_by_name:
        raise unknown_value_error(f"{cross} for --only in suite {suite.name}", name, labels_by_name)
    return labels_by_name[name.lower()]


def restrict_to_cell(cases: Sequence[Case], suite: Suite, axis: Axis, targets: Sequence[str], only: str) -> list[Case]:
    """Cases that ask for a target in its cell alone, by whatever words; of the grid the others stay, to see that nothing else is gone.

    The cell is drawn as often as all of the target's cells would have been together, so that a gate can still be decided. Prompts of others
    (`replayed`) do not say where; they are taken to ask for the cell.
    """
    if not only:
        return list(cases)
    cell_count, selected = len(suite.phrases(cross_axis(axis))), []
    for case in cases:
        cross_label = case.object if axis == "style" else case.style
        if case.role == "replayed":
            selected.append(replace(case, object=only) if axis == "style" else replace(case, style=only))
        elif case.role in (*REPHRASED_ROLES, "neighbour") and cross_label == only:
            selected.append(replace(case, count=cell_count * case.count))
        elif case.role == "grid":
            selected.append(replace(case, count=cell_count * case.count) if is_erasure_target(vars(case), axis, targets, only) else case)
        elif case.role == "benign":
            selected.append(case)
    return selected


def describe_only(result: Mapping[str, Any]) -> str:
    """Words to follow a concept: where an audit's was meant to be erased. Empty for everywhere."""
    only = only_of(result)
    return f" {'on' if result['axis'] == 'style' else 'in'} “{only}”" if only else ""
