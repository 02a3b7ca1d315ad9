"""Stable Diffusion 3 against diffusers' own pipeline and independent formulas."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from erasure.concept import Concept
from erasure.edits import Edit, apply_edits
from erasure.erasing import erase
from erasure.families.sampling import GuidanceEdit
from erasure.families.stable_diffusion_3 import StableDiffusion3
from erasure.methods.base import TrainingContext
from erasure.methods.esd import ESD
from erasure.methods.negative_prompt import NegativePrompt
from erasure.training.fill_cache import load_or_fill
from tests import tiny_sd3
from tests.factories import ESD_FIELDS

PROMPTS = ["a cat", "a dog on a mat"]
CAT = Concept(name="cat", kind="object", prompts=("a {} | a",))


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
    x_t, v = model.add_noise(x_0, noise, t), model.schedule.target(x_0, noise)
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


def test_the_negative_prompt_is_the_pipelines(model: StableDiffusion3) -> None:
    sizes = {"height": 16, "width": 16, "num_inference_steps": 5, "max_sequence_length": 16}
    noise, method = model.sample_noise([5, 6]), NegativePrompt()
    theirs = model.pipe(PROMPTS, negative_prompt=["hen"] * 2, guidance_scale=4.0, latents=noise, output_type="latent", **sizes).images
    with torch.no_grad():
        cond, uncond = model.encode(PROMPTS), model.encode([""]).expand(2)
    *_, last = model.trajectory(noise, cond, uncond, 5, 4.0, [GuidanceEdit("hen", method.guide)])
    assert (last.x_next - theirs).abs().max() < 1e-5
    *_, plain = model.trajectory(noise, cond, uncond, 5, 4.0)
    assert (plain.x_next - theirs).abs().max() > 1e-3


@pytest.mark.parametrize("eta", [1.0, 2.5])
def test_esds_loss_is_its_equation_in_noise_weighted_by_time(model: StableDiffusion3, eta: float) -> None:
    """With eps = x_t + (1 - s) v, the loss in noise is (1 - s)^2 times that of the velocities."""
    method = ESD(**{**ESD_FIELDS, "negative_guidance": eta})  # type: ignore[arg-type]
    cache = load_or_fill(model, method.query([CAT], seed=0))
    for index in cache.rows("erase")[::5]:
        rows = cache.gather_batch(index[None], model.device)
        with torch.no_grad():
            loss = method.loss(TrainingContext(model, cache, model.encode), rows)
            weight = 1 - rows.t / 1000
            eps, eps_c, eps_n = (
                rows.x_t + weight * v
                for v in (model.predict(rows.x_t, rows.t, model.encode(rows.prompts)), rows.pred_cond, rows.pred_neutral)
            )
        if weight > 0:  # at pure noise, noise says nothing
            assert torch.allclose(F.mse_loss(eps, eps_n - eta * (eps_c - eps_n)) / weight**2, loss, rtol=1e-3)


def test_esd_moves_its_region_and_is_reverted_bit_for_bit(model: StableDiffusion3, tmp_path: Path) -> None:
    before = model.fingerprint()
    edit = erase(model, CAT, ESD(**ESD_FIELDS), out=tmp_path / "run")
    assert model.fingerprint() == before and edit.moved_parameters() == set(model.parameter_names("xattn"))
    plain = model.sample(PROMPTS, [1, 2], steps=3)
    with apply_edits(model, [Edit.load(tmp_path / "run")]):
        assert not torch.equal(model.sample(PROMPTS, [1, 2], steps=3), plain)
    assert torch.equal(model.sample(PROMPTS, [1, 2], steps=3), plain)
