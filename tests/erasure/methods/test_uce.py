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
from erasure.methods.uce import UCE, ClosedFormRows, low_rank_factors

CAT = Concept(name="cat", kind="object", prompts=("{}", "a {} on grass"), anchor="dog")


def rows_of(c: torch.Tensor, g: torch.Tensor, p: torch.Tensor, held: torch.Tensor | None = None) -> ClosedFormRows:
    return ClosedFormRows(c, g, p, c[:0] if held is None else held)


def random_rows(count: int = 3, retained: int = 4, held: int = 1, width: int = 12) -> ClosedFormRows:
    generator = torch.Generator().manual_seed(0)
    c, g, p, q = (torch.randn(n, width, generator=generator, dtype=torch.float64) for n in (count, count, retained, held))
    return ClosedFormRows(c, g, p, q)


def projector_of(method: UCE, rows: ClosedFormRows) -> torch.Tensor:
    """Pi by its definition: the complement of the frequent directions of the retained rows and of the held ones."""
    values, vectors = torch.linalg.eigh(rows.retain.T @ rows.retain / len(rows.retain))
    kept = torch.cat([vectors[:, values >= method.project], rows.held.T], 1)
    return torch.eye(len(kept), dtype=torch.float64) - kept @ torch.linalg.pinv(kept)


def test_the_shift_is_the_papers_closed_form() -> None:
    torch.manual_seed(0)
    d, out = 12, 7
    w0, c, g, p = torch.randn(out, d).double(), torch.randn(4, d).double(), torch.randn(4, d).double(), torch.randn(9, d).double()
    method = UCE(regularization=0.3, erase_weight=1.7, retain_weight=0.4)
    eye = torch.eye(d, dtype=torch.float64)
    left = 0.3 * w0 + 1.7 * sum(torch.outer(w0 @ g[i], c[i]) for i in range(4)) + 0.4 * sum(torch.outer(w0 @ p[j], p[j]) for j in range(9))
    right = 0.3 * eye + 1.7 * sum(torch.outer(x, x) for x in c) + 0.4 * sum(torch.outer(x, x) for x in p)
    assert torch.allclose(w0 @ (eye + method.update_matrix(rows_of(c, g, p))), left @ torch.linalg.inv(right), atol=1e-9)


def test_nothing_to_erase_or_the_concept_as_its_own_guide_changes_nothing() -> None:
    c, p = torch.randn(3, 8), torch.randn(5, 8)
    assert UCE(erase_weight=1e-12).update_matrix(rows_of(c, torch.randn(3, 8), p)).abs().max() < 1e-10
    assert torch.allclose(UCE().update_matrix(rows_of(c, c, p)), torch.zeros(8, 8, dtype=torch.float64), atol=1e-12)


def test_the_factors_are_exact() -> None:
    matrix = torch.randn(20, 3).double() @ torch.randn(3, 20).double()
    left, right = low_rank_factors(matrix)
    assert left.shape == (20, 3)
    assert torch.allclose(left @ right, matrix, atol=1e-10)


@pytest.mark.parametrize("tokens", ["last", "tail"])
def test_the_edited_matrices_send_the_concept_to_its_guide(model: StableDiffusion, tmp_path: Path, tokens: str) -> None:
    method = UCE(tokens=tokens, regularization=1e-4)  # type: ignore[arg-type]
    erase_, guide, _, _ = method.encode_rows(model, [CAT])["sequence"]
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


def test_rows_that_outweigh_the_regularization_are_refused() -> None:
    rows = random_rows()
    huge = rows._replace(erase=1e12 * rows.erase, retain=rows.retain[:0])
    with pytest.raises(UserError, match=r"no stable solution.*Raise --regularization"):
        UCE(retain_weight=0.0).update_matrix(huge)


def test_the_edit_is_small(model: StableDiffusion, tmp_path: Path) -> None:
    edit = erase(model, [CAT], UCE(), out=tmp_path / "run")
    rank = edit.info.notes["rank"]
    assert rank <= 2
    assert all(t.shape[1] == rank for n, t in edit.tensors.items() if n.endswith("::up"))


def test_what_is_projected_or_held_does_not_move() -> None:
    rows = random_rows()
    method = UCE(project=1e-6, retain_weight=0.0)
    update = method.update_matrix(rows)
    assert (update @ torch.cat([rows.retain, rows.held]).T).abs().max() < 1e-12
    assert (update @ rows.erase.T).norm() > 0.1
    rare = UCE(project=float(torch.linalg.eigvalsh(rows.retain.T @ rows.retain / 4)[-2]), retain_weight=0.0)
    assert rare.kept_basis(rows).shape[1] == 3  # two directions at or above that eigenvalue, and the held row
    assert method.kept_basis(rows).shape[1] == 5


