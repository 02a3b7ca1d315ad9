"""The public names of edits; the modules of this package hold how they work."""

from erasure.edits.checks import check_strength, parameters_of
from erasure.edits.edit import Edit, apply_edits, check_distinct, revert_all
from erasure.edits.edit_json import EDIT_FORMAT, EditInfo

__all__ = ["EDIT_FORMAT", "Edit", "EditInfo", "apply_edits", "check_distinct", "check_strength", "parameters_of", "revert_all"]
