"""FIA against its equations, written again with loops."""

import math
from pathlib import Path

import pytest
import torch

from erasure.concept import Concept
from erasure.edits import apply_edits
from erasure.erasing import erase
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from erasure.methods.fia import FIA, LayerSaliency, channel_response, fuse_masks, select_candidates

CAT = Concept(name="cat", kind="object", prompts=("a {} | a thing", "{} at night | night"))
DOG = Concept(name="dog", kind="object", prompts=("a {} | a thing", "{} at night | night"))
SMALL = {"candidate_fraction": 0.1, "record_steps": 2, "trajectory_steps": 4}


def test_saliency_is_equation_1() -> None:
    torch.manual_seed(0)
    w, x = torch.randn(3, 4), torch.randn(10, 4)
    y = x @ w.T
    saliency, wanda = (w.abs() * channel_response(x[None], y[None], kind)[0] for kind in ("full", "wanda"))
    for i in range(3):
        for j in range(4):
            cosine = abs(float(x[:, j] @ y[:, i])) / float(x[:, j].norm() * y[:, i].norm())
            assert saliency[i, j].item() == pytest.approx(abs(w[i, j].item()) * x[:, j].norm().item() * cosine, rel=1e-4)
            assert wanda[i, j].item() == pytest.approx(abs(w[i, j].item()) * x[:, j].norm().item(), rel=1e-4)


@pytest.mark.parametrize("scaled", [False, True])
def test_layer_saliency_is_equations_2_and_3(scaled: bool) -> None:
    torch.manual_seed(1)
    w, method = torch.randn(5, 8), FIA(active_fraction=0.25, scale_saliency=scaled)
    layer_saliency, expected = LayerSaliency(w, method), torch.zeros(5, 8)
    for _ in range(3):
        us: dict[bool, list[torch.Tensor]] = {True: [], False: []}
        for i in range(6):
            x = torch.randn(9, 8) * (1 + i)
            concept = i % 2 == 0
            us[concept].append(w.abs() * channel_response(x[None], (x @ w.T)[None], "full")[0])
            layer_saliency.add_activations(x[None], (x @ w.T)[None], concept)
        layer_saliency.end_timestep()
        c, b = torch.stack(us[True]), torch.stack(us[False])
        s = (c.mean(0) - b.mean(0) - b.std(0, correction=0)).clamp(min=0)
        limit = s.flatten().sort(descending=True).values[10]  # a quarter of 40 entries exceed it
        expected += 0.5 * (s / s.max() if scaled else s) + 0.5 * (s > limit)
    assert torch.allclose(layer_saliency.total, expected, atol=1e-4)


def test_agreement_is_equations_4_to_7() -> None:
    a = torch.rand(10, 50, generator=torch.Generator().manual_seed(2))
    candidates = select_candidates(a, 0.1)
    limit = a.flatten().sort(descending=True).values[50 - 1]
    for i in range(10):
        row_limit = a[i].sort(descending=True).values[5 - 1]
        for j in range(50):
            assert bool(candidates[i, j]) == bool(a[i, j] >= row_limit and a[i, j] >= limit)
    assert not select_candidates(torch.zeros(4, 10), 0.5).any()


def test_the_vote() -> None:
    masks = [{"w": torch.tensor(m).bool()} for m in ([1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0])]
    assert fuse_masks(masks[:1], 0.6)["w"].tolist() == [True, True, True, False]  # one concept: no vote
    assert fuse_masks(masks, 0.6)["w"].tolist() == [False, False, True, False]  # two of three are enough to stay
    assert fuse_masks(masks, 1.0)["w"].tolist() == [False, True, True, False]
    assert math.ceil(0.6 * 3) == 2


def test_one_concept_zeroes_something_and_the_same_twice_nothing(model: StableDiffusion, tmp_path: Path) -> None:
    edit = erase(model, [CAT], FIA(**SMALL), out=tmp_path / "one")  # type: ignore[arg-type]
    assert edit.info.notes["zeroed"] > 0
    assert sum(t.numel() for t in edit.tensors.values()) == edit.info.notes["zeroed"]
    with pytest.raises(UserError, match="selects nothing"):
        FIA(**SMALL).solve(model, [CAT, CAT], 0)  # type: ignore[arg-type]


def test_the_edit_zeroes_and_nothing_else(model: StableDiffusion, tmp_path: Path) -> None:
    before = {n: p.detach().clone() for n, p in model.parameters().items()}
    edit = erase(model, [CAT], FIA(**SMALL), out=tmp_path / "run")  # type: ignore[arg-type]
    with apply_edits(model, [edit]):
        for name, p in model.parameters().items():
            changed = p != before[name]
            assert not changed.any() or name in edit.moved_parameters()
            assert (p[changed] == 0).all()


def test_a_further_concept_costs_only_its_own_saliency(model: StableDiffusion) -> None:
    method = FIA(**SMALL)  # type: ignore[arg-type]
    method.solve(model, [CAT], 0)
    first = model.cost.unet_forwards
    method.solve(model, [CAT, DOG], 0)
    assert model.cost.unet_forwards == 2 * first
    method.solve(model, [DOG, CAT], 0)
    assert model.cost.unet_forwards == 2 * first


def test_two_edits_that_zero_the_same_entries_leave_zeros(model: StableDiffusion, tmp_path: Path) -> None:
    a, b = (erase(model, [c], FIA(**SMALL), out=tmp_path / c.name) for c in (CAT, DOG))  # type: ignore[arg-type]
    before = {n: p.detach().clone() for n, p in model.parameters().items()}
    with apply_edits(model, [a, b]):
        for name in a.moved_parameters() & b.moved_parameters():
            flat = model.parameters()[name].flatten()
            both = torch.cat((a.tensors[name + "::zeroed"], b.tensors[name + "::zeroed"])).long()
            assert (flat[both] == 0).all()
            assert torch.equal(flat != before[name].flatten(), torch.zeros_like(flat).scatter(0, both, 1.0).bool())
    assert all(torch.equal(p, before[n]) for n, p in model.parameters().items())


@pytest.mark.parametrize(
    "fields",
    [{"active_fraction": 0.0}, {"candidate_fraction": 1.5}, {"agnostic_fraction": -1.0}, {"record_steps": 0}, {"record_steps": 60}],
)
def test_fractions_out_of_range_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(UserError, match="--"):
        FIA(**fields)  # type: ignore[arg-type]
