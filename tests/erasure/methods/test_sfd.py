"""SFD: the SiD loss against its simplified form, one-step generation, adapters that leave no trace, the pipeline."""

from pathlib import Path

import pytest
import torch

from erasure.concept import Concept
from erasure.edits import Edit, apply_edits
from erasure.erasing import erase
from erasure.errors import UserError
from erasure.export import to_folder
from erasure.families.stable_diffusion import StableDiffusion
from erasure.methods.sfd import SFD
from erasure.training.adapters import activate_adapter, add_adapters, load_factors
from erasure.training.one_step import OneStepPipeline, sid_loss
from tests import tiny
from tests.factories import CAT, SMALL_FIELDS


def test_the_sid_loss_and_its_simplified_form() -> None:
    torch.manual_seed(0)
    x_g, f_phi, f_psi = (torch.randn(3, 4, 8, 8) for _ in range(3))
    omega = (x_g - f_phi).abs().flatten(1).mean(1)
    simplified = ((f_phi - f_psi) * (f_psi - x_g)).flatten(1).sum(1) / omega
    assert torch.allclose(sid_loss(x_g, f_phi, f_psi, 1.0), simplified, rtol=1e-4, atol=1e-3)
    other = ((1 - 0.6) * (f_phi - f_psi).square() + (f_phi - f_psi) * (f_psi - x_g)).flatten(1).sum(1) / omega
    assert torch.allclose(sid_loss(x_g, f_phi, f_psi, 0.6), other, rtol=1e-4, atol=1e-3)
    assert torch.equal(sid_loss(x_g, f_phi, f_phi, 1.2), torch.zeros(3))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_one_step_computes_x_0_from_one_prediction(prediction: str) -> None:
    model = StableDiffusion(tiny.pipeline(prediction), "tiny", "fp32")
    z, cond = model.sample_noise([1, 2]), model.encode(["a", "b"])
    abar = model.schedule.scheduler.alphas_cumprod[625]
    x_in = (1 - abar).sqrt() * z
    with torch.no_grad():
        prediction_of_unet = model.pipe.unet(x_in, torch.tensor([625, 625]), cond.sequence).sample
        x_0 = model.sample_one_step(z, cond, 625)
    expected = (
        (x_in - (1 - abar).sqrt() * prediction_of_unet) / abar.sqrt()
        if prediction == "epsilon"
        else abar.sqrt() * x_in - (1 - abar).sqrt() * prediction_of_unet
    )
    assert torch.allclose(x_0, expected, atol=1e-4)


def test_adapters_start_as_nothing_and_leave_nothing(model: StableDiffusion) -> None:
    before = {n: p.detach().clone() for n, p in model.parameters().items()}
    base = model.sample(["a cat"], [1], steps=2)
    with add_adapters(model, "full", 2, ("one", "two")) as sets:
        assert torch.equal(model.sample(["a cat"], [1], steps=2), base)
        load_factors(sets["one"], {n: torch.randn_like(p) for n, p in sets["one"].items()})
        assert torch.equal(model.sample(["a cat"], [1], steps=2), base)
        with activate_adapter(model, "one", sets):
            one = model.sample(["a cat"], [1], steps=2)
        with activate_adapter(model, "two", sets):
            assert torch.allclose(model.sample(["a cat"], [1], steps=2), base, atol=1e-5)
        assert all(p.requires_grad for s in sets.values() for p in s.values())
        factors = {n: p.detach().clone() for n, p in sets["one"].items()}
    assert not torch.allclose(one, base)
    assert all(torch.equal(p, before[n]) for n, p in model.parameters().items())
    assert torch.equal(model.sample(["a cat"], [1], steps=2), base)
    name = next(iter(factors)).partition("::")[0]
    assert name in before


def test_the_generator_and_the_fake_score_get_gradients_of_their_own(model: StableDiffusion, tmp_path: Path) -> None:
    edit = erase(model, CAT, SFD(**SMALL_FIELDS["sfd"]), out=tmp_path / "run")
    assert all(name.endswith(("::up", "::down")) and name.startswith("unet.") for name in edit.tensors)
    assert any(t.any() for n, t in edit.tensors.items() if n.endswith("::up"))
    with apply_edits(model, [edit]):
        assert torch.equal(model.sample(["a cat"], [1], steps=2), model.sample(["a cat"], [1], steps=9))


def test_recomputing_activations_is_refused(model: StableDiffusion, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="switches adapters"):
        erase(model, CAT, SFD(**SMALL_FIELDS["sfd"]), out=tmp_path / "run", gradient_checkpointing=True)


def test_pretraining_happens_once(model: StableDiffusion, tmp_path: Path) -> None:
    erase(model, CAT, SFD(**SMALL_FIELDS["sfd"]), out=tmp_path / "a")
    first_cost = model.cost.unet_backwards
    erase(model, [Concept(name="dog", kind="object", prompts=("{}",))], SFD(**SMALL_FIELDS["sfd"]), out=tmp_path / "b")
    assert model.cost.unet_backwards - first_cost == 2 * 14


def test_the_pipeline_generates_what_the_edit_generates(model: StableDiffusion, tmp_path: Path) -> None:
    edit = erase(model, CAT, SFD(**SMALL_FIELDS["sfd"]), out=tmp_path / "run")
    to_folder(model, edit, tmp_path / "folder")
    with apply_edits(model, [Edit.load(tmp_path / "run")]):
        expected = model.sample(["a cat"], [3])
    pipe = OneStepPipeline.from_pretrained(tmp_path / "folder", safety_checker=None)
    latents = pipe(["a cat"], latents=model.sample_noise([3]), output_type="latent")
    assert torch.allclose(latents, expected, atol=0.05)
    assert pipe("a cat").__class__ is list
    assert pipe("a cat")[0].size == (16, 16)
