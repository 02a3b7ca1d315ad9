"""`export --as checkpoint`: what stands under which name, what the programs that read the layout go by, and what is refused."""

import json
import re
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from app.cli import main
from erasure.concept import Concept
from erasure.edits import Edit, EditInfo
from erasure.erasing import apply_edits, erase
from erasure.errors import AssumptionWarning, UserError
from erasure.export.checkpoint import predict_misreadings, to_checkpoint
from erasure.families.base import canonical_name
from erasure.families.stable_diffusion import StableDiffusion
from erasure.loading.loader import POCKET_FOLDER, load_model
from erasure.loading.original_layout import places_of
from erasure.loading.pipeline_configs import RELEASED_MODELS, PipelineConfigs, load_released_configs
from erasure.methods.negative_prompt import NegativePrompt
from tests import sd_architecture as sd_sized
from tests import tiny
from tests.erasure.methods.test_every_method import CAT, small

MODELS = ["tiny", "pocket", "sd1", "sd2"]


def build(name: str) -> StableDiffusion:
    match name:
        case "tiny":
            pipe = tiny.pipeline()
        case "pocket":
            pipe = StableDiffusionPipeline.from_pretrained(POCKET_FOLDER, safety_checker=None)
        case _:
            pipe = sd_sized.pipeline(name, small=True)  # type: ignore[arg-type]
    return StableDiffusion(pipe, name, "fp32")


def moved(model: StableDiffusion) -> Edit:
    """An edit that moves every parameter of UNet and text encoder."""
    torch.manual_seed(1)
    tensors = {name: (p.detach() + 0.01 * torch.randn_like(p)).half() for name, p in model.parameters().items()}
    base = {"source": model.source, "fingerprint": model.fingerprint(), "family": model.family}
    return Edit(
        tensors,
        EditInfo(
            method="esd",
            product="weights",
            fields={},
            concepts=[Concept(name="Van Gogh; <b>", kind="style").to_dict()],
            base=base,
            seed=0,
            precision="fp32",
            versions={},
            cost={},
            concept_checks=[],
            notes={},
        ),
    )


# The names by rules of our own, written from how the programs count blocks: an input block for every residual block and every downsampler
# after the first convolution, an output block for every residual block.
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTSIDE = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
OPEN_CLIP_OUTSIDE = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}


def unet_name(name: str, layers: int, attention: set[int]) -> str:
    """Where the programs look for a UNet parameter; `attention` are the up blocks that have any."""
    if match := re.fullmatch(r"time_embedding\.linear_(\d)\.(\w+)", name):
        return f"time_embed.{2 * int(match[1]) - 2}.{match[2]}"
    if match := re.fullmatch(r"(conv_in|conv_norm_out|conv_out)\.(\w+)", name):
        return f"{OUTSIDE[match[1]]}.{match[2]}"
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        tail = match[3] if match[1] == "attentions" else resnet(match[3])
        return f"middle_block.{1 if match[1] == 'attentions' else 2 * int(match[2])}.{tail}"
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name)
    assert match, name
    side, block, kind, layer = match[1], int(match[2]), match[3], int(match[4])
    first = block * (layers + 1) + (1 if side == "down" else 0)
    stem = "input_blocks" if side == "down" else "output_blocks"
    match_tail = match[5]
    if kind == "downsamplers":
        return f"{stem}.{first + layers}.0.{match_tail.replace('conv', 'op')}"
    if kind == "upsamplers":
        return f"{stem}.{first + layers}.{2 if block in attention else 1}.{match_tail}"
    return f"{stem}.{first + layer}.{1 if kind == 'attentions' else 0}.{match_tail if kind == 'attentions' else resnet(match_tail)}"


def resnet(tail: str) -> str:
    leaf, _, kind = tail.rpartition(".")
    return f"{RESNET[leaf]}.{kind}"


def read_as_a_program_does(tensors: dict[str, Tensor], name: str, model: StableDiffusion) -> Tensor:
    """The tensor that stands where the programs look for a parameter of UNet or text encoder."""
    part, _, rest = name.partition(".")
    if part == "unet":
        unet = model.pipe.unet
        attention = {i for i, block in enumerate(unet.up_blocks) if hasattr(block, "attentions")}
        return tensors[f"model.diffusion_model.{unet_name(rest, unet.config.layers_per_block, attention)}"]
    if not model.pipe.unet.config.use_linear_projection:
        return tensors[f"cond_stage_model.transformer.text_model.{rest}"]
    stem = "cond_stage_model.model."
    if rest in OPEN_CLIP_OUTSIDE:
        return tensors[stem + OPEN_CLIP_OUTSIDE[rest]]
    match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", rest)
    assert match, rest
    block = f"{stem}transformer.resblocks.{match[1]}."
    if match[2] in OPEN_CLIP:
        return tensors[f"{block}{OPEN_CLIP[match[2]]}.{match[3]}"]
    which = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"].index(match[2])
    return tensors[f"{block}attn.in_proj_{match[3]}"].chunk(3)[which]


