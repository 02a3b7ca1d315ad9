"""State dicts of external erasures, whole or in part, under the names of the base's own parameters; no network is built."""

from collections.abc import Mapping
from typing import Any

from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint, convert_ldm_unet_checkpoint, convert_open_clip_checkpoint
from torch import Tensor

from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.families.parameters import canonical_name

UNET_PREFIX, CLIP_PREFIX, OPEN_CLIP_PREFIX = (
    "model.diffusion_model.",
    "cond_stage_model.transformer.",
    "cond_stage_model.model.",
)  # the original layout
TEXT_ROOTS = ("text_model.", "encoder.layers.", "embeddings.", "final_layer_norm.")
BUFFERS = ("position_ids", "text_projection.weight", "logit_scale")  # in files of text encoders, but not among their parameters here


def name_network_tensors(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """Return the parameters of a network by "<part>.<name>", such as "unet.conv_in.weight"."""
    left_out = () if not part.startswith("text_encoder") else BUFFERS
    return {
        f"{part}.{canonical_name(key.removeprefix(f'{part}.'))}": value
        for key, value in tensors.items()
        if not key.endswith(left_out or ("position_ids",))
    }


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
    if "unet" in model.networks and any(key.startswith((UNET_PREFIX, CLIP_PREFIX, OPEN_CLIP_PREFIX)) for key in tensors):
        return convert_checkpoint(model, source, tensors)
    named: dict[str, Tensor] = {}
    for part in list(model.networks)[1:]:
        text_tensors = {key: value for key, value in tensors.items() if key.startswith(f"{part}.")}
        if part == "text_encoder":  # also a file of its own
            text_tensors |= {key: value for key, value in tensors.items() if key.startswith(TEXT_ROOTS)}
        named |= name_network_tensors(text_tensors, part)
        tensors = {key: value for key, value in tensors.items() if key not in text_tensors}
    return named | name_network_tensors(tensors, next(iter(model.networks)))


def convert_checkpoint(model: DiffusionModel, source: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a checkpoint in the original layout, by diffusers' own rules and the base's configs.

    Raises:
        UserError: it does not convert, or holds tensors of a UNet that the base does not have.
    """
    pipe: Any = model.pipe
    unet_count = sum(key.startswith(UNET_PREFIX) for key in tensors)
    try:
        unet_tensors = convert_ldm_unet_checkpoint(dict(tensors), dict(pipe.unet.config)) if unet_count else {}
        text_tensors = convert_ldm_clip_checkpoint({k: v for k, v in tensors.items() if k.startswith(CLIP_PREFIX)})
        text_tensors |= convert_open_clip_checkpoint(
            pipe.text_encoder, {k: v for k, v in tensors.items() if k.startswith(OPEN_CLIP_PREFIX)}, prefix=OPEN_CLIP_PREFIX
        )
    except (KeyError, IndexError, AttributeError) as error:
        raise UserError(
            f"{source} is a checkpoint in the original layout that does not convert ({error!r}); make it a diffusers folder."
        ) from error
    if len(unet_tensors) != unet_count:
        raise UserError(
            f"{source} holds {unet_count} tensors of a UNet and {len(unet_tensors)} have a place in that of {model.source}; "
            "give its own base."
        )
    text_names = {name for name in model.parameters() if name.startswith("text_encoder.")}
    # the original SD 2.x text encoder has one more layer than diffusers keeps
    return {
        **name_network_tensors(unet_tensors, "unet"),
        **{name: value for name, value in name_network_tensors(text_tensors, "text_encoder").items() if name in text_names},
    }
