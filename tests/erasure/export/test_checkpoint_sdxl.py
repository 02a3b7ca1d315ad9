"""SDXL as one file: what diffusers and the other programs read in it, and what its readers are told about v-prediction."""

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders import single_file_utils
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from erasure.edits import apply_edits
from erasure.edits.external.external_edit import load_external
from erasure.errors import AssumptionWarning, UserError
from erasure.export.checkpoint import build_checkpoint_metadata, predict_misreadings, prediction_markers, to_checkpoint
from erasure.families.parameters import canonical_name
from erasure.families.stable_diffusion import StableDiffusion
from erasure.families.stable_diffusion_xl import StableDiffusionXL
from erasure.loading.loader import load_model
from erasure.loading.original_layout import places_of
from erasure.loading.pipeline_configs import PipelineConfigs, load_released_configs
from tests import tiny, tiny_families
from tests.factories import CAT
from tests.sd_architecture import modules_without_weights, shapes_in_one_file
from tests.synthetic_edits import edit_of_everything

NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")


def build(**scheduler: Any) -> StableDiffusionXL:
    pipe = tiny_families.sdxl()
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **scheduler)
    return StableDiffusionXL(pipe, "tiny", "fp32")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[StableDiffusionXLPipeline, Path]:
    """A pipeline with an edit of everything, rounded to fp16, and the checkpoint of base and edit."""
    model = build()
    edit = edit_of_everything(model)
    with pytest.warns(AssumptionWarning, match="at its released sizes only"):
        path = to_checkpoint(model, edit, tmp_path_factory.mktemp("file") / "out")
    edit.apply(model.pipe)
    for part in NETWORKS:
        getattr(model.pipe, part).half().float()
    return model.pipe, path


def test_the_file_generates_the_images_of_the_edited_pipeline(exported: tuple[StableDiffusionXLPipeline, Path]) -> None:
    pipe, path = exported
    loaded = load_model(str(path), device="cpu", dtype="fp32")
    assert isinstance(loaded, StableDiffusionXL) and loaded.pipe.watermark is None
    assert loaded.pipe.config["force_zeros_for_empty_prompt"] is True
    assert type(loaded.pipe.scheduler) is type(pipe.scheduler)
    prompts, options = ["a painting of a cat!", ""], {"num_inference_steps": 2, "output_type": "pt", "guidance_scale": 5.0}
    theirs, own = (p(prompts, generator=torch.Generator().manual_seed(3), **options).images for p in (pipe, loaded.pipe))
    assert torch.equal(theirs, own) and own.std() > 0.01
    ours = StableDiffusionXL(pipe, "tiny", "fp32").sample(prompts, [1, 2], steps=2)
    assert torch.equal(loaded.sample(prompts, [1, 2], steps=2), ours)


def test_diffusers_reads_the_same_weights(exported: tuple[StableDiffusionXLPipeline, Path], tmp_path: Path) -> None:
    pipe, path = exported
    pipe.save_pretrained(tmp_path / "model")
    for weights in (tmp_path / "model").rglob("*.safetensors"):
        weights.unlink()
    theirs = StableDiffusionXLPipeline.from_single_file(str(path), config=str(tmp_path / "model"), local_files_only=True)
    for part in NETWORKS:
        expected, read = getattr(pipe, part).state_dict(), getattr(theirs, part).state_dict()
        assert read.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(read[name].float(), value), f"{part}.{name}"


def test_settings_of_the_pipeline_are_in_the_file(tmp_path: Path) -> None:
    model = build(timestep_spacing="trailing")
    model.pipe.register_to_config(force_zeros_for_empty_prompt=False)
    model.pipe.tokenizer_2.pad_token = "!"
    with pytest.warns(AssumptionWarning):
        path = to_checkpoint(model, edit_of_everything(model), tmp_path / "out")
    loaded = load_model(str(path), device="cpu", dtype="fp32")
    assert isinstance(loaded, StableDiffusionXL) and not loaded.zeros_for_empty_prompt
    assert loaded.pipe.scheduler.config.timestep_spacing == "trailing"
    assert loaded.pipe.tokenizer.pad_token != loaded.pipe.tokenizer_2.pad_token == "!"


