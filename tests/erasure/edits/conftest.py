"""Fixtures of the tests of edits."""

from pathlib import Path

import pytest

from tests import tiny
from tests.synthetic_edits import EDIT_KINDS, edit_of_kind


@pytest.fixture(scope="module")
def saved_edits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An edit of every kind, as it is saved."""
    folders, pipe = {kind: tmp_path_factory.mktemp(kind) for kind in EDIT_KINDS}, tiny.pipeline()
    for kind, folder in folders.items():
        edit_of_kind(pipe, kind, layers=2).save(folder)
    return folders
