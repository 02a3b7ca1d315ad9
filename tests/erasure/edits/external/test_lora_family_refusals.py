"""LoRAs of another family, of text encoders that no edit can change, and of other kinds are refused by name."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from erasure.edits.external.external_edit import load_external
from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.families.stable_diffusion import StableDiffusion
from tests import tiny
from tests.lora_files import CAT, Weights, factors_of
from tests.tiny_models import BUILD


@pytest.fixture(scope="module")
def models() -> dict[str, DiffusionModel]:
    return {name: BUILD[name]() for name in ("sdxl", "sd3", "flux-dev", "klein-base")}


SD1 = {"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k": (16, 768)}
OTHER_FAMILIES: dict[str, tuple[str, Weights, str]] = {
    "FLUX.1 on SD3": (
        "sd3",
        factors_of({"transformer.single_transformer_blocks.0.attn.to_q": (32, 32)}),
        "looks like a LoRA of FLUX.1, and",
    ),
    "kohya's FLUX on SD3": (
        "sd3",
        factors_of({"lora_unet_double_blocks_0_img_attn_qkv": (96, 32)}),
        "LoRA of FLUX, and tiny is one of Stable",
    ),
    "FLUX.2 on FLUX.1": ("flux-dev", factors_of({"transformer.transformer_blocks.0.ff.linear_in": (192, 32)}), "LoRA of FLUX.2, and"),
    "FLUX.1 on FLUX.2": ("klein-base", factors_of({"lora_unet_vector_in_in_layer": (32, 32)}), "LoRA of FLUX.1, and"),
    "SD3 on FLUX": ("flux-dev", factors_of({"diffusion_model.joint_blocks.0.x_block.attn.qkv": (96, 32)}), "Stable Diffusion 3, and"),
    "SD3 on SDXL": ("sdxl", factors_of({"transformer.transformer_blocks.0.attn.to_q": (32, 32)}), "of Stable Diffusion 3 or FLUX, and"),
    "SD1 on FLUX": (
        "flux-dev",
        factors_of(SD1, spelling=("lora_up", "lora_down"), alpha=2),
        r"LoRA of Stable Diffusion 1\.x, and tiny is one of",
    ),
    "SD1 on SDXL": (
        "sdxl",
        factors_of(SD1, spelling=("lora_up", "lora_down"), alpha=2),
        r"LoRA of Stable Diffusion 1\.x, and tiny is one of SDXL",
    ),
    "SD2 on SDXL": (
        "sdxl",
        factors_of({"unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": (32, 1024)}),
        r"LoRA of Stable Diffusion 2\.x, and",
    ),
    "SDXL on FLUX.2": (
        "klein-base",
        factors_of({"lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_k": (8, 8)}),
        "LoRA of SDXL, and",
    ),
}


@pytest.mark.parametrize("kind", OTHER_FAMILIES)
def test_a_lora_of_another_family_is_recognized(kind: str, models: dict[str, DiffusionModel], tmp_path: Path) -> None:
    name, tensors, words = OTHER_FAMILIES[kind]
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(UserError, match=words) as error:
        load_external(models[name], str(tmp_path / "lora.safetensors"), CAT)
    assert "\n" not in str(error.value) and str(error.value).endswith("give its own base with --model.")


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ({"unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": (32, 2048)}, "LoRA of SDXL, and"),
        ({"unet.up_blocks.0.attentions.0.transformer_blocks.3.attn2.to_k": (32, 48)}, "LoRA of SDXL, and"),
        ({"lora_unet_label_emb_0_0": (32, 48)}, "LoRA of SDXL, and"),
        (
            {"transformer.single_transformer_blocks.0.proj_mlp": (32, 48)},
            r"LoRA of FLUX.1, and tiny is one of Stable Diffusion 1\.x and 2\.x",
        ),
    ],
)
def test_what_stable_diffusion_1_refuses(layer: dict[str, tuple[int, int]], words: str, tmp_path: Path) -> None:
    save_file(factors_of(layer), tmp_path / "lora.safetensors")
    with pytest.raises(UserError, match=words):
        load_external(StableDiffusion(tiny.pipeline(), "tiny", "fp32"), str(tmp_path / "lora.safetensors"), CAT)


def test_the_header_tells_transformers_with_the_same_names_apart(models: dict[str, DiffusionModel], tmp_path: Path) -> None:
    tensors = factors_of({"transformer.transformer_blocks.0.attn.add_k_proj": (32, 32)})
    for architecture in ("flux-1-dev/lora", "Flux.2-klein-4b/lora"):
        save_file(tensors, tmp_path / "lora.safetensors", metadata={"modelspec.architecture": architecture})
        with pytest.raises(UserError, match=f"looks like a LoRA of {architecture}"):
            load_external(models["sd3"], str(tmp_path / "lora.safetensors"), CAT)
    save_file(tensors, tmp_path / "lora.safetensors", metadata={"modelspec.architecture": "stable-diffusion-3-medium/lora"})
    assert len(load_external(models["sd3"], str(tmp_path / "lora.safetensors"), CAT).moved_parameters()) == 1


@pytest.mark.parametrize(
    ("name", "key", "words"),
    [
        ("sd3", "lora_te3_encoder_block_0_layer_0_SelfAttention_q", r"changes T5 \(2 tensors, such as 'lora_te3_"),
        ("sd3", "text_encoder_3.encoder.block.0.layer.0.SelfAttention.q", "changes T5"),
        ("flux-dev", "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q", "changes T5"),
        ("flux-dev", "lora_te2_encoder_block_0_layer_0_SelfAttention_q", "changes T5"),
        ("flux-dev", "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q", "changes T5"),
        ("klein-base", "text_encoder.model.layers.0.self_attn.q_proj", "changes Qwen3.*that no edit of tiny can change"),
        ("klein-base", "lora_te_layers_0_self_attn_q_proj", "changes Qwen3"),
        ("flux-dev", "transformer.nowhere", "2 tensors belong to none of its layers, such as 'transformer.nowhere"),
    ],
)
def test_frozen_text_encoders_are_refused_by_name(
    name: str, key: str, words: str, models: dict[str, DiffusionModel], tmp_path: Path
) -> None:
    save_file(factors_of({"transformer.context_embedder": (32, 64), key: (8, 8)}), tmp_path / "lora.safetensors")
    with pytest.raises(UserError, match=words):
        load_external(models[name], str(tmp_path / "lora.safetensors"), CAT)


def test_other_refusals(models: dict[str, DiffusionModel], tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file({"double_blocks.0.processor.qkv_lora1.down.weight": torch.ones(2, 32)}, path)
    with pytest.raises(UserError, match="XLabs"):
        load_external(models["flux-dev"], str(path), CAT)
    save_file(factors_of({"lora_unet_double_blocks_0_img_attn_qkv": (90, 32)}, spelling=("lora_up", "lora_down")), path)
    with pytest.raises(UserError, match="has 90 rows, its layers have 96 together"):
        load_external(models["flux-dev"], str(path), CAT)
    qkv, query = {"lora_unet_double_blocks_0_img_attn_qkv": (96, 32)}, {"transformer.transformer_blocks.0.attn.to_q": (32, 32)}
    save_file(factors_of(qkv) | factors_of(query), path)
    with pytest.raises(UserError, match=r"more than once"):
        load_external(models["flux-dev"], str(path), CAT)