def test_the_names_and_shapes_of_the_release_are_those_that_diffusers_reads() -> None:
    configs = load_released_configs("sdxl")
    parts, file = modules_without_weights(configs), shapes_in_one_file(configs)
    # sd_xl_base_1.0.safetensors holds 2515 tensors; two more, position_ids and logit_scale, are not in diffusers' networks
    assert len(file) == 2515 - 2
    tensors = {name: torch.empty(shape, device="meta") for name, shape in file.items()}
    clip = {name: value for name, value in tensors.items() if name.startswith("conditioner.embedders.0.")}
    second = parts["text_encoder_2"]
    read: dict[str, dict[str, Tensor]] = {
        "unet": single_file_utils.convert_ldm_unet_checkpoint(dict(tensors), dict(parts["unet"].config)),  # type: ignore[arg-type]
        "vae": single_file_utils.convert_ldm_vae_checkpoint(dict(tensors), parts["vae"].config),
        "text_encoder": single_file_utils.convert_ldm_clip_checkpoint(clip),
        "text_encoder_2": single_file_utils.convert_open_clip_checkpoint(second, dict(tensors), "conditioner.embedders.1.model."),
    }
    for part, module in parts.items():
        expected = {canonical_name(name): value.shape for name, value in module.state_dict().items()}
        # the VAE's attention is a convolution in the file for other programs; `shapes_in_one_file` counts it as the matrix it is
        assert {canonical_name(name): value.shape for name, value in read[part].items()} == expected, part


def test_the_programs_recognize_sdxl_by_these_tensors() -> None:
    file = shapes_in_one_file(load_released_configs("sdxl"))
    unet, second = "model.diffusion_model.", "conditioner.embedders.1.model."
    # ComfyUI (comfy/model_detection.py, comfy/supported_models.py, class SDXL): width, input channels, pooled text and sizes, projections,
    # width of the conditioning, and the number of transformer blocks by residual block
    assert file[f"{unet}input_blocks.0.0.weight"] == (320, 4, 3, 3) and file[f"{unet}out.2.weight"] == (4, 320, 3, 3)
    assert file[f"{unet}label_emb.0.0.weight"] == (1280, 2816)
    depths = []
    for i in range(1, 9):
        if f"{unet}input_blocks.{i}.0.op.weight" not in file:  # a block that halves the size is not counted
            numbers = {name.split(".")[6] for name in file if name.startswith(f"{unet}input_blocks.{i}.1.transformer_blocks.")}
            depths.append(len(numbers))
    assert depths == [0, 0, 2, 2, 10, 10]
    assert file[f"{unet}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"] == (640, 2048)
    assert file[f"{unet}input_blocks.4.1.proj_in.weight"] == (640, 640)
    # A1111 (modules/sd_models_config.py) by this; stable-diffusion.cpp (src/model_loader.cpp) by any name below conditioner.embedders.1,
    # and for SDXL, not its smaller relatives, by the two blocks
    assert f"{second}ln_final.weight" in file
    assert any(name.startswith(f"{unet}middle_block.1.") for name in file)
    assert any(name.startswith(f"{unet}output_blocks.3.1.transformer_blocks.1") for name in file)
    # kohya's sdxl_model_util.py and ComfyUI's clip_text_transformers_convert transpose this one; the fused tensors are split in three
    assert file[f"{second}text_projection"] == (1280, 1280) and file[f"{second}positional_embedding"] == (77, 1280)
    assert file[f"{second}transformer.resblocks.31.attn.in_proj_weight"] == (3840, 1280)
    assert file["conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight"] == (49408, 768)


def test_a_projection_that_is_not_square_is_stored_transposed() -> None:
    pipe = tiny_families.sdxl()
    torch.manual_seed(0)
    pipe.text_encoder_2.text_projection = torch.nn.Linear(32, 24, bias=False)
    place = places_of(pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2)["conditioner.embedders.1.model.text_projection"]
    weight = pipe.text_encoder_2.text_projection.weight
    assert torch.equal(place.gather({"text_projection.weight": weight}), weight.T)
    assert place.shape({"text_projection.weight": (24, 32)}) == (32, 24)


def test_openclip_itself_computes_the_same_from_the_file() -> None:
    """The second text encoder in OpenCLIP's own code, whose names and matrices the file has."""
    pipe = tiny_families.sdxl()
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 128, "projection_dim": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = CLIPTextConfig(vocab_size=50, max_position_embeddings=16, hidden_act="gelu", bos_token_id=48, eos_token_id=49, **size)
    second = CLIPTextModelWithProjection(config).eval()
    for value in second.parameters():
        torch.nn.init.normal_(value, std=0.2)
    values = {canonical_name(name): value for name, value in second.state_dict().items()}
    places = places_of(pipe.unet, pipe.vae, pipe.text_encoder, second)
    prefix = "conditioner.embedders.1.model."
    tensors = {name.removeprefix(prefix): place.gather(values) for name, place in places.items() if name.startswith(prefix)}
    vision = open_clip.CLIPVisionCfg(layers=1, width=64, image_size=16, patch_size=16)
    text = open_clip.CLIPTextCfg(context_length=16, vocab_size=50, width=32, heads=2, layers=3)
    theirs = open_clip.CLIP(24, vision, text).eval()
    missing, unexpected = theirs.load_state_dict(tensors, strict=False)
    assert unexpected == [] and {name.partition(".")[0] for name in missing} == {"visual", "logit_scale"}
    ids = torch.randint(48, (2, 16))
    ids[0, 5], ids[1, 15] = 49, 49
    with torch.no_grad():
        assert torch.allclose(theirs.encode_text(ids), second(ids).text_embeds, atol=1e-4)


