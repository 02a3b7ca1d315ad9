"""The public names of edits; the modules of this package hold how they work."""

from erasure.edits.checks import parameters_of
from erasure.edits.edit import Edit, EditSource, apply_edits, check_distinct, load_edits, revert_all
from erasure.edits.edit_json import EDIT_FORMAT, EditInfo

__all__ = [
    "EDIT_FORMAT",
    "Edit",
    "EditInfo",
    "EditSource",
    "apply_edits",
    "check_distinct",
    "load_edits",
    "parameters_of",
    "revert_all",
]
