"""The names by which programs look up the layers of a LoRA, kohya's and diffusers', for every family, and what each program skips."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from erasure.config.choices import LoraLayout
from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.families.original_names import TRANSFORMERS, original_layers

Factors = dict[str, tuple[Tensor, Tensor]]  # up and down by the parameter's name, all of one rank

# diffusers' convert_state_dict_to_kohya agrees on the UNet, but calls the text encoder lora_te1_, a name that kohya's merge script
# does not look up, nor A1111 on SD 2.x. CLIP's `text_model.` level, which transformers 5.6 dropped, is still part of the name everywhere.
KOHYA_PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
# families with more than one text encoder number them
NUMBERED_KOHYA_PREFIXES = {"unet": "lora_unet_", "transformer": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
UNNUMBERED = ("sd1", "sd2", "pocket")
UP, DOWN = ("lora_B", "lora_A"), ("lora_linear_layer.up", "lora_linear_layer.down")
BLOCKS = ("down_blocks.", "mid_block.", "up_blocks.", "transformer_blocks.", "single_transformer_blocks.")
FLUX_WIDTH = 3072  # the only one that diffusers splits a fused matrix of FLUX.1's single blocks at


def default_layout(family: str) -> LoraLayout:
    """Return the layout that diffusers and ComfyUI both read: of transformers diffusers' own, which ComfyUI maps; of UNets kohya's."""
    return "diffusers" if family in TRANSFORMERS else "kohya"


def check_layout(family: str, layout: LoraLayout) -> None:
    """Check that some program reads this layout for a family.

    Raises:
        UserError: none does.
    """
    if family == "pocket-flow" and layout == "kohya":
        raise UserError("no program that reads LoRAs of the layout 'kohya' loads pocket-flow, and diffusers skips them; use 'diffusers'.")


def name_factors(factors: Factors, layout: LoraLayout, model: DiffusionModel) -> dict[str, Tensor]:
    """Return factors in fp16 on the CPU under the names of a layout; kohya's has alpha = rank, so a scale of 1, beside every pair."""
    tensors: dict[str, Tensor] = {}
    if layout == "diffusers":
        for name, (up, down) in factors.items():
            key, (b, a) = _diffusers_name(name.removesuffix(".weight"))
            tensors[f"{key}.{b}.weight"], tensors[f"{key}.{a}.weight"] = up, down
    else:
        for key, (up, down) in _kohya_factors(factors, model).items():
            tensors[f"{key}.alpha"] = torch.tensor(float(len(down)))
            tensors[f"{key}.lora_up.weight"], tensors[f"{key}.lora_down.weight"] = up, down
    return {key: _to_half(value) for key, value in sorted(tensors.items())}


def _to_half(value: Tensor) -> Tensor:
    """Return a tensor in fp16 on the CPU; an alpha that fp16 would round, above 2,048, stays as it is."""
    half = value.to("cpu", torch.float16).contiguous()
    return half if value.ndim or half == value else value


def _diffusers_name(layer: str) -> tuple[str, tuple[str, str]]:
    part, _, path = layer.partition(".")
    if not part.startswith("text_encoder"):
        return layer, UP
    return f"{part}.{_clip_name(path)}", DOWN


def _clip_name(path: str) -> str:
    """Return a CLIP layer's name with the `text_model.` level, which all files have; the projection is outside of it."""
    return path if path == "text_projection" else f"text_model.{path}"


def _kohya_factors(factors: Factors, model: DiffusionModel) -> Factors:
    """Return factors by kohya's names: dots as underscores, and the denoiser's layers as its authors named and fused them."""
    if model.family in UNNUMBERED:
        return {_kohya_name(name.removesuffix(".weight"), KOHYA_PREFIXES): pair for name, pair in factors.items()}
    denoiser = next(iter(model.networks))
    shapes = {
        name.removesuffix(".weight"): p.shape for name, p in model.parameters().items() if name.endswith(".weight") and p.ndim in (2, 4)
    }
    named = {
        _kohya_name(name.removesuffix(".weight"), NUMBERED_KOHYA_PREFIXES): pair
        for name, pair in factors.items()
        if not name.startswith(f"{denoiser}.")
    }
    layers = (layer.removeprefix(f"{denoiser}.") for layer in shapes if layer.startswith(f"{denoiser}."))
    for original, layer in original_layers(model.family, layers).items():
        parts = [f"{denoiser}.{part}" for part in layer.parts]
        if any(f"{part}.weight" in factors for part in parts):
            up, down = fuse_factors([factors.get(f"{part}.weight") for part in parts], [shapes[part] for part in parts])
            up = torch.cat(up.chunk(2)[::-1]) if layer.halves_swapped else up
            named[f"lora_unet_{original.replace('.', '_')}"] = up, down
    return named


def _kohya_name(layer: str, prefixes: Mapping[str, str]) -> str:
    part, _, path = layer.partition(".")
    path = _clip_name(path) if part.startswith("text_encoder") else path
    return prefixes[part] + path.replace(".", "_")


