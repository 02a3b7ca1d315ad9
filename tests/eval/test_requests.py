"""What a caller gets wrong in a request for an audit is told in one line."""

from pathlib import Path
from typing import Any

import pytest

import eval
from erasure.edits import Edit
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion


@pytest.mark.parametrize(
    ("edits", "fields", "message"),
    [
        (None, {}, r"an edit is what erasure.erase or erasure.Edit.load returns, or the path of one; got a NoneType"),
        ([3], {}, "got a int"),
        ("edit", {"suite": ["pocket"]}, "a suite is a name, the path of a YAML file, or what eval.load_suite returns; got a list"),
        ("edit", {"tier": "smok"}, "Did you mean 'smoke'"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(
    pocket_sized_model: StableDiffusion, neon_edit: Edit, tmp_path: Path, edits: Any, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        eval.prepare_audit(pocket_sized_model, tmp_path / "edit" if edits == "edit" else edits, **fields)


def test_a_suite_is_loaded_by_name_or_path() -> None:
    with pytest.raises(UserError, match="got a int"):
        eval.load_suite(3)  # type: ignore[arg-type]
    assert eval.load_suite("pocket").name == "pocket"


def test_a_model_of_another_size_is_told_before_its_concepts(model: StableDiffusion, neon_edit: Edit, tmp_path: Path) -> None:
    """A suite for another model does not have the concept either, but that is not the point."""
    with pytest.raises(UserError, match=r"takes only images of 64x64 pixels, .* choose a suite for this model with --suite, such as sd"):
        eval.prepare_audit(model, neon_edit)
