"""Models that are not supported are refused by name before their weights are read; schedules are sampled as they are or refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file

from app.cli import main
from erasure.edits import Edit
from erasure.edits.external.external_edit import load_external
from erasure.erasing import erase
from erasure.errors import NotFiniteError, UserError
from erasure.families.stable_diffusion import StableDiffusion
from erasure.loading.loader import load_model
from erasure.loading.supported_models import SCHEDULERS
from erasure.methods.negative_prompt import NegativePrompt
from tests import tiny
from tests.erasure.edits.external.test_lora import CAT
from tests.erasure.methods.test_every_method import small


def without_weights(folder: Path) -> Path:
    """Weights that cannot be read: whoever reads them fails in another way."""
    for path in folder.rglob("*.safetensors"):
        path.write_bytes(b"these are no weights")
    return folder


def changed(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def unet(**options: Any) -> UNet2DConditionModel:
    config = dict(tiny.pipeline().unet.config)
    return UNet2DConditionModel.from_config({k: v for k, v in config.items() if not k.startswith("_")} | options)


@pytest.mark.parametrize(
    ("pipeline", "options", "words"),
    [
        (
            StableDiffusionInpaintPipeline,
            {"in_channels": 9},
            "is a StableDiffusionInpaintPipeline, an inpainting model; supported are StableDiffusionPipeline",
        ),
        (StableDiffusionPipeline, {"in_channels": 9}, "takes 9 channels where its VAE gives 4: an inpainting UNet"),
        (
            StableDiffusionInstructPix2PixPipeline,
            {"in_channels": 8},
            "is a StableDiffusionInstructPix2PixPipeline, a model that edits a given image",
        ),
        (StableDiffusionPipeline, {"in_channels": 8}, "takes 8 channels .* edits a given image"),
        (StableDiffusionPipeline, {"num_class_embeds": 10}, r"wants class labels, like upscalers \(num_class_embeds is 10\)"),
        (StableDiffusionPipeline, {"class_embed_type": "timestep"}, "wants class labels"),
        (StableDiffusionPipeline, {"time_cond_proj_dim": 8}, "wants the guidance scale as an input, like few-step distilled"),
        (
            StableDiffusionPipeline,
            {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 80},
            "wants an additional embedding, like SDXL",
        ),
        (StableDiffusionPipeline, {"cross_attention_dim": 64}, "gives 32 values a token and its UNet takes 64"),
    ],
)
def test_other_unets_and_pipelines(pipeline: type, options: dict[str, Any], words: str, model: StableDiffusion, tmp_path: Path) -> None:
    parts = {**tiny.pipeline().components, "unet": unet(**options)}
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler", "safety_checker", "feature_extractor")
    pipeline(**{name: parts[name] for name in names}, requires_safety_checker=False).save_pretrained(tmp_path)
    without_weights(tmp_path)
    for read in (lambda: load_model(str(tmp_path)), lambda: load_external(model, str(tmp_path), CAT)):
        with pytest.raises(UserError, match=words):
            read()
    if pipeline is StableDiffusionPipeline:  # also in a pipeline that other code has loaded
        with pytest.raises(UserError, match=words):
            StableDiffusion(StableDiffusionPipeline(**{name: parts[name] for name in names}, requires_safety_checker=False), "theirs")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("StableDiffusionXLPipeline", "an SDXL model"),
        ("StableDiffusionXLInpaintPipeline", "an inpainting model"),
        ("StableDiffusion3Pipeline", "an SD3 model"),
        ("FluxPipeline", "a FLUX model"),
        ("StableVideoDiffusionPipeline", "a video model"),
        ("StableDiffusionControlNetPipeline", "a pipeline with a ControlNet"),
        ("StableDiffusionImg2ImgPipeline", "starts from an image"),
        ("StableDiffusionUpscalePipeline", "an upscaler"),
        ("StableDiffusionLatentUpscalePipeline", "an upscaler"),
        ("StableDiffusionDepth2ImgPipeline", "a depth-to-image model"),
        ("StableUnCLIPPipeline", "a model of image embeddings"),
        ("LatentConsistencyModelPipeline", "a few-step distilled model"),
        ("OneStepPipeline", "an exported one-step generator; use the edit"),
        ("KandinskyPipeline", "another kind of model"),
        (["pipeline", "MyPipeline"], "code of its own"),
        (None, "code of its own"),
    ],
)
def test_an_index_alone_is_enough_to_refuse(name: Any, words: str, model: StableDiffusion, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    for read in (lambda: load_model(str(tmp_path)), lambda: load_external(model, str(tmp_path), CAT)):
        with pytest.raises(UserError, match=words) as caught:
            read()
        assert "\n" not in str(caught.value) and "supported are StableDiffusionPipeline" in str(caught.value)


@pytest.mark.parametrize(
    ("part", "entry", "words"),
    [
        ("text_encoder", ["transformers", "T5EncoderModel"], "the text_encoder of .* is a T5EncoderModel"),
        ("text_encoder", ["transformers", "CLIPTextModelWithProjection"], "is a CLIPTextModelWithProjection"),
        ("text_encoder", [None, None], "has no text_encoder"),
        ("tokenizer", ["transformers", "BertTokenizer"], "the tokenizer of .* is a BertTokenizer"),
        ("vae", ["diffusers", "AutoencoderTiny"], "the vae of .* is a AutoencoderTiny"),
        ("unet", ["my_code", "UNet2DConditionModel"], r"is a UNet2DConditionModel \(my_code\)"),
        ("unet", "UNet2DConditionModel", "has no unet"),
        ("scheduler", ["diffusers", "LCMScheduler"], "LCMScheduler, the scheduler of few-step distilled models"),
        ("scheduler", ["diffusers", "TCDScheduler"], "few-step distilled"),
        ("scheduler", ["diffusers", "FlowMatchEulerDiscreteScheduler"], "a flow-matching model"),
        ("scheduler", ["diffusers", "EDMEulerScheduler"], "no DDIM counterpart"),
    ],
)
def test_other_components(part: str, entry: Any, words: str, tmp_path: Path) -> None:
    without_weights(tiny.save_pipeline(tmp_path / "m"))
    changed(tmp_path / "m" / "model_index.json", **{part: entry})
    with pytest.raises(UserError, match=words):
        load_model(str(tmp_path / "m"))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"prediction_type": "sample"}, "predicts 'sample'"),
        ({"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction"}, "predicts 'flow_prediction'"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas"),
        ({"thresholding": True}, "thresholding"),
        ({"beta_schedule": "laplace"}, "beta_schedule 'laplace'; DDIM knows linear"),
        ({"timestep_spacing": "karras"}, "timestep_spacing 'karras'"),
        *(({"num_train_timesteps": count}, "as num_train_timesteps .* have 1000") for count in (0, 500, "x", None, True)),
        ({"rescale_betas_zero_snr": True}, "predicts noise under a schedule with zero terminal SNR"),
        ({"_class_name": "LCMScheduler"}, "few-step distilled"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}, "like SD-Turbo.*set timestep_spacing to 'leading'"),
        ({"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}, "like SD-Turbo"),
    ],
)
def test_schedules_that_ddim_does_not_represent(values: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = without_weights(tiny.save_pipeline(tmp_path))
    changed(folder / "scheduler" / "scheduler_config.json", **values)
    with pytest.raises(UserError, match=words):
        load_model(str(folder))


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
    assert torch.allclose(model.alphas_cumprod, (1 - betas).cumprod(0), atol=1e-6)
    assert model.scheduler.config.timestep_spacing == pipe.scheduler.config.get("timestep_spacing", "leading")
    assert model.scheduler.config.steps_offset == 1
    assert model.sample(["a cat"], [0], steps=3).isfinite().all()


def test_a_schedule_without_prediction_type_predicts_noise(tmp_path: Path) -> None:
    folder = tiny.save_pipeline(tmp_path)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k not in ("prediction_type", "_class_name")}))
    model = load_model(str(folder), precision="fp32")
    assert not model.velocity  # type: ignore[attr-defined]
    assert torch.equal(model.sample(["a"], [0], steps=2), StableDiffusion(tiny.pipeline(), "t", "fp32").sample(["a"], [0], steps=2))


def zero_snr(spacing: str = "trailing") -> StableDiffusionPipeline:
    pipe = tiny.pipeline("v_prediction")
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, rescale_betas_zero_snr=True, timestep_spacing=spacing)
    return pipe


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_zero_terminal_snr_draws_what_diffusers_draws(spacing: str) -> None:
    model = StableDiffusion(zero_snr(spacing), "zero", "fp32")
    assert model.alphas_cumprod[-1] == 0 and model.zero_terminal_snr
    theirs = model.pipe(["a cat"], num_inference_steps=5, guidance_scale=4.0, latents=model.sample_noise([5]), output_type="latent").images
    assert theirs.isfinite().all()
    assert torch.allclose(model.sample(["a cat"], [5], steps=5, guidance=4.0), theirs, atol=1e-4)
    first = next(model.trajectory(model.sample_noise([5]), model.encode(["a cat"]), model.encode([""]), 5, 4.0))
    assert (first.t == 999) == (spacing != "leading")
    if first.t == 999:  # all noise, so that the noise is no news
        assert torch.allclose(first.eps_cond, first.x_t) and not torch.allclose(first.x_next, first.x_t, atol=1e-2)


def test_a_trailing_schedule_is_walked_as_it_is() -> None:
    pipe = tiny.pipeline()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    model = StableDiffusion(pipe, "trailing", "fp32")
    steps = list(model.trajectory(model.sample_noise([5]), model.encode(["a cat"]), model.encode([""]), 5, 4.0))
    assert [step.t for step in steps] == [999, 799, 599, 399, 199]
    theirs = pipe(["a cat"], num_inference_steps=5, guidance_scale=4.0, latents=model.sample_noise([5]), output_type="latent").images
    assert torch.allclose(steps[-1].x_next, theirs, atol=1e-4)


@pytest.mark.parametrize("name", ["esd", "uce", "salun", "fia"])
def test_methods_work_at_zero_terminal_snr(name: str, tmp_path: Path) -> None:
    model = StableDiffusion(zero_snr(), "zero", "fp32")
    edit = erase(model, CAT, small(name), out=tmp_path)
    assert all(value.isfinite().all() for value in edit.tensors.values())
    text = (tmp_path / "edit.json").read_text() + (tmp_path / "timing.json").read_text()
    assert "NaN" not in text and "Infinity" not in text


def test_what_has_no_answer_at_zero_terminal_snr_says_so(tmp_path: Path) -> None:
    model = StableDiffusion(zero_snr(), "zero", "fp32")
    x = model.sample_noise([1])
    with pytest.raises(UserError, match="no signal at timestep 999"):
        model.estimate_x0(x, x, torch.tensor([999]))
    assert model.estimate_x0(x, x, torch.tensor([500])).isfinite().all()
    with pytest.raises(UserError, match="guidance edits do not work with zero: at zero terminal SNR"):
        erase(model, CAT, NegativePrompt(), out=tmp_path / "zero")
    assert not (tmp_path / "zero").exists()
    edit = erase(StableDiffusion(tiny.pipeline(), "tiny", "fp32"), CAT, NegativePrompt(), out=tmp_path / "tiny")
    edit.apply(model.pipe)
    with pytest.raises(UserError, match="guidance edits do not work with zero"):
        model.sample(["a cat"], [1], steps=2)
    with pytest.raises(UserError, match="guidance edits do not work with zero terminal SNR"):
        Edit.load(tmp_path / "tiny").apply(zero_snr())


def test_more_steps_than_timesteps_is_one_line(model: StableDiffusion) -> None:
    for steps in (0, 1001):
        with pytest.raises(UserError, match=f"1 to 1,000 steps, got {steps:,}"):
            model.sample(["a"], [1], steps=steps)


def test_overflow_is_an_error_that_names_the_precision(model: StableDiffusion) -> None:
    with torch.no_grad():
        model.pipe.vae.decoder.conv_out.weight.mul_(1e30)
        model.pipe.vae.decoder.conv_out.bias.fill_(-1e30)
    latents = model.sample(["a cat"], [1], steps=2)
    with pytest.raises(NotFiniteError, match=r"tiny gives NaN or Inf \(its images\) in fp32; its schedule may be another model's"):
        model.decode(latents * 1e30)
    model.compute_dtype = torch.float16
    with pytest.raises(NotFiniteError, match="in fp16; compute with --dtype fp32, or bf16 on a GPU"):
        model.decode(latents)


def test_an_edit_that_is_not_all_numbers_is_not_written(model: StableDiffusion, tmp_path: Path) -> None:
    with torch.no_grad():
        model.pipe.unet.conv_out.weight.zero_()  # no noise at all: the concept check divides by it
        model.pipe.unet.conv_out.bias.zero_()
    with pytest.raises(NotFiniteError, match="the figures of the edit hold NaN or Inf"):
        erase(model, CAT, small("uce"), out=tmp_path / "zero")
    other = StableDiffusion(tiny.pipeline(), "tiny", "fp32")
    with torch.no_grad():
        for name in other.parameter_names("xattn-kv"):
            other.parameters()[name].mul_(1e6)  # UCE's values are as large as the base's
    with pytest.raises(NotFiniteError, match=r"values above what fp16 holds \(65,504\) in unet\."):
        erase(other, CAT, small("uce"), out=tmp_path / "large")
    assert not list(tmp_path.glob("*/edit.*"))


def test_a_model_that_gives_nan_ends_every_command_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Never NaN in edit.json, never a black picture with exit code 0."""
    pipe = tiny.pipeline()
    good = str(tiny.save_pipeline(tmp_path / "good"))
    with torch.no_grad():
        pipe.unet.conv_out.bias[0] = torch.nan
    pipe.save_pretrained(tmp_path / "nan")
    bad, out = str(tmp_path / "nan"), tmp_path / "out"
    for method in ("esd", "uce", "negative_prompt"):
        assert main(["erase", "--method", method, "--model", bad, "--concept", "cat", "--out", str(out / method)]) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("erasure: ") and "its weights hold them, such as unet.conv_out.bias" in error
        assert not (out / method / "edit.json").exists() and not (out / method / "result.json").exists()
    assert main(["audit", bad, "--model", good, "--concept", "cat", "--kind", "object", "--out", str(out / "audit")]) == 1
    assert "unet.conv_out.bias holds NaN" in capsys.readouterr().err
    broken = load_model(good, precision="fp32").pipe
    with torch.no_grad():
        broken.vae.decoder.conv_out.bias[0] = torch.inf
    broken.save_pretrained(tmp_path / "vae")
    assert main(["erase", "--method", "uce", "--model", str(tmp_path / "vae"), "--concept", "cat", "--out", str(out / "card")]) == 1
    assert "(its images), because its weights hold them, such as vae.decoder.conv_out.bias" in capsys.readouterr().err
    assert not list((out / "card").glob("*.png")) and not (out / "card" / "result.json").exists()


