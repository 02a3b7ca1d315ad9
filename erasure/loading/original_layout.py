"""The original layout of Stable Diffusion and SDXL: the names of UNet, VAE and text encoder parameters in one .safetensors file.

A1111, ComfyUI, kohya's tools and stable-diffusion.cpp read this layout. diffusers reads it too, and its reader is our only source for which
name means which parameter: it converts markers under every name that the layout can have, and the parameter that a marker ends up in is the
meaning of its name. So diffusers reads back exactly what is written here, whatever its version.
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
from erasure.families.parameters import canonical_name

UNET_PREFIX, VAE_PREFIX = "model.diffusion_model.", "first_stage_model."
CLIP_PREFIX, OPEN_CLIP_PREFIX = "cond_stage_model.transformer.", "cond_stage_model.model."  # Stable Diffusion has one or the other
XL_CLIP_PREFIX, XL_OPEN_CLIP_PREFIX = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."  # SDXL has both
TEXT_PREFIXES = (CLIP_PREFIX, OPEN_CLIP_PREFIX, XL_CLIP_PREFIX, XL_OPEN_CLIP_PREFIX)
LDM_NAMES: Any = DIFFUSERS_TO_LDM_MAPPING  # names of modules outside blocks, by part
FUSED_ROWS = 3  # OpenCLIP stacks the query, key and value projections of a layer in one tensor


@dataclass(frozen=True)
class Place:
    """The parameters that one tensor of the layout holds."""

    part: str  # unet, vae, text_encoder or text_encoder_2
    parameters: tuple[str, ...]  # of that part, stacked along the first axis in this order; names are canonical
    convolution: bool = False  # a matrix (O, I) that the layout stores as a 1x1 convolution (O, I, 1, 1)
    transposed: bool = False  # a matrix (O, I) that the layout stores as (I, O)

    def gather(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the tensor of the layout from the parameters of its part."""
        value = torch.cat([parameters[name] for name in self.parameters])
        if self.transposed:
            return value.T
        return value[..., None, None] if self.convolution and value.ndim == 2 else value

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """Return the shape of that tensor from the shapes of the parameters; 1x1 convolutions count as matrices."""
        rows, *rest = shapes[self.parameters[0]]
        return (*rest, rows) if self.transposed else (rows * len(self.parameters), *rest)


def places_of(unet: nn.Module, vae: nn.Module, text_encoder: nn.Module, text_encoder_2: nn.Module | None = None) -> dict[str, Place]:
    """Return what every name of the layout holds for these modules (meta tensors are enough).

    Of two text encoders (SDXL), the first is CLIP's and the second OpenCLIP's. A single one is CLIP's if the UNet's projections are
    convolutions (Stable Diffusion 1), and OpenCLIP's if they are matrices (Stable Diffusion 2); the programs that read this layout
    distinguish the two in the same way.

    Raises:
        UserError: a parameter that the layout has no name for, or two text encoders that diffusers cannot tell apart.
    """
    networks = {**_unet_places(unet), **_vae_places(vae)}
    if text_encoder_2 is not None:
        first, second = _clip_places(text_encoder, XL_CLIP_PREFIX), _open_clip_places(text_encoder_2, "text_encoder_2", XL_OPEN_CLIP_PREFIX)
        width, second_width = (encoder.config.hidden_size for encoder in (text_encoder, text_encoder_2))  # type: ignore[union-attr]  # untyped
        if width == second_width:
            raise UserError(f"one file cannot hold two text encoders of the same width ({width}): diffusers tells them apart by it.")
        return {**networks, **first, **second}
    if unet.config.use_linear_projection:  # type: ignore[union-attr]  # diffusers' config is untyped
        return {**networks, **_open_clip_places(text_encoder, "text_encoder", OPEN_CLIP_PREFIX)}
    return {**networks, **_clip_places(text_encoder, CLIP_PREFIX)}


def _unet_places(unet: Any) -> dict[str, Place]:
    """Return the places of the UNet's parameters."""
    levels, layers, parameter_names = len(unet.config.block_out_channels), unet.config.layers_per_block, set(unet.state_dict())
    if not isinstance(layers, int):
        raise UserError(f"the original Stable Diffusion layout has no place for blocks of {layers} layers.")
    resnet = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection")
    attention = sorted({".".join(name.partition(".attentions.")[2].split(".")[1:]) for name in parameter_names if ".attentions." in name})
    names = list(LDM_NAMES["unet"]["layers"].values())
    for i in range(levels * (layers + 1)):
        # an upsampler comes after the attention of its block, or takes its index if there is none
        upsampler = 2 if any(name.startswith(f"up_blocks.{i // (layers + 1)}.attentions.") for name in parameter_names) else 1
        names += _leaf_names(f"input_blocks.{i}.0", (*resnet, "op")) + [f"input_blocks.{i}.1.{leaf}" for leaf in attention]
        names += _leaf_names(f"output_blocks.{i}.0", resnet) + [f"output_blocks.{i}.1.{leaf}" for leaf in attention]
        names += _leaf_names(f"output_blocks.{i}.{upsampler}", ("conv",))
    names += (
        _leaf_names("middle_block.0", resnet) + [f"middle_block.1.{leaf}" for leaf in attention] + _leaf_names("middle_block.2", resnet)
    )
    config: dict[str, Any] = {"layers_per_block": layers}
    if unet.config.addition_embed_type == "text_time":  # the pooled text and the image sizes of SDXL
        config["addition_embed_type"] = "text_time"
        names += LDM_NAMES["unet"]["addition_embed_type"].values()
    return _invert_reader(
        "unet", parameter_names, [UNET_PREFIX + name for name in names], lambda markers: convert_ldm_unet_checkpoint(markers, config)
    )


