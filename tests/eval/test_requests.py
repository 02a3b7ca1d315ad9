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
        (None, {}, "edits must be an Edit, a path or a list of these, got None"),
        ([3], {}, r"got \[3\]"),
        ("edit", {"suite": ["pocket"]}, r"suite must be a path, a GridSuite or a PromptListSuite, got \['pocket'\]"),
        ("edit", {"tier": "smok"}, "Did you mean 'smoke'"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(
    pocket_sized_model: StableDiffusion, neon_edit: Edit, tmp_path: Path, edits: Any, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        eval.prepare_audit(pocket_sized_model, tmp_path / "edit" if edits == "edit" else edits, **fields)


def test_a_suite_is_loaded_by_name_or_path() -> None:
    with pytest.raises(UserError, match="name must be a path, got 3"):
        eval.load_suite(3)  # type: ignore[arg-type]
    assert eval.load_suite("pocket").name == "pocket"


def test_a_model_of_another_size_is_told_before_its_concepts(model: StableDiffusion, neon_edit: Edit, tmp_path: Path) -> None:
    """A suite for another model does not have the concept either, but that is not the point."""
    with pytest.raises(UserError, match=r"takes only images of 64x64 pixels, .* choose a suite for this model with --suite, such as sd"):
        eval.prepare_audit(model, neon_edit)


def test_the_model_may_be_its_source(neon_edit: Edit, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not fit this model"):  # so pocket was loaded
        eval.prepare_audit("pocket", neon_edit)
    with pytest.raises(UserError, match=r"model must be what erasure.load_model returns, or a source such as 'pocket', got"):
        eval.prepare_audit(3, neon_edit)  # type: ignore[arg-type]


def test_functions_of_finished_audits_name_a_wrong_type(tmp_path: Path) -> None:
    for call in (eval.load_audit, eval.rewrite_report):
        with pytest.raises(UserError, match="folder must be a path, got None"):
            call(None)  # type: ignore[operator]
    with pytest.raises(UserError, match="concept must be text, got 3"):
        eval.audit_images(tmp_path, 3, out=tmp_path / "out")  # type: ignore[arg-type]