def test_the_projected_form_is_the_best_edit_that_keeps_the_span() -> None:
    """Among all K with K B = 0, it has the least lambda |K|^2 + e |(I + K) c - g|^2 + s |K p|^2: the gradient has no free part."""
    rows, method = random_rows(retained=9), UCE(project=1.0, erase_weight=1.7, retain_weight=0.4, regularization=0.3)
    update, free = method.update_matrix(rows).requires_grad_(), projector_of(method, rows)
    loss = 0.3 * update.square().sum() + 1.7 * (rows.erase @ (torch.eye(12) + update).T - rows.guide).square().sum()
    (gradient,) = torch.autograd.grad(loss + 0.4 * (rows.retain @ update.T).square().sum(), update)
    assert (gradient @ free).abs().max() < 1e-10 < (gradient.abs().max())


def test_speeds_and_double_projections_formulas_are_settings_of_it() -> None:
    rows = random_rows()
    speed = UCE(project=1e-6, retain_weight=0.0, regularization=1.0)
    free, c, g = projector_of(speed, rows), rows.erase.T, rows.guide.T  # columns, as both papers write
    printed = (g - c) @ c.T @ free @ torch.linalg.inv(c @ c.T @ free + torch.eye(12))
    assert torch.allclose(speed.update_matrix(rows), printed, atol=1e-10)
    rows = random_rows(count=1)
    double = UCE(project=1e-6, retain_weight=0.0, regularization=1e-9, guide="retained")
    span = rows.retain.T
    guide = span @ torch.linalg.inv(span.T @ span) @ span.T @ rows.erase[0]
    direction = projector_of(double, rows) @ rows.erase[0]
    printed = torch.outer(guide - rows.erase[0], direction) / direction.square().sum()
    assert torch.allclose(double.update_matrix(rows), printed, atol=1e-6)


def test_an_invertible_edit_is_undone_by_an_embedding() -> None:
    """RECE's revival x = (sum W'^T W')^-1 sum W'^T W c is (I + K)^-1 c, whatever the matrices are, so its rounds do not defend."""
    rows, weights = random_rows(), [torch.randn(20, 12, dtype=torch.float64) for _ in range(3)]
    inverse_of = torch.eye(12) + UCE().update_matrix(rows)
    edited = [w @ inverse_of for w in weights]
    revived = torch.linalg.solve(sum(e.T @ e for e in edited), sum(e.T @ w for e, w in zip(edited, weights, strict=True)) @ rows.erase[0])  # type: ignore[arg-type]
    assert torch.allclose(revived, torch.linalg.solve(inverse_of, rows.erase[0]), atol=1e-8)


def test_where_nothing_is_free_it_says_what_to_change() -> None:
    rows = random_rows(retained=40)
    with pytest.raises(UserError, match=r"keep 12 of 12 directions.*Raise --project"):
        UCE(project=1e-9).update_matrix(rows)
    with pytest.raises(UserError, match="--guide retained needs --retain-prompts"):
        UCE(guide="retained").update_matrix(random_rows(retained=0))
    for fields, complaint in (
        ({"project": -1.0}, "--project must not be negative"),
        ({"erase_weight": 0.0}, "--erase-weight must be positive, got 0; with 0 nothing is erased"),
        ({"retain_weight": -1.0}, "--retain-weight must not be negative"),
    ):
        with pytest.raises(UserError, match=complaint):
            UCE(**fields)


@pytest.mark.parametrize(("hold", "kept"), [("nothing", 0), ("start", 1), ("empty", 16)])
def test_held_rows_are_those_of_the_empty_prompt(model: StableDiffusion, tmp_path: Path, hold: str, kept: int) -> None:
    method = UCE(hold=hold, probe_prompts=())  # type: ignore[arg-type]
    rows = method.encode_rows(model, [CAT])["sequence"]
    assert len(rows.held) == kept
    edit = erase(model, [CAT], method, out=tmp_path / "run")
    assert (edit.info.notes["free"] == 1) == (hold == "nothing") and 0 < edit.info.notes["remaining"] < 1
    name, start = model.parameter_names("xattn-kv")[0], model.encode([""]).sequence[0, 0]
    before = model.parameters()[name].detach() @ start
    with apply_edits(model, [edit]):
        moved = (model.parameters()[name].detach() @ start - before).norm() / before.norm()
    assert (moved < 1e-3) == (hold != "nothing")
