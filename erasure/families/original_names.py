"""Names of a denoiser's layers as its authors published them, by which ComfyUI and kohya's tools go, and what each original layer holds.

The originals keep queries, keys and values in one matrix: W = [W_q; W_k; W_v], rows below rows. No torch.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

IMAGE_QKV, TEXT_QKV = ("attn.to_q", "attn.to_k", "attn.to_v"), ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
Names = Mapping[str, tuple[str, ...]]  # layers of ours by the original layer that holds their rows, in order


@dataclass(frozen=True)
class OriginalLayer:
    """What one layer of the original layout holds.

    Attributes:
        parts: the layers of ours whose rows it holds, in order.
        halves_swapped: whether it gives shift before scale, where diffusers gives scale before shift.
    """

    parts: tuple[str, ...]
    halves_swapped: bool = False


@dataclass(frozen=True)
class TransformerNames:
    """How a transformer with joint attention is named.

    Attributes:
        blocks: by our list of blocks, its original name and what the layers in each block hold.
        outside: what the layers outside the blocks hold.
    """

    blocks: Mapping[str, tuple[str, Names]]
    outside: Names


FLUX_DOUBLE: Names = {
    "img_attn.qkv": IMAGE_QKV,
    "txt_attn.qkv": TEXT_QKV,
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
}
FLUX_OUTSIDE: Names = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
FLUX = TransformerNames(
    blocks={
        "transformer_blocks": (
            "double_blocks",
            {
                **FLUX_DOUBLE,
                "img_mod.lin": ("norm1.linear",),
                "txt_mod.lin": ("norm1_context.linear",),
                "img_mlp.0": ("ff.net.0.proj",),
                "img_mlp.2": ("ff.net.2",),
                "txt_mlp.0": ("ff_context.net.0.proj",),
                "txt_mlp.2": ("ff_context.net.2",),
            },
        ),
        "single_transformer_blocks": (
            "single_blocks",
            {"linear1": (*IMAGE_QKV, "proj_mlp"), "linear2": ("proj_out",), "modulation.lin": ("norm.linear",)},
        ),
    },
    outside={
        **FLUX_OUTSIDE,
        **{
            f"{original}.{end}_layer": (f"time_text_embed.{ours}.linear_{i}",)
            for original, ours in (("time_in", "timestep_embedder"), ("vector_in", "text_embedder"), ("guidance_in", "guidance_embedder"))
            for i, end in ((1, "in"), (2, "out"))
        },
    },
)
FLUX2 = TransformerNames(
    blocks={
        "transformer_blocks": (
            "double_blocks",
            {
                **FLUX_DOUBLE,
                "img_mlp.0": ("ff.linear_in",),
                "img_mlp.2": ("ff.linear_out",),
                "txt_mlp.0": ("ff_context.linear_in",),
                "txt_mlp.2": ("ff_context.linear_out",),
            },
        ),
        "single_transformer_blocks": ("single_blocks", {"linear1": ("attn.to_qkv_mlp_proj",), "linear2": ("attn.to_out",)}),
    },
    outside={
        **FLUX_OUTSIDE,
        "time_in.in_layer": ("time_guidance_embed.timestep_embedder.linear_1",),
        "time_in.out_layer": ("time_guidance_embed.timestep_embedder.linear_2",),
        **{f"{name}.lin": (f"{name}.linear",) for name in ("double_stream_modulation_img", "double_stream_modulation_txt")},
        "single_stream_modulation.lin": ("single_stream_modulation.linear",),
    },
)
SD3 = TransformerNames(
    blocks={
        "transformer_blocks": (
            "joint_blocks",
            {
                "x_block.attn.qkv": IMAGE_QKV,
                "context_block.attn.qkv": TEXT_QKV,
                "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),  # of SD 3.5 medium
                "x_block.attn.proj": ("attn.to_out.0",),
                "context_block.attn.proj": ("attn.to_add_out",),
                "x_block.attn2.proj": ("attn2.to_out.0",),
                "x_block.adaLN_modulation.1": ("norm1.linear",),
                "context_block.adaLN_modulation.1": ("norm1_context.linear",),
                "x_block.mlp.fc1": ("ff.net.0.proj",),
                "x_block.mlp.fc2": ("ff.net.2",),
                "context_block.mlp.fc1": ("ff_context.net.0.proj",),
                "context_block.mlp.fc2": ("ff_context.net.2",),
            },
        )
    },
    outside={
        "x_embedder.proj": ("pos_embed.proj",),
        "context_embedder": ("context_embedder",),
        "final_layer.linear": ("proj_out",),
        "final_layer.adaLN_modulation.1": ("norm_out.linear",),
        **{
            f"{original}.mlp.{2 * i - 2}": (f"time_text_embed.{ours}.linear_{i}",)
            for original, ours in (("t_embedder", "timestep_embedder"), ("y_embedder", "text_embedder"))
            for i in (1, 2)
        },
    },
)
TRANSFORMERS = {"flux": FLUX, "flux2-klein": FLUX2, "sd3": SD3, "pocket-flow": SD3}
UNET_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    **{f"time_embedding.linear_{i}": f"time_embed.{2 * i - 2}" for i in (1, 2)},
    **{f"add_embedding.linear_{i}": f"label_emb.0.{2 * i - 2}" for i in (1, 2)},
}
UNET_RESNET = {"conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
UNET_BLOCK = re.compile(r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")


def original_layers(family: str, layers: Iterable[str]) -> dict[str, OriginalLayer]:
    """Return what every layer of the original layout holds.

    Args:
        family: one with a transformer, or sdxl.
        layers: all layers of the denoiser that have a matrix, such as "transformer_blocks.0.attn.to_q".
    """
    layers = sorted(layers)
    return _transformer_layers(TRANSFORMERS[family], set(layers)) if family in TRANSFORMERS else _unet_layers(layers)


def _transformer_layers(names: TransformerNames, layers: set[str]) -> dict[str, OriginalLayer]:
    originals = {original: OriginalLayer(parts, "adaLN" in original) for original, parts in names.outside.items()}
    for ours, (theirs, block) in names.blocks.items():
        for i in sorted({int(layer.split(".")[1]) for layer in layers if layer.startswith(f"{ours}.")}):
            # the text side of SD3's last block ends with its attention; its norm is a final one, with the order of a final one
            ends = "attn.to_add_out" in sum(block.values(), ()) and f"{ours}.{i}.attn.to_add_out" not in layers
            for original, parts in block.items():
                swapped = ends and parts == ("norm1_context.linear",)
                originals[f"{theirs}.{i}.{original}"] = OriginalLayer(tuple(f"{ours}.{i}.{part}" for part in parts), swapped)
    return {original: layer for original, layer in originals.items() if layers.issuperset(layer.parts)}


def _unet_layers(layers: list[str]) -> dict[str, OriginalLayer]:
    """Number the blocks as the original does: one for every residual block, and one for every downsampler."""
    matches = [match for layer in layers if (match := UNET_BLOCK.fullmatch(layer))]
    count = 1 + max(int(match[4]) for match in matches if match[1] == "down")
    with_attention = {match[2] for match in matches if (match[1], match[3]) == ("up", "attentions")}
    return {_unet_name(layer, count, with_attention): OriginalLayer((layer,)) for layer in layers}


def _unet_name(layer: str, count: int, with_attention: set[str]) -> str:
    """Return the original name of a layer of a UNet with `count` residual blocks a level, on these levels of its way up with attention."""
    if layer in UNET_OUTSIDE:
        return UNET_OUTSIDE[layer]
    match = UNET_BLOCK.fullmatch(layer)
    if match is None:
        raise ValueError(f"no UNet of Stable Diffusion has a layer {layer!r}")
    side, level, kind, index, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    inner = UNET_RESNET[rest] if kind == "resnets" else rest
    if side == "mid":
        return f"middle_block.{1 if kind == 'attentions' else 2 * index}.{inner}"
    stem, first = ("input_blocks", 1) if side == "down" else ("output_blocks", 0)
    block = first + (count + 1) * level
    match kind:
        case "downsamplers":
            return f"{stem}.{block + count}.0.op"
        case "upsamplers":
            return f"{stem}.{block + count}.{2 if match[2] in with_attention else 1}.conv"
        case _:
            return f"{stem}.{block + index}.{int(kind == 'attentions')}.{inner}"
