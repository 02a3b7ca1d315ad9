"""The LoRA file format: the names by which programs look up layers, and the metadata they show."""

import hashlib
import json
import re

import torch
from safetensors.torch import save
from torch import Tensor

from erasure.config.choices import LoraLayout
from erasure.edits import Edit
from erasure.families.base import DiffusionModel

LORA_FILE = "pytorch_lora_weights.safetensors"  # what load_lora_weights looks for in a folder
Factors = dict[str, tuple[Tensor, Tensor]]  # up and down by the parameter's name, all of one rank

# diffusers' convert_state_dict_to_kohya agrees on the UNet, but calls the text encoder lora_te1_, a name that kohya's merge script
# does not look up, nor A1111 on SD 2.x. CLIP's `text_model.` level, which transformers 5.6 dropped, is still part of the name everywhere.
KOHYA_PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}
DIFFUSERS_NAMES = {
    "unet": ("unet.", "lora_B", "lora_A"),
    "text_encoder": ("text_encoder.text_model.", "lora_linear_layer.up", "lora_linear_layer.down"),
}
UNET_BLOCKS = ("down_blocks.", "mid_block.", "up_blocks.")
BASE_VERSIONS = {"sd1": ("sd_v1", "stable-diffusion-v1"), "sd2": ("sd_v2", "stable-diffusion-v2-512"), "pocket": ("pocket", "pocket")}
V_PREDICTION_VERSIONS = {"sd2": ("sd_v2_v", "stable-diffusion-v2-768-v")}


def name_factors(factors: Factors, layout: LoraLayout) -> dict[str, Tensor]:
    """Return factors in fp16 on the CPU under the names of a layout; kohya's has alpha = rank, so a scale of 1, beside every pair."""
    tensors: dict[str, Tensor] = {}
    for name, (up, down) in factors.items():
        part, _, layer = name.removesuffix(".weight").partition(".")
        if layout == "kohya":
            key = KOHYA_PREFIXES[part] + layer.replace(".", "_")
            tensors[f"{key}.alpha"] = torch.tensor(len(down), dtype=torch.float16)
            tensors[f"{key}.lora_up.weight"], tensors[f"{key}.lora_down.weight"] = up, down
        else:
            prefix, b, a = DIFFUSERS_NAMES[part]
            tensors[f"{prefix}{layer}.{b}.weight"], tensors[f"{prefix}{layer}.{a}.weight"] = up, down
    return {key: value.to("cpu", torch.float16).contiguous() for key, value in sorted(tensors.items())}


def serialize_lora(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Return the bytes of the file, with the hash by which kohya's tools and A1111 identify a LoRA: SHA-256 of all after the header.

    safetensors writes metadata in a different order each time; here it is sorted, so that equal edits give equal bytes.
    """
    unlabeled = save(tensors)
    start = 8 + int.from_bytes(unlabeled[:8], "little")
    digest = hashlib.sha256(unlabeled[start:]).hexdigest()
    all_metadata = {"format": "pt", **metadata, "sshs_model_hash": digest, "modelspec.hash_sha256": f"0x{digest}"}
    header = json.dumps(
        {"__metadata__": dict(sorted(all_metadata.items())), **json.loads(unlabeled[8:start])}, separators=(",", ":")
    ).encode()
    header += b" " * (-len(header) % 8)  # the tensors begin at a multiple of 8
    return len(header).to_bytes(8, "little") + header + unlabeled[start:]


def build_lora_metadata(model: DiffusionModel, edit: Edit, rank: int, layout: LoraLayout) -> dict[str, str]:
    """Return kohya's `ss_` keys and Stability's ModelSpec 1.0.1, as far as known; no date, so that equal edits give equal bytes."""
    velocity = model.pipe.scheduler.config.prediction_type == "v_prediction"
    version, architecture = (V_PREDICTION_VERSIONS if velocity and model.family in V_PREDICTION_VERSIONS else BASE_VERSIONS)[model.family]
    pixels = model.latent_shape[-1] * 2 ** (len(model.pipe.vae.config.block_out_channels) - 1)
    title = "; ".join(" ".join(c["name"].split()) for c in edit.info.concepts)[:200]
    fields = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": f"{title}, erased with {edit.info.method}",
        "modelspec.resolution": f"{pixels}x{pixels}",
        "modelspec.prediction_type": "v" if velocity else "epsilon",
        "ss_output_name": short_name_of(edit),
        "ss_base_model_version": version,
        "ss_v2": str(model.family == "sd2"),
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(rank)),
    }
    return fields | ({"ss_network_module": "networks.lora"} if layout == "kohya" else {})


def short_name_of(edit: Edit) -> str:
    """Return the LoRA's name for prompts in A1111: lower-case letters, digits and dashes, with the start of the edit's digest."""
    words = re.findall(r"[a-z0-9]+", " ".join(c["name"] for c in edit.info.concepts).lower())
    return "-".join([*words, edit.info.method])[:60].strip("-") + f"-{edit.digest()[:6]}"


def describe_skipped_layers(factors: Factors, layout: LoraLayout, family: str) -> list[str]:
    """Return which layers of the file some programs skip without a message, one note for each; docs/results/exports.md has the table."""
    if layout == "diffusers":
        return ["this layout is for diffusers and PEFT; ComfyUI, A1111 and kohya's tools skip most or all of it"]
    outside = [name for name in factors if name.startswith("unet.") and not name.removeprefix("unet.").startswith(UNET_BLOCKS)]
    fused = [name for name in factors if family == "sd2" and name.startswith("text_encoder.") and re.search(r"\.[qkv]_proj\.", name)]
    notes = []
    if outside:
        notes.append(f"kohya's merge script and stable-diffusion.cpp skip {len(outside)} layers outside the UNet's blocks")
    if fused:
        notes.append(
            f"stable-diffusion.cpp skips {len(fused)} attention layers of the text encoder when the base is an original SD 2.x checkpoint"
        )
    return notes
