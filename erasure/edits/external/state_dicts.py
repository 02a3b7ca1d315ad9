"""State dicts of external erasures, whole or in part, under the names of the base's own parameters; no network is built."""

from collections.abc import Mapping
from typing import Any

from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint, convert_ldm_unet_checkpoint, convert_open_clip_checkpoint
from torch import Tensor

from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.families.parameters import canonical_name
from erasure.loading.original_layout import (
    CLIP_PREFIX,
    OPEN_CLIP_PREFIX,
    TEXT_PREFIXES,
    UNET_PREFIX,
    XL_CLIP_PREFIX,
    XL_OPEN_CLIP_PREFIX,
)
from erasure.loading.prediction_type import V_MARKER

TEXT_ROOTS = ("text_model.", "encoder.layers.", "embeddings.", "final_layer_norm.")
# in files of text encoders, but not among the parameters of all of them
BUFFERS = ("position_ids", "text_projection.weight", "logit_scale")


def name_network_tensors(model: DiffusionModel, tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """Return the parameters of a network by "<part>.<name>", such as "unet.conv_in.weight"."""
    buffers = BUFFERS if part.startswith("text_encoder") else ("position_ids",)
    named = {f"{part}.{canonical_name(key.removeprefix(f'{part}.'))}": value for key, value in tensors.items()}
    parameters = model.parameters()
    return {name: value for name, value in named.items() if name in parameters or not name.endswith(buffers)}


def check_whole_network(model: DiffusionModel, source: str, tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """Return the tensors if they hold every parameter of a part.

    Raises:
        UserError: parameters are missing; a folder must hold whole networks.
    """
    names = [name for name in model.parameters() if name.startswith(f"{part}.")]
    if missing := [name for name in names if name not in tensors]:
        raise UserError(
            f"{source} has {len(names) - len(missing)} of the {len(names)} parameters of the {part}; {missing[0]!r} is missing."
        )
    return tensors


def convert_state_dict(model: DiffusionModel, source: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a file by the base's names.

    The file holds some or all parameters of the UNet, the text encoder or both, or is a checkpoint in the original layout.

    Raises:
        UserError: as `convert_checkpoint`.
    """
    if "unet" in model.networks and any(key.startswith((UNET_PREFIX, *TEXT_PREFIXES)) for key in tensors):
        return convert_checkpoint(model, source, tensors)
    named: dict[str, Tensor] = {}
    for part in list(model.networks)[1:]:
        text_tensors = {key: value for key, value in tensors.items() if key.startswith(f"{part}.")}
        if part == "text_encoder":  # also a file of its own
            text_tensors |= {key: value for key, value in tensors.items() if key.startswith(TEXT_ROOTS)}
        named |= name_network_tensors(model, text_tensors, part)
        tensors = {key: value for key, value in tensors.items() if key not in text_tensors}
    return named | name_network_tensors(model, tensors, next(iter(model.networks)))


def convert_checkpoint(model: DiffusionModel, source: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a checkpoint in the original layout, by diffusers' own rules and the base's configs.

    Raises:
        UserError: it does not convert, predicts v where the base predicts noise, or holds tensors of a UNet or text encoder that the base
            does not have.
    """
    pipe: Any = model.pipe
    unet_count = sum(key.startswith(UNET_PREFIX) for key in tensors)
    parts = {CLIP_PREFIX: "text_encoder", OPEN_CLIP_PREFIX: "text_encoder"}
    if "text_encoder_2" in model.networks:
        parts = {XL_CLIP_PREFIX: "text_encoder", XL_OPEN_CLIP_PREFIX: "text_encoder_2"}
    if unknown := sorted(key for key in tensors if key.startswith(TEXT_PREFIXES) and not key.startswith(tuple(parts))):
        raise UserError(f"{source} holds {unknown[0]!r}, of a text encoder that {model.source} does not have; give its own base.")
    if V_MARKER in tensors and pipe.scheduler.config.get("prediction_type") != "v_prediction":
        raise UserError(f"{source} holds {V_MARKER!r}: it predicts v, and {model.source} predicts noise; give its own base.")
    try:
        unet_tensors = convert_ldm_unet_checkpoint(dict(tensors), dict(pipe.unet.config)) if unet_count else {}
        named: dict[str, Tensor] = {}
        for prefix, part in parts.items():
            own = {key: value for key, value in tensors.items() if key.startswith(prefix)}
            if prefix in (CLIP_PREFIX, XL_CLIP_PREFIX):
                own = convert_ldm_clip_checkpoint(own)
            else:
                own = convert_open_clip_checkpoint(getattr(pipe, part), own, prefix=prefix)
            named |= name_network_tensors(model, own, part)
    except (KeyError, IndexError, AttributeError) as error:
        raise UserError(
            f"{source} is a checkpoint in the original layout that does not convert ({error!r}); make it a diffusers folder."
        ) from error
    if len(unet_tensors) != unet_count:
        raise UserError(
            f"{source} holds {unet_count} tensors of a UNet and {len(unet_tensors)} have a place in that of {model.source}; "
            "give its own base."
        )
    parameters = model.parameters()
    # the original SD 2.x text encoder has one more layer than diffusers keeps
    return {
        **name_network_tensors(model, unet_tensors, "unet"),
        **{name: value for name, value in named.items() if name in parameters},
    }
