"""The bytes of a LoRA file, and the metadata that programs show."""

import hashlib
import json
import re

from safetensors.torch import save
from torch import Tensor

from erasure.config.choices import LoraLayout
from erasure.edits import Edit
from erasure.families.base import DiffusionModel

LORA_FILE = "pytorch_lora_weights.safetensors"  # what load_lora_weights looks for in a folder
# kohya's ss_base_model_version, of sd-scripts and for FLUX.2 of musubi-tuner, and ModelSpec's architecture
BASE_VERSIONS = {
    "sd1": ("sd_v1", "stable-diffusion-v1"),
    "sd2": ("sd_v2", "stable-diffusion-v2-512"),
    "pocket": ("pocket", "pocket"),
    "sdxl": ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base"),
    "pocket-flow": ("pocket-flow", "pocket-flow"),
}
V_PREDICTION_VERSION = ("sd_v2_v", "stable-diffusion-v2-768-v")  # of sd2
NETWORK_MODULES = {"sd3": "networks.lora_sd3", "flux": "networks.lora_flux", "flux2-klein": "networks.lora_flux_2"}  # others: networks.lora
KLEIN_4B_LAYERS = 5  # double blocks; the 9B model has 8


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
    version, architecture = base_version_of(model)
    pixels = model.latent_shape[-1] * model.pixels_per_latent
    title = "; ".join(" ".join(c["name"].split()) for c in edit.info.concepts)[:200]
    fields = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": f"{title}, erased with {edit.info.method}",
        "modelspec.resolution": f"{pixels}x{pixels}",
        "ss_output_name": short_name_of(edit),
        "ss_base_model_version": version,
        "ss_v2": str(model.family == "sd2"),
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(rank)),
    }
    if model.schedule.predicts == "noise":  # ModelSpec has no name for the prediction of a flow
        fields["modelspec.prediction_type"] = "v" if predicts_v(model) else "epsilon"
    return fields | ({"ss_network_module": NETWORK_MODULES.get(model.family, "networks.lora")} if layout == "kohya" else {})


def base_version_of(model: DiffusionModel) -> tuple[str, str]:
    """Return what kohya's tools and ModelSpec call the base."""
    match model.family:
        case "sd2" if predicts_v(model):
            return V_PREDICTION_VERSION
        case "sd3":  # SD 3.5 normalizes queries and keys, and its medium model has attention among image tokens as well
            config = model.pipe.transformer.config
            size = "5-medium" if config.get("dual_attention_layers") else "5-large" if config.get("qk_norm") else "medium"
            return size, f"stable-diffusion-3-{size}"
        case "flux":
            return "flux1", f"flux-1-{'dev' if model.guidance_kind == 'embedded' else 'schnell'}"
        case "flux2-klein":
            size = "4b" if model.pipe.transformer.config.num_layers <= KLEIN_4B_LAYERS else "9b"
            return f"flux_2_klein_{size}", f"flux-2-klein-{size}"
        case _:
            return BASE_VERSIONS[model.family]


def predicts_v(model: DiffusionModel) -> bool:
    """Return whether a network that was trained on noise predicts v."""
    return bool(model.pipe.scheduler.config.get("prediction_type") == "v_prediction")


def short_name_of(edit: Edit) -> str:
    """Return the LoRA's name for prompts in A1111: lower-case letters, digits and dashes, with the start of the edit's digest."""
    words = re.findall(r"[a-z0-9]+", " ".join(c["name"] for c in edit.info.concepts).lower())
    return "-".join([*words, edit.info.method])[:60].strip("-") + f"-{edit.digest()[:6]}"
