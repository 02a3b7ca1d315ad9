"""UCE against the paper's printed formula."""

from pathlib import Path

import pytest
import torch

from erasure.concept import Concept
from erasure.edits import apply_edits
from erasure.erasing import erase
from erasure.errors import UserError
from erasure.export import to_lora
from erasure.families.stable_diffusion import StableDiffusion
from erasure.methods.uce import UCE, low_rank_factors

CAT = Concept(name="cat", kind="object", prompts=("{}", "a {} on grass"), anchor="dog")


def test_the_shift_is_the_papers_closed_form() -> None:
    torch.manual_seed(0)
    d, out = 12, 7
    w0, c, g, p = torch.randn(out, d).double(), torch.randn(4, d).double(), torch.randn(4, d).double(), torch.randn(9, d).double()
    method = UCE(regularization=0.3, erase_weight=1.7, retain_weight=0.4)
    eye = torch.eye(d, dtype=torch.float64)
    left = 0.3 * w0 + 1.7 * sum(torch.outer(w0 @ g[i], c[i]) for i in range(4)) + 0.4 * sum(torch.outer(w0 @ p[j], p[j]) for j in range(9))
    right = 0.3 * eye + 1.7 * sum(torch.outer(x, x) for x in c) + 0.4 * sum(torch.outer(x, x) for x in p)
    assert torch.allclose(w0 @ (eye + method.update_matrix(c, g, p)), left @ torch.linalg.inv(right), atol=1e-9)


def test_nothing_to_erase_or_the_concept_as_its_own_guide_changes_nothing() -> None:
    c, p = torch.randn(3, 8), torch.randn(5, 8)
    assert torch.allclose(UCE(erase_weight=0.0).update_matrix(c, torch.randn(3, 8), p), torch.zeros(8, 8, dtype=torch.float64))
    assert torch.allclose(UCE().update_matrix(c, c, p), torch.zeros(8, 8, dtype=torch.float64), atol=1e-12)


def test_the_factors_are_exact() -> None:
    matrix = torch.randn(20, 3).double() @ torch.randn(3, 20).double()
    left, right = low_rank_factors(matrix)
    assert left.shape == (20, 3)
    assert torch.allclose(left @ right, matrix, atol=1e-10)


@pytest.mark.parametrize("tokens", ["last", "tail"])
def test_the_edited_matrices_send_the_concept_to_its_guide(model: StableDiffusion, tmp_path: Path, tokens: str) -> None:
    method = UCE(tokens=tokens, regularization=1e-4)  # type: ignore[arg-type]
    erase_, guide, _ = method.encode_rows(model, [CAT])["sequence"]
    before = {n: model.parameters()[n].detach().double() for n in model.parameter_names("xattn-kv")}
    edit = erase(model, [CAT], method, out=tmp_path / "run")
    with apply_edits(model, [edit]):
        for name, w0 in before.items():
            w = model.parameters()[name].detach().double()
            moved = (w @ erase_.T - w0 @ guide.T).norm() / (w0 @ (erase_ - guide).T).norm()
            assert moved < (0.05 if tokens == "last" else 0.5)


def test_positions_are_those_of_the_words(model: StableDiffusion) -> None:
    tokenizer = model.pipe.tokenizer
    ids = tokenizer("a cat on grass").input_ids
    (last,) = UCE.last_token_positions(model, "a {} on grass", "cat")
    assert tokenizer.decode([ids[last]]).strip() == "t"
    assert UCE.last_token_positions(model, "{}", "") == (0,)


def test_retained_prompts_move_less(model: StableDiffusion) -> None:
    plain, retaining = (
        UCE(probe_prompts=("a house",)),
        UCE(probe_prompts=("a house",), retain_prompts=("a house", "a boat"), retain_weight=100.0),
    )
    sizes = [dict(m.solve(model, [CAT], 0).notes["collateral"])["a house"] for m in (plain, retaining)]
    assert sizes[1] < 0.2 * sizes[0]


def test_the_lora_is_exact(model: StableDiffusion, tmp_path: Path) -> None:
    edit = erase(model, [CAT], UCE(), out=tmp_path / "run")
    assert to_lora(model, edit, tmp_path / "lora").error == pytest.approx(0, abs=1e-6)
    with apply_edits(model, [edit]):
        expected = model.sample(["a cat"], [1], steps=3)
    model.pipe.load_lora_weights(str(tmp_path / "lora"))
    assert torch.allclose(model.sample(["a cat"], [1], steps=3), expected, atol=1e-3)


def test_a_regularization_of_zero_is_refused() -> None:
    with pytest.raises(UserError, match="--regularization"):
        UCE(regularization=0.0)


def test_the_edit_is_small(model: StableDiffusion, tmp_path: Path) -> None:
    edit = erase(model, [CAT], UCE(), out=tmp_path / "run")
    rank = edit.info.notes["rank"]
    assert rank <= 2
    assert all(t.shape[1] == rank for n, t in edit.tensors.items() if n.endswith("::up"))
