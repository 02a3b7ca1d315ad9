"""Other people's erasures as edits: what they shipped, compared with the base parameter by parameter, so that it can be audited.

Read are a diffusers folder or hub id, a text-encoder folder, a LoRA file, and a state dict of some or all parameters of the UNet;
safetensors only. Values are kept in fp16, as in every edit.
"""

import importlib.metadata
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextModel

from erasure.concept import Concept
from erasure.edit import Edit, EditInfo
from erasure.errors import UserError
from erasure.families.base import Cost, DiffusionModel, canonical
from erasure.forms import DOWN, UP
from erasure.loading import HUB_ID, first_line, unread

FACTORS = {"A.weight": DOWN, "B.weight": UP}  # after `.lora_`
TEXT_ATTENTION = re.compile(r"\.to_(q|k|v|out)_lora\.(down|up)")  # how diffusers renames kohya's text encoder


def is_edit(path: str) -> bool:
    """Whether a path is an edit of this project, and no foreign erasure."""
    place = Path(path)
    return (place / "edit.json").is_file() or (place.suffix in (".safetensors", ".json") and (place.parent / "edit.json").is_file())


def foreign(model: DiffusionModel, source: str, concepts: Sequence[Concept]) -> Edit:
    """The erasure behind a path or hub id as an edit of `model`, which is its base.

    Args:
        concepts: what it is said to erase.

    Raises:
        UserError: nothing readable there, parameters that the base does not have, or an erasure that equals the base.
    """
    try:
        found = _read(source)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, SafetensorError, json.JSONDecodeError) as error:
        reason = "cannot be read as an erasure" if Path(source).exists() else unread(Path(source))
        raise UserError(f"{source} {reason}: {first_line(error)}") from error
    tensors = _moved(model, source, found)
    return Edit(
        tensors,
        EditInfo(
            method="foreign",
            product="weights",
            fields={"source": Path(source).name},
            concepts=[concept.record() for concept in concepts],
            base={"source": model.source, "fingerprint": model.fingerprint(), "family": model.family, "after": []},
            seed=0,
            precision="fp16",
            versions={name: importlib.metadata.version(name) for name in ("torch", "diffusers", "transformers")},
            cost=Cost().record(),
            known=[],
            notes={},
        ),
    )


def _read(source: str) -> dict[str, Tensor]:
    """Values or factors by the names of erasure.forms."""
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix != ".safetensors":
            raise UserError(f"{source} is no .safetensors file; pickled weights (.pt, .bin, .ckpt) are never loaded, convert them first.")
        tensors = load_file(path)
        return _factors(path) if any("lora" in key for key in tensors) else _unet(tensors)
    if (path / "model_index.json").is_file() or (not path.exists() and HUB_ID.fullmatch(source)):
        unet = UNet2DConditionModel.from_pretrained(source, subfolder="unet", use_safetensors=True)
        text = CLIPTextModel.from_pretrained(source, subfolder="text_encoder", use_safetensors=True)
        return {**_unet(unet.state_dict()), **_text(text)}
    if (path / "config.json").is_file():
        kind = json.loads((path / "config.json").read_text(encoding="utf-8")).get("model_type", "")
        if "clip" not in kind:
            raise UserError(f"{source} holds a {kind or 'model without a type'}; of single networks only CLIP text encoders are read.")
        return _text(CLIPTextModel.from_pretrained(path, use_safetensors=True, local_files_only=True))
    if (path / "pytorch_lora_weights.safetensors").is_file():
        return _factors(path / "pytorch_lora_weights.safetensors")
    raise UserError(
        f"no erasure at {source}: expected an edit, a diffusers folder or hub id, a text-encoder folder, a LoRA, or a .safetensors file."
    )


def _unet(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if any(key.startswith("model.diffusion_model.") for key in tensors):
        raise UserError("this is a checkpoint in CompVis layout; convert it to a diffusers folder first (diffusers brings a script).")
    return {f"unet.{key.removeprefix('unet.')}": value for key, value in tensors.items()}


def _text(encoder: CLIPTextModel) -> dict[str, Tensor]:
    return {f"text_encoder.{canonical(name)}": value.detach() for name, value in encoder.named_parameters()}


def _factors(path: Path) -> dict[str, Tensor]:
    """Low-rank factors of a LoRA file in diffusers', peft's or kohya's layout, scaled by alpha / rank."""
    tensors, alphas = StableDiffusionPipeline.lora_state_dict(str(path.parent), weight_name=path.name)
    named, scales = _peft(tensors), _peft(alphas or {})
    found: dict[str, Tensor] = {}
    for key, value in named.items():
        module, dot, factor = key.rpartition(".lora_")
        if not dot or factor not in FACTORS:
            raise UserError(f"{path} holds {key!r}, which is no factor of a LoRA ({', '.join(f'.lora_{f}' for f in FACTORS)}).")
        scale = 1.0
        if FACTORS[factor] == UP:
            alpha = scales.get(f"{module}.lora_A.weight.alpha", scales.get(f"{module}.alpha"))
            scale = 1.0 if alpha is None else float(alpha) / value.shape[1]
        part, _, layer = module.partition(".")
        found[f"{part}.{canonical(layer)}.weight{FACTORS[factor]}"] = value * scale
    return found


def _peft(tensors: dict[str, Any]) -> dict[str, Any]:
    """The same under peft's names, `<module>.lora_A.weight` and `<module>.lora_B.weight`."""
    text = {
        TEXT_ATTENTION.sub(r".\1_proj.lora_linear_layer.\2", key): value for key, value in tensors.items() if not key.startswith("unet.")
    }
    unet = {key: value for key, value in tensors.items() if key.startswith("unet.")}
    return {**convert_unet_state_dict_to_peft(unet), **convert_state_dict_to_peft(text)} if text else convert_unet_state_dict_to_peft(unet)


def _moved(model: DiffusionModel, source: str, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """What differs from the base, in fp16."""
    base = model.parameters()
    if missing := sorted({key.partition("::")[0] for key in found} - base.keys()):
        raise UserError(
            f"{source} has {len(missing)} parameters that {model.source} lacks, such as {missing[0]!r}; give its own base with --model."
        )
    tensors = {}
    for key, value in found.items():
        half = value.to("cpu", torch.float16)
        if key in base:
            here = base[key].detach()
            if here.shape != half.shape:
                raise UserError(
                    f"{source}: {key} is {tuple(half.shape)} there and {tuple(here.shape)} in {model.source}; give its own base."
                )
            if torch.equal(here.to("cpu", torch.float16), half):
                continue
        tensors[key] = half.contiguous()
    if not tensors:
        raise UserError(f"{source} equals {model.source} in every parameter; there is nothing to audit.")
    return tensors
