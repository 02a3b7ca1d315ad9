"""The Stable Diffusion family: prediction, sampling, regions, fingerprint."""

import pytest
import torch

from erasure.config.choices import Region
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from tests import tiny


def test_velocity_is_turned_into_noise(velocity_model: StableDiffusion) -> None:
    x_t, t, cond = torch.randn(3, 4, 8, 8), torch.tensor([1, 400, 999]), velocity_model.encode(["a", "b", ""])
    with torch.no_grad():
        v = velocity_model.pipe.unet(x_t, t, cond.sequence).sample
        eps = velocity_model.predict(x_t, t, cond)
    # x_0 = a x_t - s v and x_t = a x_0 + s eps must agree
    a = velocity_model.schedule.scheduler.alphas_cumprod[t].sqrt().reshape(-1, 1, 1, 1)
    s = (1 - a**2).sqrt()
    assert torch.allclose((x_t - a * (a * x_t - s * v)) / s, eps, atol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_trajectory_is_what_diffusers_samples(prediction: str) -> None:
    model = StableDiffusion(tiny.pipeline(prediction), "tiny", "fp32")
    theirs = model.pipe(["a cat"], num_inference_steps=7, guidance_scale=4.0, latents=model.sample_noise([5]), output_type="latent").images
    assert torch.allclose(model.sample(["a cat"], [5], steps=7, guidance=4.0), theirs, atol=1e-4)


def test_an_image_has_its_own_noise(model: StableDiffusion) -> None:
    assert torch.equal(model.sample_noise([3, 7])[1], model.sample_noise([7])[0])


def test_a_long_caption_keeps_its_end(model: StableDiffusion) -> None:
    tokenizer = model.pipe.tokenizer
    ids = tokenizer(["x " * 200], padding="max_length", max_length=tokenizer.model_max_length, truncation=True).input_ids[0]
    assert len(ids) == tokenizer.model_max_length
    assert ids[-1] == tokenizer.eos_token_id
    assert torch.isfinite(model.encode(["x " * 200]).sequence).all()


@pytest.mark.parametrize(
    ("region", "inside", "outside"),
    [
        ("xattn", "attn2.to_q.weight", "attn1.to_q.weight"),
        ("xattn-kv", "attn2.to_v.weight", "attn2.to_q.weight"),
        ("noxattn", "attn1.to_q.weight", "attn2.to_q.weight"),
        ("selfattn", "attn1.to_out.0.bias", "attn2.to_k.weight"),
        ("ff-out", "ff.net.2.weight", "ff.net.0.proj.weight"),
        ("full", "unet.conv_out.bias", "text_encoder"),
        ("text-encoder", "text_encoder.encoder.layers.0.mlp.fc1.weight", "token_embedding"),
    ],
)
def test_regions(model: StableDiffusion, region: Region, inside: str, outside: str) -> None:
    names = model.parameter_names(region)
    assert any(inside in name for name in names)
    assert not any(outside in name for name in names)


def test_noxattn_leaves_out_time_and_head(model: StableDiffusion) -> None:
    names = model.parameter_names("noxattn")
    assert not any(n.startswith(("unet.time_embedding", "unet.conv_out", "unet.conv_norm_out")) for n in names)
    assert any("time_emb_proj" in n for n in names)


def test_unknown_region_names_the_nearest(model: StableDiffusion) -> None:
    with pytest.raises(UserError, match="Did you mean 'xattn'"):
        model.parameter_names("xatn")


def test_empty_region_lists_the_others(model: StableDiffusion) -> None:
    model.pipe.unet = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"selects no parameter.*full"):
        model.parameter_names("xattn")


def test_the_fingerprint_depends_on_the_weights_and_not_on_their_dtype(model: StableDiffusion) -> None:
    first = model.fingerprint()
    assert StableDiffusion(tiny.pipeline(), "again", "fp32").fingerprint() == first
    assert StableDiffusion(tiny.pipeline(seed=1), "other", "fp32").fingerprint() != first
    model.pipe.to(torch.float16)
    assert model.fingerprint() == first