def test_two_text_encoders_of_one_width_are_refused(tmp_path: Path) -> None:
    pipe = tiny_families.sdxl()
    pipe.text_encoder = tiny_families.clip_text_model(32)
    pipe.unet = UNet2DConditionModel.from_config(pipe.unet.config, cross_attention_dim=64)
    model = StableDiffusionXL(pipe, "tiny", "fp32")
    with pytest.raises(UserError, match=r"two text encoders of the same width \(32\)"):
        to_checkpoint(model, edit_of_everything(model), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("zero_snr", "markers"), [(False, {"v_pred"}), (True, {"v_pred", "ztsnr"})])
def test_v_prediction_is_marked_as_the_programs_read_it(zero_snr: bool, markers: set[str], tmp_path: Path) -> None:
    model = build(prediction_type="v_prediction", rescale_betas_zero_snr=zero_snr)
    with pytest.warns(AssumptionWarning):
        path = to_checkpoint(model, edit_of_everything(model), tmp_path / "out")
    tensors = load_file(path)
    assert {name for name, value in tensors.items() if not value.numel()} == markers
    with safe_open(path, "pt") as file:
        assert file.metadata()["modelspec.prediction_type"] == "v"
    loaded = load_model(str(path), device="cpu", dtype="fp32")
    assert loaded.schedule.predicts_v and loaded.schedule.zero_terminal_snr == zero_snr  # type: ignore[attr-defined]


def released_with(**scheduler: Any) -> PipelineConfigs:
    configs = load_released_configs("sdxl")
    return configs.model_copy(update={"scheduler": {**configs.scheduler, **scheduler}})


def test_what_the_programs_will_misread_is_warned_about() -> None:
    model = build()
    assert predict_misreadings(model, released_with()) == [] and prediction_markers(released_with()) == {}
    (v_note,) = predict_misreadings(model, released_with(prediction_type="v_prediction"))
    assert v_note.startswith("A1111 up to 1.10.1") and "VScaling for EpsScaling" in v_note
    notes = predict_misreadings(model, released_with(prediction_type="v_prediction", rescale_betas_zero_snr=True))
    assert notes[0] == v_note and len(notes) == 2 and notes[1].startswith("stable-diffusion.cpp and A1111 up to 1.10.1")
    for part, change in (
        ("unet", {"transformer_layers_per_block": [1, 2, 4]}),
        ("text_encoder_2", {"projection_dim": 1024}),
        ("tokenizer_2", {"vocabulary": {"a": 0}}),
    ):
        config = getattr(released_with(), part)
        changed = {**config, **change} if isinstance(config, dict) else config.model_copy(update=change)
        (note,) = predict_misreadings(model, released_with().model_copy(update={part: changed}))
        assert f"differs in {part}.{next(iter(change))}. Unless it has those of SSD-1B or Vega, only this project" in note
        metadata = build_checkpoint_metadata(model, edit_of_everything(model), released_with().model_copy(update={part: changed}))
        assert metadata["modelspec.architecture"] == "latent-diffusion"
    for prediction in ("epsilon", "v_prediction"):
        metadata = build_checkpoint_metadata(model, edit_of_everything(model), released_with(prediction_type=prediction))
        assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base"


def test_an_erasure_in_one_file_is_read_whole(exported: tuple[StableDiffusionXLPipeline, Path], tmp_path: Path) -> None:
    """With both text encoders and the projection; a folder of the same pipeline gives the same edit."""
    pipe, path = exported
    model = build()
    edit = edit_of_everything(model)
    pipe.save_pretrained(tmp_path / "folder")
    for source in (path, tmp_path / "folder"):
        loaded = load_external(model, str(source), CAT)
        assert loaded.moved_parameters() == edit.moved_parameters() == model.parameters().keys()
        with apply_edits(model, [edit]):
            expected = model.fingerprint()
        with apply_edits(model, [loaded]):
            assert model.fingerprint() == expected
    with pytest.raises(UserError, match=r"holds 'conditioner.embedders.0.*', of a text encoder that tiny does not have"):
        load_external(StableDiffusion(tiny.pipeline(), "tiny", "fp32"), str(path), CAT)


def test_an_erasure_that_predicts_v_needs_its_own_base(tmp_path: Path) -> None:
    model = build(prediction_type="v_prediction")
    with pytest.warns(AssumptionWarning):
        path = to_checkpoint(model, edit_of_everything(model), tmp_path / "out")
    with pytest.raises(UserError, match="it predicts v, and tiny predicts noise"):
        load_external(build(), str(path), CAT)
    assert load_external(model, str(path), CAT).moved_parameters()
