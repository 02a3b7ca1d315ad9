"""The original Stable Diffusion layout: under which names one .safetensors file holds UNet, VAE and text encoder.

A1111, ComfyUI, kohya's tools and stable-diffusion.cpp read this layout. diffusers reads it too, and its reader is our only source for which
name means which parameter: it is fed markers under every name that the layout can have, and where a marker comes out is what its name
means. So what is written here is what diffusers reads back, whatever version is installed.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.loaders.single_file_utils import (
    DIFFUSERS_TO_LDM_MAPPING,
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from torch import Tensor, nn

from erasure.errors import UserError
from erasure.families.base import canonical

UNET, VAE, CLIP, OPEN_CLIP = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.", "cond_stage_model.model."
NAMES: Any = DIFFUSERS_TO_LDM_MAPPING  # of modules outside blocks, by part
FUSED = 3  # OpenCLIP stacks the query, key and value projections of a layer in one tensor


@dataclass(frozen=True)
class Place:
    """What one tensor of the layout holds."""

    part: str  # unet, vae or text_encoder
    parameters: tuple[str, ...]  # of that part, stacked along the first axis in this order; names are canonical
    convolution: bool = False  # a matrix (O, I) that the layout keeps as a 1x1 convolution (O, I, 1, 1)

    def gather(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The tensor as the layout holds it, from the parameters of its part."""
        value = torch.cat([parameters[name] for name in self.parameters])
        return value[..., None, None] if self.convolution and value.ndim == 2 else value

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """The shape of that tensor, from the shapes of the parameters; 1x1 convolutions count as matrices."""
        rows, *rest = shapes[self.parameters[0]]
        return (rows * len(self.parameters), *rest)


def places(unet: nn.Module, vae: nn.Module, text_encoder: nn.Module) -> dict[str, Place]:
    """Every name of the layout for these modules (meta tensors will do), and what stands under it.

    The text encoder is CLIP's where the UNet projects by convolutions (Stable Diffusion 1), OpenCLIP's where it projects by matrices
    (Stable Diffusion 2), which is how the programs that read this layout tell the two apart.

    Raises:
        UserError: a parameter that the layout has no name for.
    """
    text = _open_clip if unet.config.use_linear_projection else _clip  # type: ignore[union-attr]  # diffusers' config is untyped
    return {**_unet(unet), **_vae(vae), **text(text_encoder)}


def _unet(unet: Any) -> dict[str, Place]:
    levels, layers, known = len(unet.config.block_out_channels), unet.config.layers_per_block, set(unet.state_dict())
    if not isinstance(layers, int):
        raise UserError(f"the original Stable Diffusion layout has no place for blocks of {layers} layers.")
    resnet = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection")
    attention = sorted({".".join(name.partition(".attentions.")[2].split(".")[1:]) for name in known if ".attentions." in name})
    names = list(NAMES["unet"]["layers"].values())
    for i in range(levels * (layers + 1)):
        # an upsampler comes after the attention of its block, or takes its index where there is none
        upsampler = 2 if any(name.startswith(f"up_blocks.{i // (layers + 1)}.attentions.") for name in known) else 1
        names += _leaves(f"input_blocks.{i}.0", (*resnet, "op")) + [f"input_blocks.{i}.1.{leaf}" for leaf in attention]
        names += _leaves(f"output_blocks.{i}.0", resnet) + [f"output_blocks.{i}.1.{leaf}" for leaf in attention]
        names += _leaves(f"output_blocks.{i}.{upsampler}", ("conv",))
    names += _leaves("middle_block.0", resnet) + [f"middle_block.1.{leaf}" for leaf in attention] + _leaves("middle_block.2", resnet)
    config = {"layers_per_block": layers}
    return _inverted("unet", known, [UNET + name for name in names], lambda markers: convert_ldm_unet_checkpoint(markers, config))


def _vae(vae: Any) -> dict[str, Place]:
    levels, layers = len(vae.config.block_out_channels), vae.config.layers_per_block
    resnet, attention = ("norm1", "conv1", "norm2", "conv2", "nin_shortcut"), ("norm", "q", "k", "v", "proj_out")
    names = list(NAMES["vae"].values())
    for i in range(levels):
        names += [name for j in range(layers) for name in _leaves(f"encoder.down.{i}.block.{j}", resnet)]
        names += [name for j in range(layers + 1) for name in _leaves(f"decoder.up.{i}.block.{j}", resnet)]
        names += _leaves(f"encoder.down.{i}.downsample", ("conv",)) + _leaves(f"decoder.up.{i}.upsample", ("conv",))
    for half in ("encoder", "decoder"):
        names += _leaves(f"{half}.mid.block_1", resnet) + _leaves(f"{half}.mid.block_2", resnet) + _leaves(f"{half}.mid.attn_1", attention)
    return _inverted(
        "vae", set(vae.state_dict()), [VAE + n for n in names], lambda markers: convert_ldm_vae_checkpoint(markers, vae.config)
    )


def _clip(encoder: nn.Module) -> dict[str, Place]:
    known = {canonical(name) for name in encoder.state_dict()}
    return _inverted("text_encoder", known, [f"{CLIP}text_model.{name}" for name in sorted(known)], convert_ldm_clip_checkpoint)


def _open_clip(encoder: Any) -> dict[str, Place]:
    # a projection to image space belongs to CLIP as a whole; the encoder of Stable Diffusion ends before it
    names = [OPEN_CLIP + name for name in NAMES["openclip"]["layers"].values() if name != "text_projection"]
    for i in range(encoder.config.num_hidden_layers):
        block = f"{OPEN_CLIP}transformer.resblocks.{i}"
        names += _leaves(block, ("ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj", "attn.out_proj"))
        names += [f"{block}.attn.in_proj_weight", f"{block}.attn.in_proj_bias"]
    one_row = SimpleNamespace(config=SimpleNamespace(hidden_size=1))  # the reader cuts fused tensors at multiples of this
    known = {canonical(name) for name in encoder.state_dict()}
    return _inverted("text_encoder", known, names, lambda markers: convert_open_clip_checkpoint(one_row, markers))


def _leaves(module: str, leaves: Iterable[str]) -> list[str]:
    return [f"{module}.{leaf}.{kind}" for leaf in leaves for kind in ("weight", "bias")]


def _inverted(part: str, known: set[str], names: list[str], read: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> dict[str, Place]:
    """For each name, the parameters among `known` in which the reader puts what it finds under that name.

    The marker of name i holds 3 i, 3 i + 1 and 3 i + 2 in its rows, so that a fused name shows which rows go where.
    """
    markers = {name: torch.arange(FUSED * i, FUSED * (i + 1)).reshape(FUSED, 1) for i, name in enumerate(names)}
    rows = {int(value.flatten()[0]): canonical(name) for name, value in read(markers).items() if canonical(name) in known}
    if lost := sorted(known - set(rows.values())):
        raise UserError(f"the original Stable Diffusion layout has no place for {part}.{lost[0]} ({len(lost)} such parameters).")
    found: dict[str, tuple[str, ...]] = {}
    for row in sorted(rows):
        name = names[row // FUSED]
        found[name] = (*found.get(name, ()), rows[row])
    return {
        name: Place(part, parameters, convolution=part == "vae" and ".attn_1." in name and name.endswith(".weight"))
        for name, parameters in found.items()
    }
