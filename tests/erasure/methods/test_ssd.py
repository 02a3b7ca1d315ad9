"""SSD: importance of single samples, the share that is dampened, and by how much."""

from pathlib import Path

import pytest
import torch

from erasure.config.seeds import derive_seed
from erasure.edits import apply_edits
from erasure.erasing import erase
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from erasure.methods.base import unfreeze
from erasure.methods.ssd import SSD, dampening_factors, importance, relative_importance, sample_loss
from erasure.training.fill_cache import load_or_fill
from tests.factories import CAT, small_method


def small_ssd(**fields: float) -> SSD:
    method = small_method("ssd", **fields)
    assert isinstance(method, SSD)
    return method


def test_importance_is_the_mean_of_squared_gradients_of_single_samples(model: StableDiffusion) -> None:
    cache = load_or_fill(model, small_ssd().query(CAT, seed=0))
    (name, *_) = model.parameter_names("xattn-kv")
    with unfreeze(model, [name]) as parameters:
        measured = importance(model, cache, "erase", parameters, seed=5)[name]
        squares = []
        for i in cache.latent_rows("erase").tolist():
            (gradient,) = torch.autograd.grad(sample_loss(model, cache, i, derive_seed(5, i)), [parameters[name]])
            squares.append(gradient.square())
    assert torch.allclose(measured, torch.stack(squares).mean(0), rtol=1e-4)
    assert measured.sum() > 0


def test_selected_weights_shrink_by_their_relative_importance_and_no_other_moves() -> None:
    concept, rest = torch.tensor([4.0, 4.0, 1.0, 9.0]), torch.tensor([1.0, 100.0, 1.0, 0.0])
    mask = torch.tensor([True, True, False, True])
    assert dampening_factors(concept, rest, mask, 0.5).tolist() == [0.125, 1.0, 1.0, 0.0]


def test_the_ranking_is_by_the_ratio() -> None:
    ratio = relative_importance({"a": torch.tensor([1.0, 2.0, 0.0])}, {"a": torch.tensor([2.0, 1.0, 0.0])})["a"]
    assert ratio[1] > ratio[0] > ratio[2] == 0 and torch.isfinite(ratio).all()
    assert ratio[1].item() == pytest.approx(2.0, rel=1e-4)


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_about_the_share_of_the_weights_becomes_smaller(model: StableDiffusion, tmp_path: Path, share: float) -> None:
    before = {name: p.detach().clone() for name, p in model.parameters().items()}
    edit = erase(model, CAT, small_ssd(share=share), out=tmp_path / "run")
    with apply_edits(model, [edit]):
        moved = total = 0
        for name in model.parameter_names("full"):
            value = model.parameters()[name].detach()
            changed = (value - before[name]).abs() > 2e-3 * before[name].abs() + 1e-6  # more than fp16 rounds
            assert (value[changed].abs() < before[name][changed].abs()).all()
            moved, total = moved + int(changed.sum()), total + value.numel()
    assert 0.2 * share < moved / total <= 1.02 * share  # some of the selected have a factor of nearly one


@pytest.mark.parametrize(("fields", "complaint"), [({"share": 0.0}, "--share"), ({"dampening": -1.0}, "--dampening")])
def test_wrong_fields_are_refused(fields: dict[str, float], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        SSD(**fields)  # type: ignore[arg-type]