def _vae_places(vae: Any) -> dict[str, Place]:
    """Return the places of the VAE's parameters."""
    levels, layers = len(vae.config.block_out_channels), vae.config.layers_per_block
    resnet, attention = ("norm1", "conv1", "norm2", "conv2", "nin_shortcut"), ("norm", "q", "k", "v", "proj_out")
    names = list(LDM_NAMES["vae"].values())
    for i in range(levels):
        names += [name for j in range(layers) for name in _leaf_names(f"encoder.down.{i}.block.{j}", resnet)]
        names += [name for j in range(layers + 1) for name in _leaf_names(f"decoder.up.{i}.block.{j}", resnet)]
        names += _leaf_names(f"encoder.down.{i}.downsample", ("conv",)) + _leaf_names(f"decoder.up.{i}.upsample", ("conv",))
    for half in ("encoder", "decoder"):
        names += (
            _leaf_names(f"{half}.mid.block_1", resnet)
            + _leaf_names(f"{half}.mid.block_2", resnet)
            + _leaf_names(f"{half}.mid.attn_1", attention)
        )
    return _invert_reader(
        "vae", set(vae.state_dict()), [VAE_PREFIX + n for n in names], lambda markers: convert_ldm_vae_checkpoint(markers, vae.config)
    )


def _clip_places(encoder: nn.Module, prefix: str) -> dict[str, Place]:
    """Return the places of the parameters of CLIP's text encoder."""
    parameter_names = {canonical_name(name) for name in encoder.state_dict()}
    return _invert_reader(
        "text_encoder",
        parameter_names,
        [f"{prefix}text_model.{name}" for name in sorted(parameter_names)],
        convert_ldm_clip_checkpoint,
    )


def _open_clip_places(encoder: Any, part: str, prefix: str) -> dict[str, Place]:
    """Return the places of the parameters of OpenCLIP's text encoder."""
    parameter_names = {canonical_name(name) for name in encoder.state_dict()}
    # a projection to image space belongs to CLIP as a whole; the encoder of Stable Diffusion 2 ends before it, the second of SDXL has it
    names = [prefix + name for parameter, name in LDM_NAMES["openclip"]["layers"].items() if canonical_name(parameter) in parameter_names]
    for i in range(encoder.config.num_hidden_layers):
        block = f"{prefix}transformer.resblocks.{i}"
        names += _leaf_names(block, ("ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj", "attn.out_proj"))
        names += [f"{block}.attn.in_proj_weight", f"{block}.attn.in_proj_bias"]
    one_row = SimpleNamespace(config=SimpleNamespace(hidden_size=1))  # the reader splits fused tensors at multiples of this
    return _invert_reader(part, parameter_names, names, lambda markers: convert_open_clip_checkpoint(one_row, markers, prefix))


def _leaf_names(module: str, leaves: Iterable[str]) -> list[str]:
    """Return the names of weights and biases below a module."""
    return [f"{module}.{leaf}.{suffix}" for leaf in leaves for suffix in ("weight", "bias")]


def _invert_reader(
    part: str, parameter_names: set[str], names: list[str], convert: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> dict[str, Place]:
    """Return for each name the parameters, among `parameter_names`, into which diffusers' reader puts its tensor.

    The marker of name i holds 3 i, 3 i + 1 and 3 i + 2 in its rows, so that a fused name shows which rows go where. That of a projection
    holds them in one row: the reader takes its rows for the width of the encoder, and transposes it.

    Raises:
        UserError: a parameter that no name leads to.
    """
    markers = {
        name: torch.arange(FUSED_ROWS * i, FUSED_ROWS * (i + 1)).reshape((1, -1) if name.endswith("text_projection") else (-1, 1))
        for i, name in enumerate(names)
    }
    converted = {canonical_name(name): value for name, value in convert(markers).items()}
    rows = {int(value.flatten()[0]): name for name, value in converted.items() if name in parameter_names}
    if missing := sorted(parameter_names - set(rows.values())):
        raise UserError(f"the original Stable Diffusion layout has no place for {part}.{missing[0]} ({len(missing)} such parameters).")
    parameters_by_name: dict[str, tuple[str, ...]] = {}
    for row in sorted(rows):
        name = names[row // FUSED_ROWS]
        parameters_by_name[name] = (*parameters_by_name.get(name, ()), rows[row])
    return {
        name: Place(
            part,
            parameters,
            convolution=part == "vae" and ".attn_1." in name and name.endswith(".weight"),
            transposed=converted[parameters[0]].shape == markers[name].T.shape,
        )
        for name, parameters in parameters_by_name.items()
    }
