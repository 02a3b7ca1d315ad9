"""LoRAs of other people on SDXL, Stable Diffusion 3, FLUX.1 and FLUX.2-klein: what diffusers changes, or a refusal by name."""

import copy
import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from erasure.concept import Concept
from erasure.config.choices import LoraLayout
from erasure.edits.external.external_edit import load_external
from erasure.export import to_lora
from erasure.export.lora import delta_of, lora_targets_of
from erasure.export.lora_file import LORA_FILE
from erasure.families.base import DiffusionModel
from tests import synthetic_edits
from tests.lora_files import Weights, factors_of
from tests.tiny_models import BUILD

CAT = [Concept(name="cat", kind="object")]
FAMILIES = ("sdxl", "sd3", "flux-dev", "klein-base")


@pytest.fixture(scope="module")
def models() -> dict[str, DiffusionModel]:
    return {name: BUILD[name]() for name in FAMILIES}


def changes_of(model: DiffusionModel, path: Path) -> Weights:
    """What the file is as an external erasure."""
    edit, base = load_external(model, str(path), CAT), model.parameters()
    return {name: delta_of(edit, name, base[name]) for name in edit.moved_parameters()}


def changes_in_diffusers(model: DiffusionModel, path: Path) -> Weights:
    """What diffusers makes of the file."""
    loaded = copy.copy(model)
    loaded.pipe = copy.deepcopy(model.pipe)
    loaded.pipe.load_lora_weights(str(path))
    loaded.pipe.fuse_lora(components=list(model.networks))
    base = model.parameters()
    changes = {name: p.detach() - base[name].detach() for name, p in loaded.parameters().items()}
    return {name: change for name, change in changes.items() if change.any()}


def assert_same(changes: Weights, expected: Weights) -> None:
    """Equal but for the rounding of factors to fp16."""
    assert changes.keys() == expected.keys() and changes
    for name, delta in expected.items():
        assert (changes[name] - delta).norm() < 2e-3 * delta.norm(), name


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_was_exported_reads_back(name: str, layout: LoraLayout, models: dict[str, DiffusionModel], tmp_path: Path) -> None:
    model = models[name]
    edit, base = synthetic_edits.edit_of_layers(model, lora_targets_of(model)), model.parameters()
    to_lora(model, edit, tmp_path / "lora", 3, layout)
    assert_same(changes_of(model, tmp_path / "lora"), {name: delta_of(edit, name, base[name]) for name in edit.moved_parameters()})
    loaded = load_external(model, str(tmp_path / "lora"), CAT)
    assert {len(value) for key, value in loaded.tensors.items() if key.endswith("down")} == {3}  # not three times that in split matrices


TARGETS = {
    "sdxl": ["attn2.to_k", "conv1", "add_embedding.linear_1", "proj_in"],
    "sd3": ["attn.add_k_proj", "attn2.to_q", "ff.net.2", "context_embedder", "norm_out.linear"],
    "flux-dev": ["attn.to_q", "proj_mlp", "proj_out", "context_embedder", "norm_out.linear"],
    "klein-base": ["to_qkv_mlp_proj", "attn.add_v_proj", "ff.linear_in", "double_stream_modulation_img.linear"],
}


@pytest.mark.parametrize("name", FAMILIES)
def test_files_of_diffusers_with_their_own_scale(name: str, models: dict[str, DiffusionModel], tmp_path: Path) -> None:
    model = models[name]
    pipe, config = copy.deepcopy(model.pipe), LoraConfig(r=2, lora_alpha=6, target_modules=TARGETS[name])
    states, metadata = {}, {}
    for part in model.networks:
        network, settings = (
            getattr(pipe, part),
            config if not part.startswith("text") else LoraConfig(r=2, lora_alpha=8, target_modules=["fc1", "out_proj"]),
        )
        network.add_adapter(settings)
        torch.manual_seed(2)
        for key, p in network.named_parameters():
            if "lora_" in key:
                p.data.normal_(0, 0.1)
        states[f"{part}_lora_layers"] = get_peft_model_state_dict(network)
        fields = {k: sorted(v) if isinstance(v, set) else v for k, v in settings.to_dict().items() if k != "runtime_config"}
        metadata[f"{part}_lora_adapter_metadata"] = fields
    pipe.save_lora_weights(tmp_path, **states, **metadata)
    assert_same(changes_of(model, tmp_path), changes_in_diffusers(model, tmp_path))


