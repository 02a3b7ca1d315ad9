"""kohya's merge script: linear layers and convolutions inside transformers, resnet blocks, samplers, and CLIP's attention and MLP."""

from collections.abc import Mapping

import torch
from torch import Tensor

from tests.clients import original_layout

INSIDE = (".attentions.", ".resnets.", ".downsamplers.", ".upsamplers.")


def apply_lora(lora: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    modules = {}
    for layer in original_layout.weight_layers(shapes):
        part, _, path = layer.partition(".")
        if part == "unet" and any(part_name in f".{path}" for part_name in INSIDE):
            modules[f"lora_unet_{path}".replace(".", "_")] = f"{layer}.weight"
        elif part == "text_encoder" and (".self_attn." in path or ".mlp." in path):
            modules[f"lora_te_text_model_{path}".replace(".", "_")] = f"{layer}.weight"
    changes = {}
    for key, down in lora.items():
        module = ".".join(key.split(".")[:-2])
        if "lora_down" not in key or module not in modules:
            continue
        up, alpha = lora[key.replace("lora_down", "lora_up")].float(), lora.get(f"{module}.alpha", torch.tensor(len(down)))
        # for a 3x3 convolution: the kernel of the two in a row, down with its 3x3 and then up with 1x1
        product = torch.einsum("or,ri...->oi...", up.flatten(1), down.float())
        changes[modules[module]] = (alpha.item() / len(down)) * product.reshape(shapes[modules[module]])
    return changes
