"""Checkpoints in the original layout: under which name the programs look for each parameter of UNet and text encoders.

The names follow rules written from how the programs count blocks: an input block for every residual block and every downsampler after the
first convolution, an output block for every residual block.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from erasure.families.base import DiffusionModel
from tests.clients.original_layout import OPEN_CLIP, RESNET

OUTSIDE_BLOCKS = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
OPEN_CLIP_OUTSIDE_BLOCKS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}


def read_as_a_program_does(tensors: Mapping[str, Tensor], name: str, model: DiffusionModel) -> Tensor:
    """The tensor at the place where the programs look for a parameter of UNet or text encoder."""
    pipe: Any = model.pipe
    part, _, rest = name.partition(".")
    if part == "unet":
        unet = pipe.unet
        blocks_with_attention = {i for i, block in enumerate(unet.up_blocks) if hasattr(block, "attentions")}
        return tensors[f"model.diffusion_model.{unet_name(rest, unet.config.layers_per_block, blocks_with_attention)}"]
    is_xl = hasattr(pipe, "text_encoder_2")
    if part == "text_encoder" and (is_xl or not pipe.unet.config.use_linear_projection):
        return tensors[f"{'conditioner.embedders.0' if is_xl else 'cond_stage_model'}.transformer.text_model.{rest}"]
    stem = "conditioner.embedders.1.model." if is_xl else "cond_stage_model.model."
    if rest == "text_projection.weight":  # OpenCLIP multiplies by it from the right
        return tensors[f"{stem}text_projection"].T
    if rest in OPEN_CLIP_OUTSIDE_BLOCKS:
        return tensors[stem + OPEN_CLIP_OUTSIDE_BLOCKS[rest]]
    match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", rest)
    assert match, rest
    block = f"{stem}transformer.resblocks.{match[1]}."
    if match[2] in OPEN_CLIP:
        return tensors[f"{block}{OPEN_CLIP[match[2]]}.{match[3]}"]
    row = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"].index(match[2])
    return tensors[f"{block}attn.in_proj_{match[3]}"].chunk(3)[row]


def unet_name(name: str, layers: int, blocks_with_attention: set[int]) -> str:
    """Where the programs look for a UNet parameter; `layers` a block, and which up blocks have attention."""
    if match := re.fullmatch(r"time_embedding\.linear_(\d)\.(\w+)", name):
        return f"time_embed.{2 * int(match[1]) - 2}.{match[2]}"
    if match := re.fullmatch(r"add_embedding\.linear_(\d)\.(\w+)", name):
        return f"label_emb.0.{2 * int(match[1]) - 2}.{match[2]}"
    if match := re.fullmatch(r"(conv_in|conv_norm_out|conv_out)\.(\w+)", name):
        return f"{OUTSIDE_BLOCKS[match[1]]}.{match[2]}"
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        tail = match[3] if match[1] == "attentions" else resnet_name(match[3])
        return f"middle_block.{1 if match[1] == 'attentions' else 2 * int(match[2])}.{tail}"
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name)
    assert match, name
    side, block, kind, layer, tail = match[1], int(match[2]), match[3], int(match[4]), match[5]
    first = block * (layers + 1) + (1 if side == "down" else 0)
    stem = "input_blocks" if side == "down" else "output_blocks"
    if kind == "downsamplers":
        return f"{stem}.{first + layers}.0.{tail.replace('conv', 'op')}"
    if kind == "upsamplers":
        return f"{stem}.{first + layers}.{2 if block in blocks_with_attention else 1}.{tail}"
    return f"{stem}.{first + layer}.{1 if kind == 'attentions' else 0}.{tail if kind == 'attentions' else resnet_name(tail)}"


def resnet_name(tail: str) -> str:
    leaf, _, parameter = tail.rpartition(".")
    return f"{RESNET[leaf]}.{parameter}"