def test_a_network_that_would_be_random_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    for part, name in (("text_encoder", "model.safetensors"), ("unet", "diffusion_pytorch_model.safetensors")):
        folder = tiny.save_pipeline(tmp_path / part)
        values = load_file(folder / part / name)
        lost = next(key for key in values if key.endswith("fc1.weight") or "conv_out.weight" in key)
        save_file({k: v for k, v in values.items() if k != lost}, folder / part / name, metadata={"format": "pt"})
        with pytest.raises(UserError, match=f"the {part} of .* lacks 1 parameters in its files"):
            load_model(str(folder))


def test_every_command_says_it_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(without_weights(tiny.save_pipeline(tmp_path / "m")))
    changed(tmp_path / "m" / "unet" / "config.json", in_channels=9)
    good = str(tiny.save_pipeline(tmp_path / "good"))
    capsys.readouterr()  # the bars of saving
    out: Callable[[str], str] = lambda name: str(tmp_path / name)  # noqa: E731
    for command in (
        ["erase", "--model", folder, "--concept", "cat", "--out", out("a")],
        ["audit", folder, "--model", good, "--concept", "cat", "--kind", "object", "--out", out("b")],
        ["audit", good, "--model", folder, "--concept", "cat", "--kind", "object", "--out", out("c")],
        ["studio", "--model", folder],
        ["methods", "--model", folder],
    ):
        assert main(command) == 1, command
        error = capsys.readouterr().err.strip()
        assert error.count("\n") == 0 and "takes 9 channels where its VAE gives 4: an inpainting UNet" in error, error
    assert not list(tmp_path.glob("[abc]"))
