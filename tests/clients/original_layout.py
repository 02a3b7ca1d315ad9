"""The original (LDM) names of Stable Diffusion's parameters, by this project's."""

from collections.abc import Iterable, Mapping

import torch

SINGLE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def original_unet_names(names: Iterable[str]) -> dict[str, str]:
    """Original name (without `model.diffusion_model.`) of every UNet parameter; four levels of two blocks, as in SD 1.x and 2.x."""
    return {name: _original_unet_name(name.removeprefix("unet.")) for name in names if name.startswith("unet.")}


def _original_unet_name(name: str) -> str:
    for ours, theirs in SINGLE.items():
        if name.startswith(ours + "."):
            return theirs + name.removeprefix(ours)
    block, rest = name.split("_block", 1)
    parts = rest.lstrip("s.").split(".")
    if block == "mid":
        kind, index, *inner = parts
        prefix = "middle_block.1" if kind == "attentions" else f"middle_block.{2 * int(index)}"
    else:
        level, kind, index, *inner = parts
        side, first = ("input_blocks", 1) if block == "down" else ("output_blocks", 0)
        prefix = f"{side}.{first + 3 * int(level) + int(index)}.{1 if kind == 'attentions' else 0}"
        if kind == "downsamplers":
            return f"input_blocks.{3 * (int(level) + 1)}.0.op.{inner[-1]}"
        if kind == "upsamplers":
            return f"output_blocks.{3 * int(level) + 2}.{2 if int(level) else 1}.conv.{inner[-1]}"
    if kind == "resnets":
        inner[0] = RESNET[inner[0]]
    return ".".join([prefix, *inner])


def is_sd2(shapes: Mapping[str, torch.Size]) -> bool:
    """SD 2.x projects into its transformers with linear layers, SD 1.x with convolutions."""
    return len(shapes["unet.mid_block.attentions.0.proj_in.weight"]) == 2


def weight_layers(shapes: Mapping[str, torch.Size]) -> list[str]:
    """Parameters that are the matrix of a linear layer or convolution, without `.weight`."""
    return [n.removesuffix(".weight") for n, s in shapes.items() if n.endswith(".weight") and len(s) in (2, 4) and "embeddings." not in n]
