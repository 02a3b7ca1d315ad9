"""`export --format checkpoint`: which tensor has which name, what the programs that read the layout go by, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file

from app.cli import main
from erasure.edits import apply_edits
from erasure.erasing import erase
from erasure.errors import AssumptionWarning, UserError
from erasure.export.checkpoint import predict_misreadings, to_checkpoint
from erasure.families.base import DiffusionModel
from erasure.families.stable_diffusion import StableDiffusion
from erasure.families.stable_diffusion_xl import StableDiffusionXL
from erasure.loading.loader import POCKET_FOLDER, load_model
from erasure.loading.original_layout import places_of
from erasure.loading.pipeline_configs import RELEASED_MODELS, load_released_configs
from erasure.methods.negative_prompt import NegativePrompt
from tests import sd_architecture, tiny, tiny_families
from tests.clients.checkpoint import read_as_a_program_does
from tests.factories import CAT, small_method
from tests.sd_architecture import modules_without_weights, shapes_in_one_file
from tests.synthetic_edits import edit_of_everything

MODELS = ["tiny", "pocket", "sd1", "sd2", "sdxl"]


def build(name: str) -> DiffusionModel:
    match name:
        case "sdxl":
            return StableDiffusionXL(tiny_families.sdxl(), name, "fp32")
        case "tiny":
            pipe = tiny.pipeline()
        case "pocket":
            pipe = StableDiffusionPipeline.from_pretrained(POCKET_FOLDER, safety_checker=None)
        case _:
            pipe = sd_architecture.pipeline(name, small=True)  # type: ignore[arg-type]
    return StableDiffusion(pipe, name, "fp32")


@pytest.mark.parametrize("name", MODELS)
def test_every_edited_tensor_is_where_the_programs_look_and_the_file_loads_back(name: str, tmp_path: Path) -> None:
    model = build(name)
    edit, before = edit_of_everything(model), model.fingerprint()
    with pytest.warns(AssumptionWarning, match="at its released sizes only"):
        path = to_checkpoint(model, edit, tmp_path / "out")
    assert path.name == "esd-van-gogh-b.safetensors" and model.fingerprint() == before
    assert path.stat().st_mode & 0o777 == (tmp_path / "out").stat().st_mode & 0o666
    assert not [p for p in (tmp_path / "out").iterdir() if p != path]
    tensors = load_file(path)
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    loaded = load_model(str(path), dtype="fp32")
    with apply_edits(model, [edit]):
        for key, value in model.parameters().items():
            assert torch.equal(read_as_a_program_does(tensors, key, model), value.half()), key
        assert loaded.fingerprint() == model.fingerprint() != before
        loaded_vae = loaded.pipe.vae.state_dict()
        assert all(torch.equal(loaded_vae[key].half(), value.half()) for key, value in model.pipe.vae.state_dict().items())
        text = "a painting of a cat!"
        assert loaded.pipe.tokenizer(text, padding="max_length").input_ids == model.pipe.tokenizer(text, padding="max_length").input_ids
        assert torch.allclose(loaded.sample([text], [1], steps=2), model.sample([text], [1], steps=2), atol=2e-2)
    for part in ("unet", "vae", "scheduler"):
        mine, its = (dict(getattr(pipe, part).config) for pipe in (model.pipe, loaded.pipe))
        assert {k: v for k, v in json.loads(json.dumps(mine)).items() if k[0] != "_"} == {
            k: v for k, v in json.loads(json.dumps(its)).items() if k[0] != "_"
        }
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.prediction_type"] == ("v" if name == "sd2" else "epsilon")
    assert metadata["modelspec.architecture"] == "latent-diffusion"
    assert metadata["modelspec.title"] == "Van Gogh; <b>, erased with esd"
    assert metadata["erasure.fingerprint"] == loaded.fingerprint() and metadata["erasure.edits"] == edit.digest()
    assert not any("/" in value for key, value in metadata.items() if key != "erasure.configs")
    assert str(POCKET_FOLDER) not in metadata["erasure.configs"]


PARAMETERS = {  # of the released models: UNet, VAE, text encoders
    "sd15": (859_520_964, 83_653_863, 123_060_480),
    "sd21-base": (865_910_724, 83_653_863, 340_387_840),
    "sd21": (865_910_724, 83_653_863, 340_387_840),
    "sdxl": (2_567_463_684, 83_653_863, 123_060_480, 694_659_840),
}


@pytest.mark.parametrize("name", RELEASED_MODELS)
def test_the_shipped_configurations_are_the_released_models(name: str) -> None:
    configs = load_released_configs(name)
    parts = modules_without_weights(configs)
    assert tuple(sum(p.numel() for p in module.parameters()) for module in parts.values()) == PARAMETERS[name]
    pad = configs.tokenizer.build().pad_token_id
    assert pad == (0 if name.startswith("sd21") else 49407)
    if name == "sdxl":
        assert configs.tokenizer_2 and configs.tokenizer_2.build().pad_token_id == 0


@pytest.mark.parametrize(("name", "context", "linear", "text"), [("sd15", 768, False, 196), ("sd21", 1024, True, 23 * 12 + 4)])
def test_the_programs_recognize_the_generation_by_these_tensors(name: str, context: int, linear: bool, text: int) -> None:
    file = shapes_in_one_file(load_released_configs(name))
    count = {
        start: sum(key.startswith(start) for key in file) for start in ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")
    }
    assert count == {"model.diffusion_model.": 686, "first_stage_model.": 248, "cond_stage_model.": text}
    # ComfyUI (comfy/model_detection.py): width of the first convolution, of the conditioning, and how attention is projected
    unet = "model.diffusion_model."
    assert file[f"{unet}input_blocks.0.0.weight"] == (320, 4, 3, 3) and file[f"{unet}out.2.weight"] == (4, 320, 3, 3)
    assert file[f"{unet}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"] == (320, context)
    assert (len(file[f"{unet}input_blocks.1.1.proj_in.weight"]) == 2) == linear
    # A1111 (modules/sd_models_config.py) and stable-diffusion.cpp (model.cpp) take it for 2.x by these
    second = "cond_stage_model.model."
    assert (f"{second}transformer.resblocks.0.attn.in_proj_weight" in file) == linear
    tokens = f"{second}token_embedding.weight" if linear else "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    assert file[tokens] == (49408, context)
    # LDM's autoencoder keeps the attention of its middle as 1x1 convolutions and refuses matrices
    place = places_of(**modules_without_weights(load_released_configs(name)))["first_stage_model.decoder.mid.attn_1.q.weight"]
    assert place.gather({"decoder.mid_block.attentions.0.to_q.weight": torch.zeros(512, 512)}).shape == (512, 512, 1, 1)


def test_a_model_that_the_layout_cannot_hold_is_refused(tmp_path: Path) -> None:
    model = build("tiny")
    torch.manual_seed(0)
    model.pipe.unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        class_embed_type="projection",
        projection_class_embeddings_input_dim=8,
    )
    with pytest.raises(UserError, match="no place for unet"):
        to_checkpoint(model, edit_of_everything(model), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_edits_that_are_not_weights_are_refused_with_their_kind(model: StableDiffusion, tmp_path: Path) -> None:
    guided = erase(model, CAT, NegativePrompt(), out=tmp_path / "guided")
    with pytest.raises(UserError, match="changes how a model samples"):
        to_checkpoint(model, guided, tmp_path / "out")
    one_step = erase(model, CAT, small_method("sfd"), out=tmp_path / "one-step")
    with pytest.raises(UserError, match="one-step generator"):
        to_checkpoint(model, one_step, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_values_beyond_fp16_are_refused(model: StableDiffusion, tmp_path: Path) -> None:
    edit = edit_of_everything(model)
    with torch.no_grad():
        model.pipe.vae.quant_conv.weight[0, 0] = 1e6
    with pytest.raises(UserError, match="weight holds values"):
        to_checkpoint(model, edit, tmp_path / "out")


def test_what_the_programs_will_misread_is_warned_about(velocity_model: StableDiffusion) -> None:
    """The random UNet shows neither of the signs of v-prediction, so both kinds of program would sample it as if it predicted noise."""
    notes = predict_misreadings(velocity_model, load_released_configs("sd21"))
    assert [note.split(" will take the file for ")[0] for note in notes] == ["ComfyUI", "A1111 and stable-diffusion.cpp"]
    assert "ModelSamplingDiscrete, set to v_prediction." in notes[0] and "--prediction v" in notes[1]
    assert predict_misreadings(velocity_model, load_released_configs("sd21-base")) == []
    unet = velocity_model.pipe.unet
    with torch.no_grad():
        unet.up_blocks[-1].attentions[-1].transformer_blocks[0].norm1.bias.normal_()
        unet.conv_out.bias.fill_(-3.0)
    assert predict_misreadings(velocity_model, load_released_configs("sd21")) == []
    assert len(predict_misreadings(velocity_model, load_released_configs("sd21-base"))) == 2
    first = load_released_configs("sd15")
    assert predict_misreadings(velocity_model, first) == []
    assert (
        len(
            predict_misreadings(
                velocity_model, first.model_copy(update={"scheduler": {**first.scheduler, "prediction_type": "v_prediction"}})
            )
        )
        == 2
    )


def test_a_text_encoder_edit_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tiny.save_pipeline(tmp_path / "base")
    model = load_model(str(base), dtype="fp32")
    edit = erase(model, CAT, small_method("advunlearn"), out=tmp_path / "run")
    assert main(["export", str(tmp_path / "run"), "--format", "checkpoint"]) == 0
    files = sorted(p.name for p in (tmp_path / "run" / "checkpoint").iterdir())
    assert files == ["README.md", "advunlearn-cat.safetensors", "before-after-0.png", "before-after-1.png"]
    assert "load_model(FILE)" in (tmp_path / "run" / "checkpoint" / "README.md").read_text()
    loaded = load_model(str(tmp_path / "run" / "checkpoint" / "advunlearn-cat.safetensors"))
    with apply_edits(model, [edit]):
        assert loaded.fingerprint() == model.fingerprint()
    capsys.readouterr()
    assert main(["export", str(tmp_path / "run"), "--format", "checkpoint"]) == 1
    assert "holds cat, erased with advunlearn" in capsys.readouterr().err
