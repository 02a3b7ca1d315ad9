"""The recipe family of a Stable Diffusion model, recognized by the configs of its networks. No torch here."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from erasure.errors import UserError

POCKET_TEXT_CONFIG = Path(__file__).parent.parent / "pocket" / "weights" / "text_encoder" / "config.json"
POCKET_SETTINGS = ("hidden_size", "num_hidden_layers", "vocab_size")  # no other model has its 1,122 words
# (hidden_act of the text encoder, use_linear_projection of the UNet): 1.x reads OpenAI's CLIP, 2.x OpenCLIP
FAMILIES = {("quick_gelu", False): "sd1", ("gelu", True): "sd2"}


def recognize_family(unet: Mapping[str, Any], text_encoder: Mapping[str, Any], source: str) -> str:
    """Return "pocket", "sd1" or "sd2", by the configs of the UNet and the text encoder, whatever their sizes.

    Args:
        source: the model's name, for the message.

    Raises:
        UserError: configs of none of these families.
    """
    # the defaults of transformers and diffusers, for configs that leave them out
    traits = (text_encoder.get("hidden_act", "quick_gelu"), bool(unet.get("use_linear_projection", False)))
    if traits not in FAMILIES:
        raise UserError(
            f"{source} belongs to no known family: its text encoder has hidden_act {traits[0]!r} and its UNet has use_linear_projection "
            f"{traits[1]}; Stable Diffusion 1.x has 'quick_gelu' and False, 2.x has 'gelu' and True."
        )
    return "pocket" if FAMILIES[traits] == "sd1" and is_pocket_text_encoder(text_encoder) else FAMILIES[traits]


def is_pocket_text_encoder(config: Mapping[str, Any]) -> bool:
    """Return whether a text encoder's config is that of the shipped models, pocket and pocket-flow."""
    return [config.get(key) for key in POCKET_SETTINGS] == _pocket_settings()


@cache
def _pocket_settings() -> list[Any]:
    """Return what identifies the shipped model, from its config."""
    config = json.loads(POCKET_TEXT_CONFIG.read_text(encoding="utf-8"))
    return [config[key] for key in POCKET_SETTINGS]
