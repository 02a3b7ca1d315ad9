"""Fixtures of the tests of commands."""

import shutil
from pathlib import Path

import pytest

from erasure.concept import Concept
from erasure.erasing import erase
from erasure.loading.loader import load_model
from erasure.methods.uce import UCE
from tests import tiny


@pytest.fixture(scope="module")
def pocket_sized_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline whose images have pocket's size."""
    return tiny.save_pipeline(tmp_path_factory.mktemp("base") / "tiny", size=16, levels=3)


@pytest.fixture(scope="module")
def saved_edit(pocket_sized_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An edit of neon on it."""
    out = tmp_path_factory.mktemp("saved-edit") / "edit"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ERASURE_CACHE", str(out.parent / "cache"))
        erase(load_model(str(pocket_sized_base)), [Concept(name="neon", kind="style")], UCE(), out=out)
    return out


@pytest.fixture
def edit(saved_edit: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved_edit, tmp_path / "edit"))
