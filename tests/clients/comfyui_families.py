"""ComfyUI on SDXL, Stable Diffusion 3, FLUX.1 and FLUX.2, as of 2026-11-28: comfy/lora.py at ec93dca, comfy/utils.py at 09708ea.

A name of diffusers that belongs to a fused matrix stands for its own rows there; of some it knows that their halves are swapped.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from tests.clients import checkpoint, original_transformers
from tests.clients.comfyui import PAIRS, TEXT
from tests.clients.original_layout import weight_layers

UNMAPPED = ("time_guidance_embed.", "double_stream_modulation", "single_stream_modulation")  # of diffusers' names of FLUX.2


def apply_lora(lora: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    changes: dict[str, Tensor] = {}
    for name, layers, is_original in lora_names(shapes):
        for up, down in PAIRS:
            if name + up in lora:
                b, a = lora[name + up].float(), lora[name + down].float()
                alpha = lora.get(f"{name}.alpha")
                change = (1.0 if alpha is None else alpha.item() / len(a)) * (b.flatten(1) @ a.flatten(1))
                for layer, place in layers:
                    shape = shapes[f"{layer}.weight"]
                    own = original_transformers.cut(change, place, shape[0]) if is_original and place else change
                    changes[f"{layer}.weight"] = own.reshape(shape)
                break
    return changes


Held = list[tuple[str, original_transformers.Place | None]]


def lora_names(shapes: Mapping[str, torch.Size]) -> Iterator[tuple[str, Held, bool]]:
    """(name in a LoRA, the layers of ours that it changes, whether its rows are those of an original matrix)."""
    layers = weight_layers(shapes)
    for layer in layers:
        part, _, path = layer.partition(".")
        if part.startswith("text_encoder"):
            yield from text_names(part, path, layer)
    if any(layer.startswith("unet.") for layer in layers):
        yield from unet_names([layer for layer in layers if layer.startswith("unet.")])
    else:
        yield from transformer_names(layers, original_transformers.width_of(shapes))


def text_names(part: str, path: str, layer: str) -> Iterator[tuple[str, Held, bool]]:
    number = 2 if part == "text_encoder_2" else 1
    if path == "text_projection":
        yield f"lora_te{number}_text_projection", [(layer, None)], False
    elif path.split(".", 3)[3] in TEXT:
        yield f"lora_te{number}_text_model_{path.replace('.', '_')}", [(layer, None)], False
        yield f"{part}.text_model.{path}", [(layer, None)], False


def unet_names(layers: list[str]) -> Iterator[tuple[str, Held, bool]]:
    resnets = 1 + max(int(layer.split(".")[4]) for layer in layers if layer.startswith("unet.down_blocks.0.resnets."))
    with_attention = {int(layer.split(".")[2]) for layer in layers if layer.startswith("unet.up_blocks.") and ".attentions." in layer}
    for layer in layers:
        path = layer.removeprefix("unet.")
        original = checkpoint.unet_name(f"{path}.weight", resnets, with_attention).removesuffix(".weight")
        processor = path.replace(".to_", ".processor.to_")
        processor = processor.removesuffix(".0") if processor.endswith(".to_out.0") else processor
        names = (f"lora_unet_{original.replace('.', '_')}", f"diffusion_model.{original}", f"lora_unet_{path.replace('.', '_')}")
        for name in (*names, processor, f"unet.{processor}"):
            yield name, [(layer, None)], False


def transformer_names(layers: list[str], width: int) -> Iterator[tuple[str, Held, bool]]:
    originals: dict[str, Held] = {}
    for layer, place in original_transformers.places(layers, width).items():
        originals.setdefault(place.original, []).append((layer, place))
        path = layer.removeprefix("transformer.")
        if not path.startswith(UNMAPPED):
            yield layer, [(layer, place)], False
            yield f"lora_transformer_{path.replace('.', '_')}", [(layer, place)], False
    for original, held in originals.items():
        yield f"lora_unet_{original.replace('.', '_')}", held, True
        yield f"diffusion_model.{original}", held, True
