"""One edit: apply, revert, strength, save and load."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from erasure.edits import Edit, parameters_of
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from tests import tiny
from tests.synthetic_edits import random_edit


def values(model: StableDiffusion) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in parameters_of(model.pipe).items()}


def test_apply_puts_the_stored_values_in_place_and_revert_takes_them_out(model: StableDiffusion) -> None:
    before, edit = values(model), random_edit(model)
    edit.apply(model.pipe)
    after = values(model)
    assert all(torch.equal(after[n], edit.tensors[n].float()) for n in edit.tensors)
    assert all(torch.equal(after[n], before[n]) for n in before if n not in edit.tensors)
    edit.revert(model.pipe)
    assert all(torch.equal(v, before[n]) for n, v in values(model).items())


def test_strengths_and_stacks_add_up(model: StableDiffusion) -> None:
    before, a, b = values(model), random_edit(model, "xattn", 1), random_edit(model, "xattn-kv", 2)
    a.apply(model.pipe, strength=0.5)
    b.apply(model.pipe, strength=2.0)
    for name, value in values(model).items():
        expected = before[name]
        expected = expected + (0.5 * (a.tensors[name].float() - before[name]) if name in a.tensors else 0)
        expected = expected + (2.0 * (b.tensors[name].float() - before[name]) if name in b.tensors else 0)
        assert torch.allclose(value, expected, atol=1e-5)
    a.revert(model.pipe)
    b.revert(model.pipe)
    assert all(torch.equal(v, before[n]) for n, v in values(model).items())


def test_strength_zero_is_the_base(model: StableDiffusion) -> None:
    before = values(model)
    random_edit(model).apply(model.pipe, strength=0.0)
    assert all(torch.equal(v, before[n]) for n, v in values(model).items())


def test_save_and_load_give_the_same_edit_and_the_same_bytes(model: StableDiffusion, tmp_path: Path) -> None:
    edit = random_edit(model)
    edit.save(tmp_path / "a")
    again = Edit.load(tmp_path / "a")
    again.save(tmp_path / "b")
    assert all(torch.equal(again.tensors[n], t) for n, t in edit.tensors.items())
    assert (tmp_path / "a" / "edit.safetensors").read_bytes() == (tmp_path / "b" / "edit.safetensors").read_bytes()
    assert again.digest() == edit.digest()
    assert again.info.fields == asdict(edit.info)["fields"]


def test_another_base_is_refused_without_other_base(model: StableDiffusion) -> None:
    edit, other = random_edit(model), StableDiffusion(tiny.pipeline(seed=3), "other", "fp32")
    with pytest.raises(UserError, match=r"another base.*--other-base, in Python other_base=True, applies"):
        edit.apply(other.pipe)
    edit.apply(other.pipe, other_base=True)
    assert all(torch.equal(values(other)[n], t.float()) for n, t in edit.tensors.items())


def test_other_shapes_are_always_refused(model: StableDiffusion) -> None:
    wide = StableDiffusion(tiny.pipeline(width=24), "wide", "fp32")
    with pytest.raises(UserError, match="does not fit"):
        random_edit(model).apply(wide.pipe, other_base=True)


def test_a_second_edit_may_be_applied_while_the_first_is(model: StableDiffusion) -> None:
    random_edit(model, seed=1).apply(model.pipe)
    random_edit(model_copy := StableDiffusion(tiny.pipeline(), "tiny", "fp32"), seed=2).apply(model.pipe)
    assert model_copy.fingerprint() != model.fingerprint()


def test_broken_files_are_named(model: StableDiffusion, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no edit at"):
        Edit.load(tmp_path)
    random_edit(model).save(tmp_path)
    file = tmp_path / "edit.safetensors"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match="broken edit"):
        Edit.load(tmp_path)
