"""`--model FILE.safetensors` of SDXL: how it is recognized, and what is said of a file that is damaged or of another kind."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from app.cli import main
from erasure.errors import AssumptionWarning, UserError
from erasure.export.checkpoint import to_checkpoint
from erasure.families.stable_diffusion_xl import StableDiffusionXL
from erasure.loading.loader import load_model
from erasure.loading.pipeline_configs import load_released_configs
from erasure.loading.safetensors_header import SafetensorsHeader
from erasure.loading.single_file import CONFIGS_KEY, check_shapes, identify_configs
from tests import tiny_families
from tests.sd_architecture import shapes_in_one_file
from tests.synthetic_edits import edit_of_everything

PROJECTION = "conditioner.embedders.1.model.text_projection"
SGM = "model: {{params: {{denoiser_config: {{params: {{scaling_config: {{target: sgm.modules.diffusionmodules.denoiser_scaling.{}}}}}}}}}}}"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = StableDiffusionXL(tiny_families.sdxl(), "tiny", "fp32")
    with pytest.warns(AssumptionWarning):
        return to_checkpoint(model, edit_of_everything(model), tmp_path_factory.mktemp("file") / "out")


def header(path: Path, metadata: dict[str, str] | None = None, **markers: tuple[int, ...]) -> SafetensorsHeader:
    """The header of the release in one file, without its gigabytes of weights."""
    return SafetensorsHeader(path, shapes_in_one_file(load_released_configs("sdxl")) | markers, metadata or {})


def load_error(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_model(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_release_is_recognized_by_its_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    configs = identify_configs(header(path), "x")
    assert configs == load_released_configs("sdxl")
    assert configs.scheduler["_class_name"] == "EulerDiscreteScheduler" and configs.scheduler["timestep_spacing"] == "leading"
    assert configs.settings and configs.settings.force_zeros_for_empty_prompt
    # what else such files hold
    more = {"conditioner.embedders.0.transformer.text_model.embeddings.position_ids": (1, 77), "model_ema.decay": ()}
    more |= {"conditioner.embedders.1.model.logit_scale": (), "first_stage_model.encoder.mid.attn_1.q.weight": (512, 512, 1, 1)}
    check_shapes(SafetensorsHeader(path, header(path).shapes | more, {}), configs, "x")


def test_the_prediction_type(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    assert identify_configs(header(path, v_pred=(0,)), "x").scheduler["prediction_type"] == "v_prediction"
    assert "rescale_betas_zero_snr" not in identify_configs(header(path, v_pred=(0,)), "x").scheduler
    assert identify_configs(header(path, v_pred=(0,), ztsnr=(0,)), "x").scheduler["rescale_betas_zero_snr"]
    for key, value in (("modelspec.prediction_type", "v"), ("modelspec.predict_key", "v")):
        assert identify_configs(header(path, {key: value}), "x").scheduler["prediction_type"] == "v_prediction"
    beside = path.with_suffix(".yaml")
    for scaling, prediction in (("VScaling", "v_prediction"), ("EpsScaling", "epsilon")):
        beside.write_text(SGM.format(scaling))
        assert identify_configs(header(path), "x").scheduler["prediction_type"] == prediction
    beside.write_text(SGM.format("EDMScaling"))
    with pytest.raises(UserError, match="the scaling of its denoiser is 'EDMScaling'; allowed are EpsScaling and VScaling"):
        identify_configs(header(path), "x")
    beside.write_text("model: {params: {denoiser_config: {}}}")
    with pytest.raises(UserError, match="or no scaling in them"):
        identify_configs(header(path), "x")
    beside.write_text(SGM.format("VScaling"))
    with pytest.raises(UserError, match=r"holds 'edm_vpred\.sigma_max', as CosXL does"):
        identify_configs(header(path, **{"edm_vpred.sigma_max": ()}), "x")


def test_other_kinds_of_sdxl_are_refused_by_a_tensor(tmp_path: Path) -> None:
    path, configs = tmp_path / "model.safetensors", load_released_configs("sdxl")
    shapes = header(path).shapes
    smaller = {name: shape for name, shape in shapes.items() if ".transformer_blocks.9." not in name}  # as SSD-1B leaves blocks out
    with pytest.raises(UserError, match=r"^x lacks 'model\.diffusion_model\.output_blocks\.0\.1\.transformer_blocks\.9\..*which an SDXL"):
        check_shapes(SafetensorsHeader(path, smaller, {}), configs, "x")
    edits_images = shapes | {"model.diffusion_model.input_blocks.0.0.weight": (320, 8, 3, 3)}
    with pytest.raises(UserError, match=r"'model\.diffusion_model\.input_blocks\.0\.0\.weight' is \(320, 8, 3, 3\) there"):
        check_shapes(SafetensorsHeader(path, edits_images, {}), configs, "x")
    both = shapes | {"cond_stage_model.transformer.text_model.embeddings.position_embedding.weight": (77, 768)}
    with pytest.raises(UserError, match=r"has 1 tensors that an SDXL .* such as 'cond_stage_model"):
        check_shapes(SafetensorsHeader(path, both, {}), configs, "x")


def test_damaged_files_are_named(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors, path = load_file(checkpoint), tmp_path / "x.safetensors"
    with safe_open(checkpoint, "pt") as file:
        metadata = dict(file.metadata())
    configs = json.loads(metadata[CONFIGS_KEY])

    def broken(change: dict[str, torch.Tensor | None], **new_configs: object) -> str:
        state = {key: value for key, value in {**tensors, **change}.items() if value is not None}
        save_file(state, path, {**metadata, CONFIGS_KEY: json.dumps({**configs, **new_configs})})
        return load_error(path)

    for name in (PROJECTION, "model.diffusion_model.label_emb.0.0.weight", "first_stage_model.decoder.conv_in.bias"):
        assert f"lacks '{name}', which an SDXL model of these sizes has" in broken({name: None})
    assert f"'{PROJECTION}' is (32, 3) there and (32, 32)" in broken({PROJECTION: torch.zeros(32, 3)})
    assert "a StableDiffusionXLPipeline needs a text_encoder_2" in broken({}, text_encoder_2=None)
    assert "a StableDiffusionXLPipeline needs a tokenizer_2" in broken({}, tokenizer_2=None)
    assert "cannot be read" in broken({}, settings={"local_files_only": False})
    assert "the tokenizer_2 has" in broken({}, tokenizer_2={**configs["tokenizer_2"], "vocabulary": "clip", "merges": []})
    assert "unet.transformer_layers_per_block is 1000000000" in broken(
        {}, unet={**configs["unet"], "transformer_layers_per_block": [1, [2, 10**9]]}
    )
    assert "text_encoder_2.num_hidden_layers is" in broken({}, text_encoder_2={**configs["text_encoder_2"], "num_hidden_layers": 10**9})
    assert "the scheduler is 'LCMScheduler'" in broken({}, scheduler={**configs["scheduler"], "_class_name": "LCMScheduler"})
    path.write_bytes(checkpoint.read_bytes()[:-10])
    assert "broken safetensors file" in load_error(path)
    assert main(["erase", "--model", str(path), "--concept", "cat", "--out", str(tmp_path / "run")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_file_that_says_nothing_about_itself_is_taken_for_the_release(checkpoint: Path, tmp_path: Path) -> None:
    """Without its configurations, the tiny file has other sizes than the release: the first such tensor is named."""
    save_file(
        load_file(checkpoint) | {"conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": torch.zeros(32)},
        tmp_path / "x.safetensors",
    )
    assert "is not an SDXL model of a known size: 'model.diffusion_model." in load_error(tmp_path / "x.safetensors")
