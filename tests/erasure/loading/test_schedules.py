"""Noise schedules are sampled as they are, also at zero terminal SNR."""

import json
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    StableDiffusionPipeline,
)

from erasure.concept import Concept
from erasure.edits.stacking import build_sampling, stack_of
from erasure.erasing import erase
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from erasure.families.supported_models import SCHEDULERS
from erasure.loading.loader import load_model
from erasure.methods.negative_prompt import NegativePrompt
from tests import tiny
from tests.factories import small_method

CAT = [Concept(name="cat", kind="object")]


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_every_scheduler_with_ddims_noise_gives_ddim_the_same_noise(name: str) -> None:
    """Whatever sampler a pipeline comes with: betas, offset and spacing are its own."""
    pipe = tiny.pipeline()
    try:
        pipe.scheduler = getattr(diffusers, name).from_config(
            pipe.scheduler.config, beta_end=0.02, timestep_spacing="linspace", steps_offset=1
        )
    except ImportError as error:  # DPMSolverSDE needs torchsde
        pytest.skip(str(error))
    model = StableDiffusion(pipe, "tiny", "fp32")
    betas = torch.linspace(0.00085**0.5, 0.02**0.5, 1000) ** 2
    assert torch.allclose(model.schedule.alphas_cumprod, (1 - betas).cumprod(0), atol=1e-6)
    assert model.schedule.scheduler.config.timestep_spacing == pipe.scheduler.config.get("timestep_spacing", "leading")
    assert model.schedule.scheduler.config.steps_offset == 1
    assert model.sample(["a cat"], [0], steps=3).isfinite().all()


def test_a_schedule_without_prediction_type_predicts_noise(tmp_path: Path) -> None:
    folder = tiny.save_pipeline(tmp_path)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k not in ("prediction_type", "_class_name")}))
    model = load_model(str(folder), dtype="fp32")
    assert not model.schedule.predicts_v  # type: ignore[attr-defined]
    assert torch.equal(model.sample(["a"], [0], steps=2), StableDiffusion(tiny.pipeline(), "t", "fp32").sample(["a"], [0], steps=2))


def zero_snr_pipeline(spacing: str = "trailing") -> StableDiffusionPipeline:
    pipe = tiny.pipeline("v_prediction")
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, rescale_betas_zero_snr=True, timestep_spacing=spacing)
    return pipe


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_zero_terminal_snr_generates_what_diffusers_generates(spacing: str) -> None:
    model = StableDiffusion(zero_snr_pipeline(spacing), "zero", "fp32")
    assert model.schedule.alphas_cumprod[-1] == 0 and model.schedule.zero_terminal_snr
    theirs = model.pipe(["a cat"], num_inference_steps=5, guidance_scale=4.0, latents=model.sample_noise([5]), output_type="latent").images
    assert theirs.isfinite().all()
    assert torch.allclose(model.sample(["a cat"], [5], steps=5, guidance=4.0), theirs, atol=1e-4)
    first = next(model.trajectory(model.sample_noise([5]), model.encode(["a cat"]), model.encode([""]), 5, 4.0))
    assert (first.t == 999) == (spacing != "leading")
    if first.t == 999:  # all noise, so the prediction is the input
        assert torch.allclose(first.pred_cond, first.x_t) and not torch.allclose(first.x_next, first.x_t, atol=1e-2)


def test_a_trailing_schedule_is_sampled_as_it_is() -> None:
    pipe = tiny.pipeline()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    model = StableDiffusion(pipe, "trailing", "fp32")
    steps = list(model.trajectory(model.sample_noise([5]), model.encode(["a cat"]), model.encode([""]), 5, 4.0))
    assert [step.t for step in steps] == [999, 799, 599, 399, 199]
    theirs = pipe(["a cat"], num_inference_steps=5, guidance_scale=4.0, latents=model.sample_noise([5]), output_type="latent").images
    assert torch.allclose(steps[-1].x_next, theirs, atol=1e-4)


@pytest.mark.parametrize("name", ["esd", "uce", "salun", "fia"])
def test_methods_work_at_zero_terminal_snr(name: str, tmp_path: Path) -> None:
    model = StableDiffusion(zero_snr_pipeline(), "zero", "fp32")
    edit = erase(model, CAT, small_method(name), out=tmp_path)
    assert all(value.isfinite().all() for value in edit.tensors.values())
    text = (tmp_path / "edit.json").read_text() + (tmp_path / "timing.json").read_text()
    assert "NaN" not in text and "Infinity" not in text


def test_what_is_undefined_at_zero_terminal_snr_is_refused(tmp_path: Path) -> None:
    model = StableDiffusion(zero_snr_pipeline(), "zero", "fp32")
    x = model.sample_noise([1])
    with pytest.raises(UserError, match="no signal at timestep 999"):
        model.estimate_x0(x, x, torch.tensor([999]))
    assert model.estimate_x0(x, x, torch.tensor([500])).isfinite().all()
    with pytest.raises(UserError, match="guidance edits do not work with zero: at zero terminal SNR"):
        erase(model, CAT, NegativePrompt(), out=tmp_path / "zero")
    assert not (tmp_path / "zero").exists()
    edit = erase(StableDiffusion(tiny.pipeline(), "tiny", "fp32"), CAT, NegativePrompt(), out=tmp_path / "tiny")
    for pipe in (model.pipe, zero_snr_pipeline()):
        with pytest.raises(UserError, match="guidance edits do not work with zero terminal SNR"):
            edit.apply(pipe)
        assert not stack_of(pipe).edits
    steps = model.trajectory(x, *(model.encode(["a cat"]),) * 2, 2, 4.0, build_sampling(((edit, 1.0),)).guidance_edits)
    with pytest.raises(UserError, match="guidance edits do not work with zero: at zero terminal SNR"):
        next(steps)


def test_more_steps_than_timesteps_is_one_line(model: StableDiffusion) -> None:
    for steps in (0, 1001):
        with pytest.raises(UserError, match=f"1 to 1,000 steps, got {steps:,}"):
            model.sample(["a"], [1], steps=steps)
