"""Models that are not supported are refused by name before their weights are read; schedules are sampled as they are or refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file

from app.cli import main
from erasure.concept import Concept
from erasure.edits.external.external_edit import load_external
from erasure.erasing import erase
from erasure.errors import NotFiniteError, UserError
from erasure.families.stable_diffusion import StableDiffusion
from erasure.loading.loader import load_model
from tests import tiny
from tests.factories import small_method

CAT = [Concept(name="cat", kind="object")]


def spoil_weights(folder: Path) -> Path:
    """Make the weights unreadable: whoever reads them fails in another way."""
    paths = list(folder.rglob("*.safetensors"))
    assert paths
    for path in paths:
        path.write_bytes(b"these are not weights")
    return folder


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def build_unet(**options: Any) -> UNet2DConditionModel:
    config = dict(tiny.pipeline().unet.config)
    return UNet2DConditionModel.from_config({k: v for k, v in config.items() if not k.startswith("_")} | options)


@pytest.mark.parametrize(
    ("pipeline", "options", "words"),
    [
        (
            StableDiffusionInpaintPipeline,
            {"in_channels": 9},
            "is a StableDiffusionInpaintPipeline, an inpainting model; supported are text-to-image pipelines",
        ),
        (StableDiffusionPipeline, {"in_channels": 9}, "takes 9 channels where its VAE gives 4: an inpainting UNet"),
        (
            StableDiffusionInstructPix2PixPipeline,
            {"in_channels": 8},
            "is a StableDiffusionInstructPix2PixPipeline, a model that edits a given image",
        ),
        (StableDiffusionPipeline, {"in_channels": 8}, "takes 8 channels .* edits a given image"),
        (StableDiffusionPipeline, {"num_class_embeds": 10}, r"needs class labels, like upscalers \(num_class_embeds is 10\)"),
        (StableDiffusionPipeline, {"class_embed_type": "timestep"}, "needs class labels"),
        (StableDiffusionPipeline, {"time_cond_proj_dim": 8}, "needs the guidance scale as an input, like few-step distilled"),
        (
            StableDiffusionPipeline,
            {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 80},
            "needs an additional embedding, like SDXL",
        ),
        (StableDiffusionPipeline, {"cross_attention_dim": 64}, "gives 32 values a token and its UNet takes 64"),
    ],
)
def test_other_unets_and_pipelines(pipeline: type, options: dict[str, Any], words: str, model: StableDiffusion, tmp_path: Path) -> None:
    parts = {**tiny.pipeline().components, "unet": build_unet(**options)}
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler", "safety_checker", "feature_extractor")
    pipeline(**{name: parts[name] for name in names}, requires_safety_checker=False).save_pretrained(tmp_path)
    spoil_weights(tmp_path)
    for read in (lambda: load_model(str(tmp_path)), lambda: load_external(model, str(tmp_path), CAT)):
        with pytest.raises(UserError, match=words):
            read()
    if pipeline is StableDiffusionPipeline:  # also in a pipeline that other code has loaded
        with pytest.raises(UserError, match=words):
            StableDiffusion(StableDiffusionPipeline(**{name: parts[name] for name in names}, requires_safety_checker=False), "theirs")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("StableDiffusionXLPipeline", "has no unet"),
        ("StableDiffusionXLInpaintPipeline", "an inpainting model"),
        ("StableDiffusion3Pipeline", "has no transformer"),
        ("FluxPipeline", "has no transformer"),
        ("FluxFillPipeline", "an inpainting model"),
        ("FluxKontextPipeline", "a model that edits a given image"),
        ("FluxControlPipeline", "follows a control image"),
        ("Flux2Pipeline", "a FLUX.2 model that is not klein"),
        ("ZImagePipeline", "a Z-Image model"),
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
        assert "\n" not in str(caught.value) and "supported are text-to-image pipelines of Stable Diffusion 1.x" in str(caught.value)


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
        (
            "scheduler",
            ["diffusers", "FlowMatchEulerDiscreteScheduler"],
            "flow matching, which Stable Diffusion 1.x and 2.x models were not trained with",
        ),
        ("scheduler", ["diffusers", "EDMEulerScheduler"], "no DDIM counterpart"),
    ],
)
def test_other_components(part: str, entry: Any, words: str, tmp_path: Path) -> None:
    spoil_weights(tiny.save_pipeline(tmp_path / "m"))
    change_json(tmp_path / "m" / "model_index.json", **{part: entry})
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
    folder = spoil_weights(tiny.save_pipeline(tmp_path))
    change_json(folder / "scheduler" / "scheduler_config.json", **values)
    with pytest.raises(UserError, match=words):
        load_model(str(folder))


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


def test_an_edit_with_nan_or_inf_is_not_written(model: StableDiffusion, tmp_path: Path) -> None:
    with torch.no_grad():
        model.pipe.unet.conv_out.weight.zero_()  # no noise at all: the concept check divides by it
        model.pipe.unet.conv_out.bias.zero_()
    with pytest.raises(NotFiniteError, match="the figures of the edit hold NaN or Inf"):
        erase(model, CAT, small_method("uce"), out=tmp_path / "zero")
    other = StableDiffusion(tiny.pipeline(), "tiny", "fp32")
    with torch.no_grad():
        for name in other.parameter_names("xattn-kv"):
            other.parameters()[name].mul_(1e6)  # UCE's values are as large as the base's
    with pytest.raises(NotFiniteError, match=r"values above what fp16 holds \(65,504\) in unet\."):
        erase(other, CAT, small_method("uce"), out=tmp_path / "large")
    assert not list(tmp_path.glob("*/edit.*"))


def test_a_model_that_gives_nan_ends_every_command_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Never NaN in edit.json, never a black image with exit code 0."""
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
    broken = load_model(good, dtype="fp32").pipe
    with torch.no_grad():
        broken.vae.decoder.conv_out.bias[0] = torch.inf
    broken.save_pretrained(tmp_path / "vae")
    assert main(["erase", "--method", "uce", "--model", str(tmp_path / "vae"), "--concept", "cat", "--out", str(out / "card")]) == 1
    assert "(its images), because its weights hold them, such as vae.decoder.conv_out.bias" in capsys.readouterr().err
    assert not list((out / "card").glob("*.png")) and not (out / "card" / "result.json").exists()


def test_a_network_with_missing_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    for part, name in (("text_encoder", "model.safetensors"), ("unet", "diffusion_pytorch_model.safetensors")):
        folder = tiny.save_pipeline(tmp_path / part)
        values = load_file(folder / part / name)
        lost = next(key for key in values if key.endswith("fc1.weight") or "conv_out.weight" in key)
        save_file({k: v for k, v in values.items() if k != lost}, folder / part / name, metadata={"format": "pt"})
        with pytest.raises(UserError, match=f"the {part} of .* lacks 1 parameters in its files"):
            load_model(str(folder))


def test_every_command_refuses_it_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(spoil_weights(tiny.save_pipeline(tmp_path / "m")))
    change_json(tmp_path / "m" / "unet" / "config.json", in_channels=9)
    good = str(tiny.save_pipeline(tmp_path / "good"))
    capsys.readouterr()  # the progress bars of saving
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
