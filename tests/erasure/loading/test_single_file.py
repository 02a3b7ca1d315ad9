"""`--model FILE.safetensors`: opened without any network; a file that is not a model is refused with what it is."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from app.cli import main
from erasure.errors import AssumptionWarning, UserError
from erasure.export.checkpoint import to_checkpoint, to_original_layout
from erasure.families.stable_diffusion import StableDiffusion
from erasure.loading.loader import load_model
from erasure.loading.pipeline_configs import load_released_configs
from erasure.loading.prediction_type import V_PREDICTION_BIAS
from erasure.loading.safetensors_header import SafetensorsHeader
from erasure.loading.single_file import CONFIGS_KEY, check_shapes, identify_configs
from tests import sd_architecture, tiny
from tests.synthetic_edits import edit_of_everything

ALONE = """
import socket, sys
def refuse(*_, **__): raise AssertionError("a connection was opened or a name was looked up")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
from erasure.loading.loader import load_model
print(load_model(sys.argv[1], device="cpu", dtype="fp32").fingerprint())
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = StableDiffusion(tiny.pipeline(), "tiny", "fp32")
    with pytest.warns(AssumptionWarning):
        return to_checkpoint(model, edit_of_everything(model), tmp_path_factory.mktemp("file") / "out")


def load_error(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_model(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_tensors(path: Path, *names: str, metadata: dict[str, str] | None = None) -> Path:
    save_file({name: torch.zeros(2, 2) for name in names}, path, metadata)
    return path


def test_no_connection_is_opened(checkpoint: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", ALONE, str(checkpoint)], capture_output=True, text=True, env={"HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    with safe_open(checkpoint, "pt") as file:
        assert done.stdout.strip() == file.metadata()["erasure.fingerprint"]


@pytest.mark.parametrize(
    ("names", "description"),
    [
        (["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"], "a LoRA, not a model"),
        (["unet.mid_block.attentions.0.proj_in.lora_A.weight"], "a LoRA, not a model"),
        (["unet.conv_in.weight", "text_encoder.embeddings.token_embedding.weight"], "the tensors of an edit"),
        (["conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"], "a UNet alone"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "a UNet but not a VAE or a text encoder"),
        (["text_model.encoder.layers.0.layer_norm1.bias"], "a text encoder alone"),
        (["embeddings.token_embedding.weight", "encoder.layers.0.layer_norm1.bias"], "a text encoder alone"),
        (["encoder.conv_in.weight", "decoder.conv_in.weight"], "a VAE alone"),
        (["emb_params"], "a textual inversion"),
        (["model.diffusion_model.out.2.weight", "first_stage_model.decoder.conv_in.weight"], "a UNet and a VAE but not a text encoder"),
        (["something.else"], "its first tensor is 'something.else'"),
        (
            ["conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias"],
            "holds a text encoder but not a UNet or a VAE",
        ),
        (["conditioner.embedders.0.transformer.text_model.final_layer_norm.bias"], "holds a text encoder but not a UNet or a VAE"),
        (
            ["conditioner.embedders.0.model.transformer.resblocks.9.mlp.c_proj.bias"],
            "is a StableDiffusionXLImg2ImgPipeline in one file; of such files, Stable Diffusion 1.x, 2.x and SDXL are opened",
        ),
        (
            ["conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias", "edm_mean"],
            "laid out like playgroundai/playground-v2.5-1024px-aesthetic; supported are Stable Diffusion 1.x, 2.x and SDXL",
        ),
        (["double_blocks.0.img_attn.norm.key_norm.scale", "img_in.weight"], "is a FluxPipeline"),
        (["model.diffusion_model.joint_blocks.37.x_block.mlp.fc1.weight"], "is a StableDiffusion3Pipeline in one file; of such"),
        (["control_model.time_embed.0.weight"], "laid out like lllyasviel/control"),
        (["head.modulation"], "no model in a layout that is known"),
    ],
)
def test_other_files_are_refused_with_what_they_are(names: list[str], description: str, tmp_path: Path) -> None:
    assert description in load_error(write_tensors(tmp_path / "file.safetensors", *names))


@pytest.mark.parametrize(
    ("part", "description"), [("unet", "a UNet alone"), ("vae", "a VAE alone"), ("text_encoder", "a text encoder alone")]
)
def test_parts_of_a_model_are_refused_with_what_they_are(part: str, description: str, tmp_path: Path) -> None:
    save_file(getattr(tiny.pipeline(), part).state_dict(), tmp_path / "file.safetensors")
    assert description in load_error(tmp_path / "file.safetensors")


def test_inpainting_is_refused_by_name(tmp_path: Path) -> None:
    tensors = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(320, 9, 3, 3)}
    save_file(tensors, tmp_path / "file.safetensors")
    assert "is a StableDiffusionInpaintPipeline" in load_error(tmp_path / "file.safetensors")
    save_file(
        tensors | {"conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": torch.zeros(1)}, tmp_path / "file.safetensors"
    )
    assert "is a StableDiffusionXLInpaintPipeline" in load_error(tmp_path / "file.safetensors")


def test_pickles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x04.")
    assert "never loaded" in load_error(tmp_path / "model.ckpt")


def test_damaged_files_are_named(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = load_file(checkpoint)
    with safe_open(checkpoint, "pt") as file:
        metadata_of_checkpoint = dict(file.metadata())
    path, name = tmp_path / "x.safetensors", "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"

    def broken(change: dict[str, object], **metadata: str) -> str:
        state = {key: value for key, value in {**tensors, **change}.items() if value is not None}
        save_file(state, path, {**metadata_of_checkpoint, **metadata})  # type: ignore[arg-type]
        return load_error(path)

    assert f"lacks '{name}'" in broken({name: None})
    assert "is (3, 3) there and (32, 32)" in broken({name: torch.zeros(3, 3)})
    assert "has 1 tensors that" in broken({"model.diffusion_model.input_blocks.9.0.in_layers.0.weight": torch.zeros(1)})
    configs = json.loads(metadata_of_checkpoint[CONFIGS_KEY])
    assert "cannot be read" in broken({}, **{CONFIGS_KEY: "{"})
    assert "cannot be read" in broken({}, **{CONFIGS_KEY: json.dumps({**configs, "unet": 3})})
    evil = json.dumps({**configs, "pipeline": "EvilPipeline"})
    assert "is a EvilPipeline in one file; of such files" in broken({}, **{CONFIGS_KEY: evil})
    for part, change in [
        ("unet", {"block_out_channels": "x"}),
        ("unet", {"layers_per_block": 10**9}),
        ("vae", {"norm_num_groups": 0}),
        ("text_encoder", {"num_attention_heads": 0}),
        ("scheduler", {"num_train_timesteps": 10**12}),
        ("scheduler", {"beta_schedule": "none"}),
        ("tokenizer", {"merges": [["x", "y"]]}),
        ("tokenizer", {"vocabulary": "clip"}),
    ]:
        assert "build no model" in broken({}, **{CONFIGS_KEY: json.dumps({**configs, part: {**configs[part], **change}})}), (part, change)
    path.write_bytes(checkpoint.read_bytes()[:-10])
    assert "broken safetensors file" in load_error(path)
    assert main(["erase", "--model", str(path), "--concept", "cat", "--out", str(tmp_path / "run")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def released_header(name: str, path: Path, metadata: dict[str, str] | None = None, **markers: tuple[int, ...]) -> SafetensorsHeader:
    """The header of a released model in one file, without its gigabytes of weights."""
    return SafetensorsHeader(path, sd_architecture.shapes_in_one_file(load_released_configs(name)) | markers, metadata or {})


def test_released_models_are_recognized_by_their_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    first = released_header("sd15", path)
    assert identify_configs(first, "x") == load_released_configs("sd15")
    check_shapes(first, identify_configs(first, "x"), "x")
    squared = {**first.shapes, "first_stage_model.encoder.mid.attn_1.q.weight": (512, 512, 1, 1), "model_ema.decay": ()}
    check_shapes(SafetensorsHeader(path, squared, {}), load_released_configs("sd15"), "x")
    assert (
        identify_configs(released_header("sd15", path, {"modelspec.prediction_type": "v"}), "x").scheduler["prediction_type"]
        == "v_prediction"
    )
    marked = identify_configs(released_header("sd15", path, v_pred=(), ztsnr=()), "x").scheduler
    assert marked["prediction_type"] == "v_prediction" and marked["rescale_betas_zero_snr"]
    with pytest.raises(UserError, match="lacks"):  # as in models that were made smaller by leaving out blocks
        check_shapes(
            SafetensorsHeader(path, {k: v for k, v in first.shapes.items() if "middle_block" not in k}, {}),
            load_released_configs("sd15"),
            "x",
        )
    with pytest.raises(UserError, match="'wavelet'"):
        identify_configs(released_header("sd15", path, {"modelspec.prediction_type": "wavelet"}), "x")


def test_the_prediction_type_of_stable_diffusion_2(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    second = released_header("sd21", path)
    for spread, name in ((0.2, "sd21"), (0.01, "sd21-base")):
        save_file({V_PREDICTION_BIAS: spread * torch.randn(320, generator=torch.Generator().manual_seed(0))}, path)
        with pytest.warns(
            AssumptionWarning, match="does not say what it predicts; taken for " + load_released_configs(name).scheduler["prediction_type"]
        ):
            assert identify_configs(second, "x") == load_released_configs(name)
    assert identify_configs(released_header("sd21", path, {"modelspec.prediction_type": "epsilon"}), "x") == load_released_configs(
        "sd21-base"
    )
    assert identify_configs(released_header("sd21", path, {"modelspec.predict_key": "v"}), "x") == load_released_configs("sd21")
    beside = path.with_suffix(".yaml")
    beside.write_text("model:\n  params:\n    parameterization: v\n")
    assert identify_configs(second, "x") == load_released_configs("sd21")
    beside.write_text("model:\n  params:\n    linear_start: 0.1\n")
    assert identify_configs(second, "x") == load_released_configs("sd21-base")
    beside.write_text("model:\n  params:\n    parameterization: x0\n")
    with pytest.raises(UserError, match="allowed are eps and v"):
        identify_configs(second, "x")
    beside.write_text("nothing")
    with pytest.raises(UserError, match=r"no model\.params"):
        identify_configs(second, "x")


@pytest.mark.slow
@pytest.mark.parametrize("generation", ["sd1", "sd2"])
def test_a_file_of_released_size_loads_without_metadata(generation: Literal["sd1", "sd2"], tmp_path: Path) -> None:
    """2 GB of random weights that say nothing about themselves, as in files from elsewhere; no network."""
    model = StableDiffusion(sd_architecture.pipeline(generation, small=False, latent=64), generation, "fp32")
    if generation == "sd2":
        torch.nn.init.normal_(model.pipe.unet.up_blocks[-1].attentions[-1].transformer_blocks[0].norm1.bias)
    save_file(to_original_layout(model), tmp_path / "model.safetensors")
    expected = model.fingerprint()
    del model
    arguments = [sys.executable, "-c", ALONE, str(tmp_path / "model.safetensors")]
    done = subprocess.run(arguments, capture_output=True, text=True, env={"HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == expected
    assert ("taken for v_prediction" in done.stderr) == (generation == "sd2")