@pytest.mark.parametrize("name", MODELS)
def test_every_edited_tensor_stands_where_the_programs_look_and_the_file_loads_back(name: str, tmp_path: Path) -> None:
    model = build(name)
    edit, before = moved(model), model.fingerprint()
    with pytest.warns(AssumptionWarning, match="at its released sizes only"):
        path = to_checkpoint(model, edit, tmp_path / "out")
    assert path.name == "esd-van-gogh-b.safetensors" and model.fingerprint() == before
    assert path.stat().st_mode & 0o777 == (tmp_path / "out").stat().st_mode & 0o666
    assert not [p for p in (tmp_path / "out").iterdir() if p != path]
    tensors = load_file(path)
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    back = load_model(str(path), precision="fp32")
    with apply_edits(model, [edit]):
        for key, value in model.parameters().items():
            assert torch.equal(read_as_a_program_does(tensors, key, model), value.half()), key
        assert back.fingerprint() == model.fingerprint() != before
        theirs = back.pipe.vae.state_dict()
        assert all(torch.equal(theirs[key].half(), value.half()) for key, value in model.pipe.vae.state_dict().items())
        text = "a painting of a cat!"
        assert back.pipe.tokenizer(text, padding="max_length").input_ids == model.pipe.tokenizer(text, padding="max_length").input_ids
        assert torch.allclose(back.sample([text], [1], steps=2), model.sample([text], [1], steps=2), atol=2e-2)
    for part in ("unet", "vae", "scheduler"):
        mine, its = (dict(getattr(pipe, part).config) for pipe in (model.pipe, back.pipe))
        assert {k: v for k, v in json.loads(json.dumps(mine)).items() if k[0] != "_"} == {
            k: v for k, v in json.loads(json.dumps(its)).items() if k[0] != "_"
        }
    with safe_open(path, "pt") as file:
        said = file.metadata()
    assert said["modelspec.prediction_type"] == ("v" if name == "sd2" else "epsilon")
    assert said["modelspec.architecture"] == "latent-diffusion"
    assert said["modelspec.title"] == "Van Gogh; <b>, erased with esd"
    assert said["erasure.fingerprint"] == back.fingerprint() and said["erasure.edits"] == edit.digest()
    assert not any("/" in value for key, value in said.items() if key != "erasure.loading.pipeline_configs")
    assert str(POCKET_FOLDER) not in said["erasure.loading.pipeline_configs"]


def modules(configs: PipelineConfigs) -> dict[str, torch.nn.Module]:
    with init_empty_weights():
        return {
            "unet": UNet2DConditionModel.from_config(configs.unet),
            "vae": AutoencoderKL.from_config(configs.vae),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**configs.text_encoder)),
        }


PARAMETERS = {  # of the released models: UNet, VAE, text encoder
    "sd15": (859_520_964, 83_653_863, 123_060_480),
    "sd21-base": (865_910_724, 83_653_863, 340_387_840),
    "sd21": (865_910_724, 83_653_863, 340_387_840),
    "sdxl": (2_567_463_684, 83_653_863, 123_060_480),
}


@pytest.mark.parametrize("name", RELEASED_MODELS)
def test_the_shipped_configurations_are_the_released_models(name: str) -> None:
    configs = load_released_configs(name)
    parts = modules(configs)
    assert tuple(sum(p.numel() for p in module.parameters()) for module in parts.values()) == PARAMETERS[name]
    pad = configs.tokenizer.build().pad_token_id
    assert pad == (0 if name.startswith("sd21") else 49407)
    if name == "sdxl":
        assert configs.text_encoder_2 and configs.tokenizer_2
        with init_empty_weights():
            second = CLIPTextModelWithProjection(CLIPTextConfig(**configs.text_encoder_2))
        assert sum(p.numel() for p in second.parameters()) == 694_659_840
        assert configs.tokenizer_2.build().pad_token_id == 0


@pytest.mark.parametrize(("name", "context", "linear", "text"), [("sd15", 768, False, 196), ("sd21", 1024, True, 23 * 12 + 4)])
def test_the_programs_tell_the_generation_by_these_tensors(name: str, context: int, linear: bool, text: int) -> None:
    parts = modules(load_released_configs(name))
    shapes = {part: {canonical_name(key): tuple(p.shape) for key, p in module.state_dict().items()} for part, module in parts.items()}
    file = {key: place.shape(shapes[place.part]) for key, place in places_of(**parts).items()}
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
    place = places_of(**parts)["first_stage_model.decoder.mid.attn_1.q.weight"]
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
        to_checkpoint(model, moved(model), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_edits_that_are_not_weights_are_refused_by_what_they_are(model: StableDiffusion, tmp_path: Path) -> None:
    guided = erase(model, CAT, NegativePrompt(), out=tmp_path / "guided")
    with pytest.raises(UserError, match="changes how a model samples"):
        to_checkpoint(model, guided, tmp_path / "out")
    one_step = erase(model, CAT, small("sfd"), out=tmp_path / "one-step")
    with pytest.raises(UserError, match="one-step generator"):
        to_checkpoint(model, one_step, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_values_beyond_fp16_are_refused(model: StableDiffusion, tmp_path: Path) -> None:
    edit = moved(model)
    with torch.no_grad():
        model.pipe.vae.quant_conv.weight[0, 0] = 1e6
    with pytest.raises(UserError, match="weight holds values"):
        to_checkpoint(model, edit, tmp_path / "out")


def test_what_the_programs_will_get_wrong_is_said(velocity_model: StableDiffusion) -> None:
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
    model = load_model(str(base), precision="fp32")
    edit = erase(model, CAT, small("advunlearn"), out=tmp_path / "run")
    assert main(["export", str(tmp_path / "run"), "--as", "checkpoint"]) == 0
    files = sorted(p.name for p in (tmp_path / "run" / "checkpoint").iterdir())
    assert files == ["README.md", "advunlearn-cat.safetensors", "before-after-0.png", "before-after-1.png"]
    assert "load_model(FILE)" in (tmp_path / "run" / "checkpoint" / "README.md").read_text()
    back = load_model(str(tmp_path / "run" / "checkpoint" / "advunlearn-cat.safetensors"))
    with apply_edits(model, [edit]):
        assert back.fingerprint() == model.fingerprint()
    capsys.readouterr()
    assert main(["export", str(tmp_path / "run"), "--as", "checkpoint"]) == 1
    assert "not empty" in capsys.readouterr().err
