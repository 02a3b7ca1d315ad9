"""stable-diffusion.cpp: every key becomes the name of a tensor of the original checkpoint; other names are unused."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from tests.clients import original_layout

SUFFIXES = {
    ".lora_down.weight": ".weight.lora_down",
    ".lora_up.weight": ".weight.lora_up",
    ".lora.down.weight": ".weight.lora_down",
    ".lora.up.weight": ".weight.lora_up",
    "_lora.down.weight": ".weight.lora_down",
    "_lora.up.weight": ".weight.lora_up",
    ".lora_A.weight": ".weight.lora_down",
    ".lora_B.weight": ".weight.lora_up",
    ".alpha": ".weight.alpha",
}
PREFIXES = {"unet.": "model.diffusion_model.", "te.": "cond_stage_model.transformer.", "te1.": "cond_stage_model.transformer."}
# words whose underscores survive when all others become dots, as far as they occur in Stable Diffusion 1.x and 2.x
WORDS = re.split(
    " ",
    "self_attn out_proj q_proj k_proj v_proj to_k to_q to_v to_out text_model down_blocks mid_block up_block proj_in proj_out "
    "transformer_blocks diffusion_model cond_stage_model conv_in conv_out lora_down lora_up time_emb_proj conv_shortcut time_embedding "
    "conv_norm_out input_blocks output_blocks middle_block skip_connection emb_layers in_layers out_layers",
)


def apply_lora(lora: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    tensors = {convert_key(key): value for key, value in lora.items()}
    changes = {}
    for name, weight in checkpoint_names(shapes).items():
        up, down = tensors.get(f"{name}.lora_up"), tensors.get(f"{name}.lora_down")
        if up is None or down is None:
            continue
        alpha = tensors.get(f"{name}.alpha")
        scale = 1.0 if alpha is None else alpha.item() / ggml_rank(down)
        product = (up.float().reshape(len(up), -1) @ down.float().reshape(len(down), -1)) * scale
        changes[weight] = product.reshape(shapes[weight])
    return changes


def ggml_rank(down: Tensor) -> int:
    """The last of ggml's dimensions that is above 1, which at rank 1 is not the rank: ggml counts from the innermost and drops ones."""
    sizes = list(down.shape)
    while len(sizes) > 1 and sizes[0] == 1:
        sizes.pop(0)
    return sizes[0]


def checkpoint_names(shapes: Mapping[str, torch.Size]) -> dict[str, str]:
    """Parameter of ours by the tensor of an original checkpoint. SD 2.x keeps queries, keys and values in one tensor, which is not here:
    the program splits a LoRA for it only in SDXL's second text encoder."""
    weights = [f"{layer}.weight" for layer in original_layout.weight_layers(shapes)]
    by_name = {f"model.diffusion_model.{ldm}": name for name, ldm in original_layout.original_unet_names(weights).items()}
    fused = original_layout.is_sd2(shapes)
    for name in weights:
        if name.startswith("text_encoder.") and not (fused and re.search(r"\.[qkv]_proj\.", name)):
            by_name[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_encoder.')}"] = name
    return by_name


def convert_key(key: str) -> str:
    """A key of a LoRA file as the program renames it for SD 1.x and 2.x."""
    name = key.removeprefix("lora.").removeprefix("lora_")
    for old, new in SUFFIXES.items():
        if name.endswith(old):
            name = name.removesuffix(old) + new
            break
    name = underscores_to_dots(name.replace(".processor", "", 1))
    for old, new in PREFIXES.items():
        if name.startswith(old):
            name = new + name.removeprefix(old)
            break
    head = "model.diffusion_model."
    return head + convert_unet_name(name.removeprefix(head)) if name.startswith(head) else name


def underscores_to_dots(name: str) -> str:
    protected = {match.start() + i for word in WORDS for match in re.finditer(word, name) for i, c in enumerate(word) if c == "_"}
    return "".join("." if c == "_" and i not in protected else c for i, c in enumerate(name))


def convert_unet_name(name: str) -> str:
    """Convert diffusers' block positions and inner names to the original's.

    conv_in, conv_out and the time embedding are only renamed where the whole name is `<layer>.weight`, which no tensor of a LoRA is.
    """
    if "resnets" in name:
        for ours, theirs in original_layout.RESNET.items():
            name = name.replace(ours, theirs, 1)
    for level in range(4):
        for index in range(3):
            for side, original_side, first in (("down_blocks", "input_blocks", 1), ("up_blocks", "output_blocks", 0)):
                block = f"{original_side}.{3 * level + index + first}"
                name = name.replace(f"{side}.{level}.resnets.{index}.", f"{block}.0.", 1)
                name = name.replace(f"{side}.{level}.attentions.{index}.", f"{block}.1.", 1)
        name = name.replace(f"down_blocks.{level}.downsamplers.0.conv.", f"input_blocks.{3 * (level + 1)}.0.op.", 1)
        name = name.replace(f"up_blocks.{level}.upsamplers.0.", f"output_blocks.{3 * level + 2}.{2 if level else 1}.", 1)
    name = name.replace("mid_block.attentions.0.", "middle_block.1.", 1)
    for index in range(2):
        name = name.replace(f"mid_block.resnets.{index}.", f"middle_block.{2 * index}.", 1)
    return name.replace("to_out.weight", "to_out.0.weight", 1)
