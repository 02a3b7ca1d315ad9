"""Where FLUX.1, FLUX.2 and Stable Diffusion 3 keep each layer of ours in their original layout: in which matrix, from which row on."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch


class Place(NamedTuple):
    original: str  # layer of the original layout
    start: int  # first row there
    swapped: bool  # whether the second half of the rows comes first there


FLUX_BASIC = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
}
FLUX_DOUBLE = {
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
    "ff.linear_in": "img_mlp.0",
    "ff.linear_out": "img_mlp.2",
    "ff_context.linear_in": "txt_mlp.0",
    "ff_context.linear_out": "txt_mlp.2",
}
FLUX_SINGLE = {"norm.linear": "modulation.lin", "proj_out": "linear2", "attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2"}
SD3_BASIC = {
    "context_embedder": "context_embedder",
    "pos_embed.proj": "x_embedder.proj",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
}
SD3_BLOCK = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn2.to_out.0": "x_block.attn2.proj",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
PROJECTIONS = {
    "to_q": (0, "img"),
    "to_k": (1, "img"),
    "to_v": (2, "img"),
    "add_q_proj": (0, "txt"),
    "add_k_proj": (1, "txt"),
    "add_v_proj": (2, "txt"),
}


def places(layers: Iterable[str], width: int) -> dict[str, Place]:
    """By layer of ours, with `transformer.`; `width` is the model's hidden size."""
    names = [layer.removeprefix("transformer.") for layer in layers if layer.startswith("transformer.")]
    is_sd3 = any(name.startswith("pos_embed.") for name in names)
    last = max(int(name.split(".")[1]) for name in names if name.startswith("transformer_blocks."))
    return {f"transformer.{name}": sd3_place(name, width, last) if is_sd3 else flux_place(name, width) for name in names}


def flux_place(name: str, width: int) -> Place:
    if name in FLUX_BASIC:
        return Place(FLUX_BASIC[name], 0, name == "norm_out.linear")
    kind, index, inner = name.split(".", 2)
    projection = PROJECTIONS.get(inner.removeprefix("attn."))
    if kind == "transformer_blocks":
        block = f"double_blocks.{index}"
        return (
            Place(f"{block}.{projection[1]}_attn.qkv", projection[0] * width, False)
            if projection
            else Place(f"{block}.{FLUX_DOUBLE[inner]}", 0, False)
        )
    block = f"single_blocks.{index}"
    if inner == "proj_mlp":
        return Place(f"{block}.linear1", 3 * width, False)
    return Place(f"{block}.linear1", projection[0] * width, False) if projection else Place(f"{block}.{FLUX_SINGLE[inner]}", 0, False)


def sd3_place(name: str, width: int, last: int) -> Place:
    if name in SD3_BASIC:
        return Place(SD3_BASIC[name], 0, name == "norm_out.linear")
    _, index, inner = name.split(".", 2)
    attention, _, leaf = inner.partition(".")
    if leaf in PROJECTIONS:
        row, side = PROJECTIONS[leaf]
        return Place(f"joint_blocks.{index}.{'x_block' if side == 'img' else 'context_block'}.{attention}.qkv", row * width, False)
    return Place(f"joint_blocks.{index}.{SD3_BLOCK[inner]}", 0, inner == "norm1_context.linear" and int(index) == last)


def cut(change: torch.Tensor, place: Place, rows: int) -> torch.Tensor:
    """What a change of an original matrix is for one layer of ours."""
    own = change[place.start : place.start + rows]
    return torch.cat((own[rows // 2 :], own[: rows // 2])) if place.swapped else own


def width_of(shapes: Mapping[str, torch.Size]) -> int:
    return shapes["transformer.context_embedder.weight"][0]
