"""kohya's tools on SDXL, Stable Diffusion 3, FLUX.1 (sd-scripts at 48d368f) and FLUX.2 (musubi-tuner at 2a1eac8).

A layer is looked up by the name of its module in kohya's own network, which has the names and matrices of the original: for SDXL
(networks/sdxl_merge_lora.py) inside transformers, residual blocks and samplers; for Stable Diffusion 3 (networks/lora_sd3.py) everywhere;
for FLUX.1 (networks/flux_merge_lora.py) everywhere; for FLUX.2 (networks/lora_flux_2.py) inside the blocks. CLIP's attention and MLP count.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tests.clients import comfyui_families, original_transformers
from tests.clients.original_layout import weight_layers

UNET_OUTSIDE = ("lora_unet_input_blocks_0_0", "lora_unet_out_2", "lora_unet_time_embed_", "lora_unet_label_emb_")


def apply_lora(lora: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    layers = weight_layers(shapes)
    is_unet = any(layer.startswith("unet.") for layer in layers)
    is_flux2 = any("to_qkv_mlp_proj" in layer for layer in layers)
    modules = {
        name: held for name, held, is_original in comfyui_families.lora_names(shapes) if is_module(name, is_unet, is_flux2, is_original)
    }
    changes = {}
    for key, down in lora.items():
        name = key.removesuffix(".lora_down.weight")
        if name == key or name not in modules:
            continue
        scale = float(lora.get(f"{name}.alpha", torch.tensor(len(down)))) / len(down)
        change = scale * (lora[f"{name}.lora_up.weight"].float().flatten(1) @ down.float().flatten(1))
        for layer, place in modules[name]:
            shape = shapes[f"{layer}.weight"]
            changes[f"{layer}.weight"] = (original_transformers.cut(change, place, shape[0]) if place else change).reshape(shape)
    return changes


def is_module(name: str, is_unet: bool, is_flux2: bool, is_original: bool) -> bool:
    if name.startswith(("lora_te1_", "lora_te2_")):
        return "_encoder_layers_" in name
    if is_unet:
        return name.startswith(("lora_unet_input_", "lora_unet_middle_", "lora_unet_output_")) and not name.startswith(UNET_OUTSIDE)
    return name.startswith("lora_unet_") and is_original and (not is_flux2 or "_blocks_" in name)
