"""Stable Diffusion 3 against diffusers' own pipeline and independent formulas."""

import pytest
import torch
import torch.nn.functional as F

from erasure.concept import Concept
from erasure.edits import Edit, apply_edits
from erasure.erasing import erase
from erasure.families.stable_diffusion_3 import StableDiffusion3
from erasure.methods.esd import ESD
from tests import tiny_sd3
from tests.factories import ESD_FIELDS

PROMPTS = ["a cat", "a dog on a mat"]


@pytest.fixture(params=[True, False], ids=["t5", "no t5"])
def model(request: pytest.FixtureRequest) -> StableDiffusion3:
    return StableDiffusion3(tiny_sd3.pipeline(t5=request.param), "tiny", "fp32", t5_length=16)


def test_prompts_are_encoded_as_the_pipeline_does(model: StableDiffusion3) -> None:
    embeds, _, pooled, _ = model.pipe.encode_prompt(PROMPTS, PROMPTS, PROMPTS, do_classifier_free_guidance=False, max_sequence_length=16)
    with torch.no_grad():
        cond = model.encode(PROMPTS)
    assert torch.equal(cond.sequence, embeds) and torch.equal(cond.pooled, pooled)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_trajectory_is_what_diffusers_samples(shift: float) -> None:
    model = StableDiffusion3(tiny_sd3.pipeline(shift=shift), "tiny", "fp32", t5_length=16)
    theirs = model.pipe(
        PROMPTS,
        height=16,
        width=16,
        num_inference_steps=7,
        guidance_scale=4.0,
        latents=model.sample_noise([5, 6]),
        output_type="latent",
        max_sequence_length=16,
    ).images
    ours = model.sample(PROMPTS, [5, 6], steps=7, guidance=4.0)
    assert (ours - theirs).abs().max() < 1e-5
    image = model.pipe.vae.decode(theirs / 1.5 + 0.06).sample / 2 + 0.5
    assert (model.decode(ours) - image.clamp(0, 1)).abs().max() < 1e-5


def test_velocity_noise_and_image_are_one(model: StableDiffusion3) -> None:
    x_0, noise, t = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([1.0, 400.0, 1000.0])
    x_t, v = model.add_noise(x_0, noise, t), model.target(x_0, noise)
    assert torch.allclose(model.estimate_x0(x_t, v, t), x_0, atol=1e-5)
    assert torch.allclose(x_t + (1 - t.reshape(-1, 1, 1, 1) / 1000) * v, noise, atol=1e-5)  # eps = x_t + (1 - s) v


def test_soft_tokens_equal_words(model: StableDiffusion3) -> None:
    ids = model.tokenize("a b")
    prefix = model.token_embeddings()[ids]
    assert prefix.shape == (2, 16 + 32)
    with torch.no_grad():
        soft, words = model.encode(["c d"], prefix), model.encode(["a b c d"])
    clip_rows = model.context_length  # T5 never sees soft tokens
    assert torch.allclose(soft.sequence[:, :clip_rows], words.sequence[:, :clip_rows], atol=1e-5)
    assert torch.allclose(soft.pooled, words.pooled, atol=1e-5)


REGION_SIZES = {"xattn": 3 * 6 + 3 * 2 + 2 * 2, "xattn-kv": 12, "text-proj": 2 + 4, "ff-out": 3 * 2 + 2 * 2}


@pytest.mark.parametrize("region", REGION_SIZES)
def test_regions_hold_the_layers_they_name(model: StableDiffusion3, region: str) -> None:
    """The last block has no text output: neither to_add_out nor ff_context."""
    assert len(model.parameter_names(region)) == REGION_SIZES[region]


def test_a_second_image_attention_is_not_text(model: StableDiffusion3) -> None:
    assert any(".attn2." in name for name in model.parameter_names("selfattn"))
    assert not any(".attn2." in name for name in model.parameter_names("xattn"))


def test_esd_trains_velocity_toward_its_target(model: StableDiffusion3, tmp_path) -> None:
    """The target v_n - eta (v_c - v_n) is the noise-space one divided by 1 - s, so both have the same minimum."""
    before = model.fingerprint()
    with torch.no_grad():
        x_t, t = model.sample_noise([1]), torch.tensor([600.0])
        v_c, v_n = (model.predict(x_t, t, model.encode([text])) for text in ("a cat", "a"))
    eps_c, eps_n = (x_t + 0.4 * v for v in (v_c, v_n))
    v_target, eps_target = v_n - 1.0 * (v_c - v_n), eps_n - 1.0 * (eps_c - eps_n)
    assert torch.allclose(x_t + 0.4 * v_target, eps_target, atol=1e-5)
    assert torch.allclose(F.mse_loss(x_t + 0.4 * v_c, eps_target), 0.4**2 * F.mse_loss(v_c, v_target), rtol=1e-4)
    edit = erase(model, Concept(name="cat", kind="object", prompts=("a {} | a",)), ESD(**ESD_FIELDS), out=tmp_path / "run")
    assert model.fingerprint() == before and edit.moved_parameters() == set(model.parameter_names("xattn"))
    plain = model.sample(PROMPTS, [1, 2], steps=3)
    with apply_edits(model, [Edit.load(tmp_path / "run")]):
        assert not torch.equal(model.sample(PROMPTS, [1, 2], steps=3), plain)
    assert torch.equal(model.sample(PROMPTS, [1, 2], steps=3), plain)
