"""Several edits in one pipeline: order, sequential erasure, overlap."""

from pathlib import Path

import pytest
import torch

from erasure.concept import Concept
from erasure.edits import Edit, apply_edits
from erasure.edits.overlap import measure_overlap
from erasure.erasing import erase
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from erasure.methods.esd import ESD
from erasure.methods.fia import FIA
from erasure.methods.uce import UCE
from tests import tiny

CAT, DOG = ([Concept(name=name, kind="object", prompts=("{}", "a {} at night | night"))] for name in ("cat", "dog"))
SMALL = ESD(steps=6, batch=2, trajectories=4, trajectory_steps=4, lr=1e-3, region="xattn-kv")


def values(model: StableDiffusion) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.parameters().items()}


def test_an_edit_on_an_edit_counts_from_it(model: StableDiffusion, tmp_path: Path) -> None:
    base = values(model)
    first = erase(model, CAT, SMALL, out=tmp_path / "a")
    second = erase(model, DOG, SMALL, out=tmp_path / "b", after=[first])
    assert second.after == [first.digest()]
    assert second.info.base["fingerprint"] == first.info.base["fingerprint"] == model.fingerprint()
    assert all(torch.equal(p, base[n]) for n, p in values(model).items())
    with apply_edits(model, [first, second]):
        for name in second.moved_parameters():
            assert torch.allclose(model.parameters()[name], second.tensors[name].float(), atol=2e-3)
    with apply_edits(model, [first]), pytest.raises(UserError, match="apply that one first"):
        Edit.load(tmp_path / "b").apply(StableDiffusion(tiny.pipeline(), "tiny", "fp32").pipe)


def test_the_lower_edit_stays_until_the_upper_is_reverted(model: StableDiffusion, tmp_path: Path) -> None:
    first = erase(model, CAT, SMALL, out=tmp_path / "a")
    second = erase(model, DOG, SMALL, out=tmp_path / "b", after=[first])
    first.apply(model.pipe)
    second.apply(model.pipe, strength=0.5)
    with pytest.raises(UserError, match="revert that one first"):
        first.revert(model.pipe)
    for name in second.moved_parameters():
        halfway = first.tensors[name].float() + 0.5 * (second.tensors[name].float() - first.tensors[name].float())
        assert torch.allclose(model.parameters()[name], halfway, atol=1e-4)
    second.revert(model.pipe)
    assert all(torch.equal(model.parameters()[n], first.tensors[n].float()) for n in first.moved_parameters())
    first.revert(model.pipe)


def test_a_second_training_sees_the_first(model: StableDiffusion, tmp_path: Path) -> None:
    first = erase(model, CAT, SMALL, out=tmp_path / "a")
    blind = erase(model, DOG, SMALL, out=tmp_path / "b")
    aware = erase(model, DOG, SMALL, out=tmp_path / "c", after=[first])
    assert blind.digest() != aware.digest()
    pairs = measure_overlap(model, [first, blind]), measure_overlap(model, [first, aware])
    assert "neither saw the other" in pairs[0][0]["warning"]
    assert pairs[1][0]["warning"] == ""


def test_overlap_counts_tensors_and_directions(model: StableDiffusion, tmp_path: Path) -> None:
    a = erase(model, CAT, SMALL, out=tmp_path / "a")
    fia = erase(model, DOG, FIA(candidate_fraction=0.1, record_steps=2, trajectory_steps=4), out=tmp_path / "b")
    uce = erase(model, DOG, UCE(probe_prompts=()), out=tmp_path / "c")
    (pair,) = measure_overlap(model, [a, fia])
    assert pair["shared"] == 0 and pair["cosine"] is None
    (pair,) = measure_overlap(model, [a, uce])
    assert pair["shared"] == len(a.moved_parameters() & uce.moved_parameters()) > 0
    x = torch.cat([(a.tensors[n].float() - model.parameters()[n]).flatten() for n in sorted(a.moved_parameters())])
    y = torch.cat([(uce.tensors[n + "::up"].float() @ uce.tensors[n + "::down"].float()).flatten() for n in sorted(uce.moved_parameters())])
    assert pair["cosine"] == pytest.approx(torch.cosine_similarity(x, y, dim=0).item(), abs=1e-4)


def test_stacks_of_different_delta_formats_are_reverted_bit_by_bit(model: StableDiffusion, tmp_path: Path) -> None:
    base = values(model)
    edits = [
        erase(model, CAT, SMALL, out=tmp_path / "a"),
        erase(model, DOG, FIA(candidate_fraction=0.1, record_steps=2, trajectory_steps=4, region="xattn"), out=tmp_path / "b"),
        erase(model, DOG, UCE(probe_prompts=()), out=tmp_path / "c"),
    ]
    with apply_edits(model, edits):
        for name in edits[0].moved_parameters() & edits[1].moved_parameters() & edits[2].moved_parameters():
            flat = model.parameters()[name].flatten()
            assert (flat[edits[1].tensors[name + "::zeroed"].long()] == 0).all()
        in_order = values(model)
    with apply_edits(model, edits[::-1]):
        assert all(torch.allclose(p, in_order[n], atol=1e-6) for n, p in values(model).items())
    assert all(torch.equal(p, base[n]) for n, p in values(model).items())
