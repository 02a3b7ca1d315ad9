"""ComfyUI: a table from every name it knows for a layer to the layer; a name that is not in the table is skipped with a line in the log."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from tests.clients import original_layout

PAIRS = (  # spellings of (up, down) after a layer's name, in the order in which they are tried
    (".lora_up.weight", ".lora_down.weight"),
    ("_lora.up.weight", "_lora.down.weight"),
    (".lora_B.weight", ".lora_A.weight"),
    (".lora.up.weight", ".lora.down.weight"),
    (".lora_B", ".lora_A"),
    (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
    (".lora_B.default.weight", ".lora_A.default.weight"),
)
TEXT = ("mlp.fc1", "mlp.fc2", "self_attn.k_proj", "self_attn.q_proj", "self_attn.v_proj", "self_attn.out_proj")


def apply_lora(lora: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    changes = {}
    for name, layer in lora_names(shapes):
        for up, down in PAIRS:
            if name + up in lora:
                b, a = lora[name + up].float(), lora[name + down].float()
                alpha = lora.get(f"{name}.alpha")
                scale = 1.0 if alpha is None else alpha.item() / len(a)
                changes[f"{layer}.weight"] = scale * (b.flatten(1) @ a.flatten(1)).reshape(shapes[f"{layer}.weight"])
                break
    return changes


def lora_names(shapes: Mapping[str, torch.Size]) -> Iterator[tuple[str, str]]:
    """(name in a LoRA, layer of ours)."""
    originals = original_layout.original_unet_names(f"{layer}.weight" for layer in original_layout.weight_layers(shapes))
    for layer in original_layout.weight_layers(shapes):
        part, _, path = layer.partition(".")
        if part == "unet":
            ldm = originals[f"{layer}.weight"].removesuffix(".weight")
            yield f"lora_unet_{ldm.replace('.', '_')}", layer
            yield f"diffusion_model.{ldm}", layer
            yield f"lora_unet_{path.replace('.', '_')}", layer
            yield f"lycoris_{path.replace('.', '_')}", layer
            processor = path.replace(".to_", ".processor.to_")  # diffusers' names of 2023; its names of today are not among them
            processor = processor.removesuffix(".0") if processor.endswith(".to_out.0") else processor
            yield processor, layer
            yield f"unet.{processor}", layer
        elif path.startswith("encoder.layers.") and path.split(".", 3)[3] in TEXT:
            _, _, index, inner = path.split(".", 3)
            for prefix in ("lora_te", "lora_te1"):
                yield f"{prefix}_text_model_encoder_layers_{index}_{inner.replace('.', '_')}", layer
            yield f"text_encoder.text_model.{path}", layer
