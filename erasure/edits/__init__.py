"""Edits, under the name by which they are imported; erasure.edits holds how they work."""

from erasure.edits.checks import check_strength, parameters
from erasure.edits.edit import Edit, applied, distinct, revert_all
from erasure.edits.record import FORMAT, EditInfo

__all__ = ["FORMAT", "Edit", "EditInfo", "applied", "check_strength", "distinct", "parameters", "revert_all"]
