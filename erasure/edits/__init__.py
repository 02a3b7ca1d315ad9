"""Edits, under the name by which they are imported; erasure.edits holds how they work."""

from erasure.edits.checks import check_strength, parameters_of
from erasure.edits.edit import Edit, apply_edits, check_distinct, revert_all
from erasure.edits.edit_json import EDIT_FORMAT, EditInfo

__all__ = ["EDIT_FORMAT", "Edit", "EditInfo", "applied", "check_strength", "distinct", "parameters", "revert_all"]
