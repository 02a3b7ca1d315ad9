"""A1111: the part of a key before the first dot is converted to the name of a module of the original model."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from tests.clients import original_layout

BLOCK = re.compile(r"lora_unet_(down|up)_blocks_(\d+)_(attentions|resnets)_(\d+)_(.+)")
MIDDLE = re.compile(r"lora_unet_mid_block_(attentions|resnets)_(\d+)_(.+)")
SAMPLER = re.compile(r"lora_unet_(down|up)_blocks_(\d+)_(?:down|up)samplers_0_conv")
TEXT = re.compile(r"lora_te_text_model_encoder_layers_(\d+)_(.+)")
RESNET = {"conv1": "in_layers_2", "conv2": "out_layers_3", "time_emb_proj": "emb_layers_1", "conv_shortcut": "skip_connection"}


def apply_lora(lora: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    sd2 = original_layout.is_sd2(shapes)
    layers = layers_by_module(shapes, sd2)
    parts_by_module: dict[str, dict[str, Tensor]] = {}
    for key, value in lora.items():
        before, _, part = key.partition(".")
        name = convert_name(before, sd2)
        if name not in layers and before.startswith("lora_unet"):
            name = before.replace("lora_unet", "diffusion_model")
        if name not in layers and "lora_te1_text_model" in before:
            name = before.replace("lora_te1_text_model", "transformer_text_model")
        if name in layers:
            parts_by_module.setdefault(name, {})[part] = value
    if any(not {"lora_up.weight", "lora_down.weight"} <= parts.keys() for parts in parts_by_module.values()):
        return {}  # loading raises
    changes = {}
    for name, parts in parts_by_module.items():
        attention = re.match(r"(model_transformer_resblocks_\d+_attn)_(?:[qkv]|out)_proj$", name)
        if attention and not all(f"{attention[1]}_{p}_proj" in parts_by_module for p in ("q", "k", "v", "out")):
            continue  # torch's fused attention of SD 2.x takes all four or none
        up, down = parts["lora_up.weight"].float(), parts["lora_down.weight"].float()
        scale = parts["alpha"].item() / len(down) if "alpha" in parts else 1.0
        weight = f"{layers[name]}.weight"
        changes[weight] = scale * (up.reshape(len(up), -1) @ down.reshape(len(down), -1)).reshape(shapes[weight])
    return changes


def layers_by_module(shapes: Mapping[str, torch.Size], sd2: bool) -> dict[str, str]:
    """Layer of ours by the name of its module, dots as underscores; queries, keys and values of SD 2.x by the fused module they are in."""
    layers = original_layout.weight_layers(shapes)
    ldm = original_layout.original_unet_names(f"{layer}.weight" for layer in layers)
    by_module = {
        f"diffusion_model_{ldm[f'{n}.weight'].removesuffix('.weight').replace('.', '_')}": n for n in layers if n.startswith("unet.")
    }
    for layer in layers:
        part, _, path = layer.partition(".")
        if part == "unet":
            continue
        if not sd2:
            by_module[f"transformer_text_model_{path.replace('.', '_')}"] = layer
            continue
        _, _, index, inner = path.split(".", 3)
        theirs = original_layout.OPEN_CLIP.get(inner, inner.replace("self_attn", "attn"))
        by_module[f"model_transformer_resblocks_{index}_{theirs.replace('.', '_')}"] = layer
    return by_module


def convert_name(name: str, sd2: bool) -> str:
    simple = {
        "conv_in": "input_blocks_0_0",
        "conv_out": "out_2",
        "time_embedding_linear_1": "time_embed_0",
        "time_embedding_linear_2": "time_embed_2",
    }
    for ours, theirs in simple.items():
        if name.startswith(f"lora_unet_{ours}"):
            return f"diffusion_model_{theirs}" + name.removeprefix(f"lora_unet_{ours}")
    if match := BLOCK.match(name):
        side, level, kind, index, rest = match.groups()
        number = 3 * int(level) + int(index) + (side == "down")
        inner = RESNET.get(rest, rest) if kind == "resnets" else rest
        return f"diffusion_model_{'input' if side == 'down' else 'output'}_blocks_{number}_{int(kind == 'attentions')}_{inner}"
    if match := MIDDLE.match(name):
        kind, index, rest = match.groups()
        inner = RESNET.get(rest, rest) if kind == "resnets" else rest
        return f"diffusion_model_middle_block_{1 if kind == 'attentions' else 2 * int(index)}_{inner}"
    if match := SAMPLER.match(name):
        level = int(match[2])
        if match[1] == "down":
            return f"diffusion_model_input_blocks_{3 + 3 * level}_0_op"
        return f"diffusion_model_output_blocks_{2 + 3 * level}_{2 if level else 1}_conv"
    if match := TEXT.match(name):
        if not sd2:
            return f"transformer_text_model_encoder_layers_{match[1]}_{match[2]}"
        inner = match[2].replace("mlp_fc1", "mlp_c_fc").replace("mlp_fc2", "mlp_c_proj").replace("self_attn", "attn")
        return f"model_transformer_resblocks_{match[1]}_{inner}"
    return name
