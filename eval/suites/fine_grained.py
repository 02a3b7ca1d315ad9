"""Fine-grained erasure: a concept is erased on one label of the other axis alone, such as a style on one object.

(Zhang et al., arXiv:2402.11846, version 2.) That cell of the grid is the target; everywhere else the concept should be retained. Imports no
torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from erasure.errors import UserError, unknown_value_error
from eval.scoring.gates import only_of
from eval.suites.axes import Axis, cross_axis
from eval.suites.cases import REPHRASED_ROLES, Case
from eval.suites.formats import Suite


def is_erasure_target(row: Mapping[str, Any], axis: Axis, targets: Sequence[str], only: str = "") -> bool:
    """Return whether a prompt with these labels (row["style"], row["object"]) asks for what should be erased: a target, on `only`."""
    return row[axis] in targets and only in ("", row[cross_axis(axis)])


def find_only_label(suite: Suite, axes: Sequence[Axis], name: str) -> str:
    """Return the label that `--only` means; empty for an empty name.

    Args:
        axes: the axes on which something is erased.
        name: a label of the other axis, or its phrase.

    Raises:
        UserError: the other axis has no such label (the nearest is named), or both axes have erased labels.
    """
    if not name:
        return ""
    if len(axes) != 1:
        raise UserError(f"--only {name} needs edits that erase styles alone or objects alone; these erase both, so audit them one by one.")
    cross = cross_axis(axes[0])
    labels_by_name = {
        name.lower(): label for label, phrase in suite.phrases(cross).items() for name in (label, phrase, phrase.removeprefix("a "))
    }
    if name.lower() not in labels_by_name:
        raise unknown_value_error(f"{cross} for --only in suite {suite.name}", name, labels_by_name)
    return labels_by_name[name.lower()]


def restrict_to_cell(cases: Sequence[Case], suite: Suite, axis: Axis, targets: Sequence[str], only: str) -> list[Case]:
    """Restrict rephrased and neighbor cases to the cell that should be erased; the grid stays whole, to show what else was lost.

    The cell gets as many images as all of the target's cells would have had together, so that a gate can still be decided. Replayed prompts
    do not name a label of the other axis; they are taken to ask for the cell.

    Args:
        only: label of the other axis; empty: no restriction.
    """
    if not only:
        return list(cases)
    cell_count, selected = len(suite.phrases(cross_axis(axis))), []
    for case in cases:
        cross_label = case.object if axis == "style" else case.style
        if case.role == "replayed":
            selected.append(replace(case, object=only) if axis == "style" else replace(case, style=only))
        elif case.role in (*REPHRASED_ROLES, "neighbor") and cross_label == only:
            selected.append(replace(case, count=cell_count * case.count))
        elif case.role == "grid":
            selected.append(replace(case, count=cell_count * case.count) if is_erasure_target(vars(case), axis, targets, only) else case)
        elif case.role == "benign":
            selected.append(case)
    return selected


def describe_only(result: Mapping[str, Any]) -> str:
    """Return words that follow a concept and say where it was erased; empty if everywhere."""
    only = only_of(result)
    return f" {'on' if result['axis'] == 'style' else 'in'} “{only}”" if only else ""
