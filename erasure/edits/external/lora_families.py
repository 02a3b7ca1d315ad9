"""Which family of models a LoRA file is for, by the names and widths of its layers; and text encoders that no edit can change."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.families.supported_models import spec_of_pipeline

UNETS, SD3, FLUX, KLEIN = ("sd1", "sd2", "pocket"), ("sd3", "pocket-flow"), ("flux",), ("flux2-klein",)
CONTEXT_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL"}  # of the released models' text


@dataclass(frozen=True)
class Sign:
    """What a name in a file tells: a pattern of names that only the models of some families have."""

    models: str
    families: tuple[str, ...]
    pattern: re.Pattern[str]


DOT = "[._]"  # between the parts of a name; kohya has underscores
SIGNS = tuple(  # the first that one of the names shows counts
    Sign(models, families, re.compile(pattern.replace(" ", DOT)))
    for models, families, pattern in (
        ("FLUX.2", KLEIN, r"to_qkv_mlp_proj|_stream_modulation|ff(_context)? linear_(in|out)|time_guidance_embed"),
        ("FLUX.1", FLUX, r"single_transformer_blocks \d+ (attn to_[qkv]|proj_mlp|proj_out|norm )|(img|txt)_mod lin|vector_in"),
        ("FLUX", (*FLUX, *KLEIN), r"single_transformer_blocks|(double|single)_blocks \d"),
        ("Stable Diffusion 3", SD3, r"joint_blocks \d|^(lora_)?transformer .*(attn2 |pos_embed )"),
        ("Stable Diffusion 3 or FLUX", (*SD3, *FLUX, *KLEIN), r"^(lora_)?transformer |add_[qkv]_proj|to_add_out|context_embedder"),
        ("Stable Diffusion 1.x or 2.x", UNETS, r"(up_blocks 3|down_blocks 0) attentions|(input_blocks [12]|output_blocks (9|1\d)) 1 "),
        ("SDXL", ("sdxl",), r"add_embedding|label_emb|(attentions \d+|put_blocks \d+ 1|middle_block 1) transformer_blocks [1-9]"),
        ("Stable Diffusion or SDXL", (*UNETS, "sdxl"), r"(down|up)_blocks \d|mid_block|(in|out)put_blocks|middle_block"),
    )
)
ARCHITECTURES = {"flux-1": FLUX, "flux-2": KLEIN, "Flux.2": KLEIN, "stable-diffusion-3": SD3, "stable-diffusion-v3": SD3}  # of ModelSpec
FROZEN = {  # text encoders that stay as they are here, by family
    "sd3": ("T5", re.compile(r"^(lora_te3_|text_encoder_3\.|text_encoders\.t5xxl\.)")),
    "flux": ("T5", re.compile(r"^(lora_te[23]_|text_encoder_2\.|text_encoders\.t5xxl\.)")),
    "flux2-klein": ("Qwen3", re.compile(r"^(lora_te\d?_|text_encoder\.|text_encoders\.)")),
}


def check_family(model: DiffusionModel, source: str, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Refuse a LoRA whose layers no model of this family has, and one of a text encoder that no edit can change.

    Raises:
        UserError: the message says which family the file looks like, or names the text encoder.
    """
    if sign := _sign_of(model, tensors, header):
        base = f"{model.source} is one of {spec_of_pipeline(model.pipe).models}"
        raise UserError(f"{source} looks like a LoRA of {sign}, and {base}; give its own base with --model.")
    encoder, pattern = FROZEN.get("sd3" if model.family == "pocket-flow" else model.family, ("", None))
    if pattern and (found := [key for key in tensors if pattern.match(key)]):
        raise UserError(
            f"{source} changes {encoder} ({len(found)} tensors, such as {found[0]!r}), a text encoder that no edit of {model.source} can "
            "change; give a LoRA without it."
        )


def _sign_of(model: DiffusionModel, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str | None:
    """Return the models of another family that a file looks like; None if it may belong to this one."""
    names = [key.removeprefix("base_model.model.") for key in tensors]
    sign = next((sign for sign in SIGNS if any(sign.pattern.search(name) for name in names)), None)
    if sign is None:
        return None
    if model.family not in sign.families:
        return _models_of_width(tensors) or sign.models
    if model.family in (*SD3, *FLUX, *KLEIN):  # their double blocks have the same names
        architecture = header.get("modelspec.architecture", "")
        families = next((families for start, families in ARCHITECTURES.items() if architecture.startswith(start)), (model.family,))
        return None if model.family in families else architecture
    models = _models_of_width(tensors)
    return models if models and (models == "SDXL") != (model.family == "sdxl") else None


def _models_of_width(tensors: Mapping[str, Tensor]) -> str | None:
    """Return which released models have text of the width (r, width) that cross-attention reads in a file."""
    widths = {value.shape[1] for key, value in tensors.items() if re.search(r"attn2.*to_[kv].*lora.*(down|_A)\b", key) and value.ndim > 1}
    return CONTEXT_WIDTHS.get(widths.pop()) if len(widths) == 1 else None