SPELLINGS: dict[str, tuple[str, Weights]] = {
    "kohya, SDXL in diffusers' block names": (
        "sdxl",
        factors_of(
            {
                "lora_unet_down_blocks_1_attentions_0_transformer_blocks_1_attn2_to_k": (32, 48),
                "lora_te1_text_model_encoder_layers_0_mlp_fc1": (32, 16),
                "lora_te2_text_model_encoder_layers_1_mlp_fc2": (32, 64),
            },
            spelling=("lora_up", "lora_down"),
            alpha=4,
        ),
    ),
    "kohya, SDXL in the original block names": (
        "sdxl",
        factors_of(
            {"lora_unet_input_blocks_3_1_transformer_blocks_1_attn2_to_k": (32, 48), "lora_unet_label_emb_0_2": (64, 64)},
            spelling=("lora_up", "lora_down"),
            alpha=1,
        ),
    ),
    "kohya, FLUX.1": (
        "flux-dev",
        factors_of(
            {
                "lora_unet_double_blocks_0_txt_attn_qkv": (96, 32),
                "lora_unet_double_blocks_1_img_mlp_0": (128, 32),
                "lora_unet_single_blocks_1_linear2": (32, 160),
                "lora_te1_text_model_encoder_layers_0_mlp_fc1": (64, 32),
            },
            spelling=("lora_up", "lora_down"),
            alpha=1,
        ),
    ),
    "ComfyUI, FLUX.1": (
        "flux-dev",
        factors_of({"diffusion_model.double_blocks.1.img_attn.qkv": (96, 32)}, spelling=("lora_up", "lora_down")),
    ),
    "ComfyUI, FLUX.2": (
        "klein-base",
        factors_of({"diffusion_model.double_blocks.0.img_attn.qkv": (96, 32), "diffusion_model.single_blocks.1.linear1": (288, 32)}),
    ),
    "FLUX.2 in diffusers' block names": ("klein-base", factors_of({"diffusion_model.transformer_blocks.1.attn.add_k_proj": (32, 32)})),
    "kohya, FLUX.2": (
        "klein-base",
        factors_of(
            {"lora_unet_double_blocks_1_txt_attn_qkv": (96, 32), "lora_unet_txt_in": (32, 48)}, spelling=("lora_up", "lora_down"), alpha=3
        ),
    ),
}


@pytest.mark.parametrize("kind", SPELLINGS)
def test_spellings_that_diffusers_reads(kind: str, models: dict[str, DiffusionModel], tmp_path: Path) -> None:
    """Of a fused matrix, queries, keys and values share one dense down factor here."""
    name, tensors = SPELLINGS[kind]
    save_file(tensors, tmp_path / "lora.safetensors")
    assert_same(changes_of(models[name], tmp_path / "lora.safetensors"), changes_in_diffusers(models[name], tmp_path / "lora.safetensors"))


def test_spellings_that_comfyui_reads_alone(models: dict[str, DiffusionModel], tmp_path: Path) -> None:
    """The last norm of the text side of Stable Diffusion 3 gives shift before scale."""
    tensors = factors_of(
        {
            "diffusion_model.joint_blocks.2.context_block.adaLN_modulation.1": (64, 32),
            "lora_transformer_transformer_blocks_0_attn2_to_q": (32, 32),
            "text_encoders.clip_g.transformer.text_model.encoder.layers.0.mlp.fc1": (64, 32),
            "base_model.model.context_embedder": (32, 64),
        }
    )
    del tensors["base_model.model.context_embedder.lora_A.weight"], tensors["base_model.model.context_embedder.lora_B.weight"]
    save_file(tensors, tmp_path / "lora.safetensors")
    products = {key.removesuffix(".lora_B.weight"): up @ tensors[key.replace("_B", "_A")] for key, up in tensors.items() if "lora_B" in key}
    norm, query, text = products.values()
    norm_name = "transformer.transformer_blocks.2.norm1_context.linear.weight"
    expected = {norm_name: torch.cat((norm[32:], norm[:32])), "transformer.transformer_blocks.0.attn2.to_q.weight": query}
    assert_same(
        changes_of(models["sd3"], tmp_path / "lora.safetensors"), expected | {"text_encoder_2.encoder.layers.0.mlp.fc1.weight": text}
    )


def test_peft_folders_of_transformers(models: dict[str, DiffusionModel], tmp_path: Path) -> None:
    tensors = factors_of({"base_model.model.transformer_blocks.0.attn.add_k_proj": (32, 32)})
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 6, "peft_type": "LORA"}))
    ((name, change),) = changes_of(models["sd3"], tmp_path).items()
    b, a = tensors.values()
    assert name == "transformer.transformer_blocks.0.attn.add_k_proj.weight" and (change - 3 * b @ a).norm() < 2e-3 * change.norm()


def test_a_state_dict_of_the_second_text_encoder_is_no_adapter(models: dict[str, DiffusionModel], tmp_path: Path) -> None:
    name = "text_encoder_2.encoder.layers.0.mlp.fc1.weight"
    save_file({name: models["sdxl"].parameters()[name].detach() + 1}, tmp_path / "part.safetensors")
    assert load_external(models["sdxl"], str(tmp_path / "part.safetensors"), CAT).moved_parameters() == {name}


def test_the_exported_file_is_named_as_diffusers_expects(models: dict[str, DiffusionModel], tmp_path: Path) -> None:
    """CLIP's `text_model.` level is always there."""
    model = models["sd3"]
    for layout, start in (("diffusers", "text_encoder_2.text_model.encoder."), ("kohya", "lora_te2_text_model_encoder_")):
        edit = synthetic_edits.edit_of_layers(model, ["text_encoder_2.encoder.layers.0.mlp.fc1.weight"])
        to_lora(model, edit, tmp_path / layout, layout=layout)  # type: ignore[arg-type]
        assert all(key.startswith(start) for key in load_file(tmp_path / layout / LORA_FILE))