def fuse_factors(parts: Sequence[tuple[Tensor, Tensor] | None], shapes: Sequence[torch.Size]) -> tuple[Tensor, Tensor]:
    """Return factors of [W_q; W_k; W_v] from those of its parts, (O_i, r) and (r, I): blockdiag(B_q, B_k, B_v) [A_q; A_k; A_v].

    A part that does not change has zeros at the rank of the others: readers that split the file again expect one rank.

    Args:
        parts: at least one that changes.
        shapes: of the matrices of the parts.
    """
    known = next(pair for pair in parts if pair)
    if len(parts) == 1:
        return known
    up, down = known
    pairs = [pair or (up.new_zeros(shape[0], up.shape[1]), torch.zeros_like(down)) for pair, shape in zip(parts, shapes, strict=True)]
    return torch.block_diag(*(up for up, _ in pairs)), torch.cat([down for _, down in pairs])


def describe_skipped_layers(factors: Factors, layout: LoraLayout, model: DiffusionModel) -> list[str]:
    """Return which layers of the file some programs skip without a message, one note for each; docs/results/exports.md has the table."""
    denoiser = next(iter(model.networks))
    layers = [name.removeprefix(f"{denoiser}.").removesuffix(".weight") for name in factors if name.startswith(f"{denoiser}.")]
    outside = [layer for layer in layers if not layer.startswith(BLOCKS)]
    projections = sum(name.endswith(".text_projection.weight") for name in factors)
    notes = _describe_refused_encoders(factors) if layout == "kohya" and model.family not in UNNUMBERED and model.family != "sd3" else []
    if projections:
        skips = "ComfyUI and kohya's tools skip" if layout == "diffusers" else "kohya's tools skip"
        notes.append(f"{skips} {projections} projection{'s' if projections > 1 else ''} of text encoders")
    if model.family in TRANSFORMERS:
        describe = _describe_transformer_as_diffusers if layout == "diffusers" else _describe_transformer_as_kohya
        return describe(model, layers, outside) + notes
    if layout == "diffusers":
        return ["this layout is for diffusers and PEFT; ComfyUI, A1111 and kohya's tools skip most or all of it"]
    if outside:
        programs = "kohya's merge script" + (" and stable-diffusion.cpp skip" if model.family in UNNUMBERED else " skips")
        notes.insert(0, f"{programs} {len(outside)} layers outside the UNet's blocks")
    fused = [name for name in factors if model.family == "sd2" and name.startswith("text_encoder.") and re.search(r"\.[qkv]_proj\.", name)]
    if fused:
        notes.append(
            f"stable-diffusion.cpp skips {len(fused)} attention layers of the text encoder when the base is an original SD 2.x checkpoint"
        )
    return notes


def _describe_refused_encoders(factors: Factors) -> list[str]:
    """Return a note if diffusers cannot tell which layout a text encoder's part of the file has: it goes by these layers' names."""
    for part in ("text_encoder", "text_encoder_2"):
        names = [name for name in factors if name.startswith(f"{part}.")]
        if names and not any(".out_proj." in name or ".mlp." in name for name in names):
            return [
                f"diffusers cannot load it: in this layout it needs an output or MLP layer of the {part}; the layout 'diffusers' does not"
            ]
    return []


def _describe_transformer_as_diffusers(model: DiffusionModel, layers: list[str], outside: list[str]) -> list[str]:
    if model.family == "pocket-flow":
        return ["this layout is for diffusers and PEFT; no other program loads pocket-flow"]
    notes = ["this layout is for diffusers, PEFT and ComfyUI; kohya's tools skip it"]
    unmapped = [layer for layer in outside if layer.startswith("time_guidance_embed.") or "_stream_modulation" in layer]
    if unmapped:
        notes.append(f"ComfyUI skips {_share(unmapped, layers, 'of modulation and time embedding')}; the layout 'kohya' has them for it")
    return notes


def _describe_transformer_as_kohya(model: DiffusionModel, layers: list[str], outside: list[str]) -> list[str]:
    match model.family:
        case "sd3":
            return ["this layout is for ComfyUI and kohya's tools; diffusers skips all of it without a message"]
        case "flux":
            skipped, blocks = outside, [layer for layer in layers if re.search(r"^single.*\.(attn\.to_[qkv]|proj_mlp)$", layer)]
        case _:
            skipped, blocks = [layer for layer in outside if "modulation" in layer or layer == "norm_out.linear"], []
    notes = ["this layout is for ComfyUI and kohya's tools" + (" (musubi-tuner)" if model.family == "flux2-klein" else "")]
    if outside and model.family == "flux2-klein":
        notes.append(f"musubi-tuner skips {_share(outside, layers, 'outside the blocks')}")
    if skipped:
        notes.append(f"diffusers skips {_share(skipped, layers, 'outside the blocks')}; the layout 'diffusers' has them for it")
    width = model.parameters()[f"transformer.{blocks[0]}.weight"].shape[1] if blocks else FLUX_WIDTH
    if width != FLUX_WIDTH:
        notes.append(f"diffusers cannot load it: it knows single blocks of this layout at a width of {FLUX_WIDTH} alone, not {width}")
    return notes


def _share(skipped: Sequence[str], layers: Sequence[str], place: str) -> str:
    """Return in words which layers of a file a program skips."""
    if len(skipped) == len(layers):
        return "all of it without a message"
    return f"{len(skipped)} layer{'s' if len(skipped) > 1 else ''} {place}"
